//! Bounded reading of files.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;

/// Refuses a `path` that is not a folder.
pub(crate) fn folder(path: &Path) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::NotAFolder { path: path.to_owned() }),
        Err(error) => Err(Error::io(path, error)),
    }
}

/// Parses a JSON file. `hint` says what the file is for, should it be missing.
pub fn json<T: DeserializeOwned>(path: &Path, hint: &'static str) -> Result<T, Error> {
    parse_json(path, &text(path, MAX_JSON_BYTES, hint)?)
}

/// Parses what a JSON file holds.
pub fn parse_json<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|error| Error::json(path, &error))
}

/// The content of a text file of at most `limit` bytes, which begins neither as a Git LFS pointer nor with a byte order mark. `hint`
/// says what the file is for, should it be missing.
pub fn text(path: &Path, limit: u64, hint: &'static str) -> Result<Vec<u8>, Error> {
    let (file, length) = open(path, hint)?;
    let too_large = |found| Error::TooLarge { path: path.to_owned(), found, limit };
    if length > limit {
        return Err(too_large(length));
    }
    let mut text = Vec::new();
    // The file may have grown since its length was read.
    file.take(limit + 1).read_to_end(&mut text).map_err(|error| Error::io(path, error))?;
    if text.len() as u64 > limit {
        return Err(too_large(text.len() as u64));
    }
    if is_lfs_pointer(&text) {
        return Err(Error::LfsPointer { path: path.to_owned() });
    }
    if BYTE_ORDER_MARKS.iter().any(|mark| text.starts_with(mark)) {
        return Err(Error::ByteOrderMark { path: path.to_owned() });
    }
    Ok(text)
}

/// Opens a regular file and gives its length in bytes. Anything else (a pipe, a device) might block for ever.
pub(crate) fn open(path: &Path, hint: &'static str) -> Result<(File, u64), Error> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.to_owned(), hint },
        _ => Error::io(path, error),
    })?;
    if !metadata.is_file() {
        return Err(Error::io(path, io::Error::other("not a regular file")));
    }
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    Ok((file, metadata.len()))
}

/// Whether a file that begins so is a pointer of Git LFS, which stands in a repository for a file that was not fetched.
pub(crate) fn is_lfs_pointer(begin: &[u8]) -> bool {
    begin.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// The configurations and shard indices of the largest public models stay below 200 KB.
pub const MAX_JSON_BYTES: u64 = 4 << 20;

/// UTF-8's, and UTF-16's of either order.
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_of_ours_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let read = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            json::<serde_json::Value>(&path, "").unwrap_err().to_string()
        };
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        let message = read(pointer);
        assert!(message.contains("config.json is a pointer of Git LFS"), "{message}");
        assert!(message.contains("git lfs pull"), "{message}");
        for mark in [&b"\xef\xbb\xbf{}"[..], b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}"] {
            let message = read(mark);
            assert!(message.contains("begins with a byte order mark"), "{message}");
        }
        let message = read(b"{");
        assert_eq!(message.matches("EOF").count(), 1, "{message}");
        assert!(std::error::Error::source(&Error::io(&path, io::Error::other("x"))).is_none());
        fs::write(&path, "12345").unwrap();
        assert!(text(&path, 4, "").unwrap_err().to_string().contains("has 5 bytes, at most 4"));
    }
}
