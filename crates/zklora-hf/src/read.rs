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
        Err(source) => Err(Error::io(path, source)),
    }
}

/// Parses a JSON file. `hint` says what the file is for, should it be missing.
pub(crate) fn json<T: DeserializeOwned>(path: &Path, hint: &'static str) -> Result<T, Error> {
    let (file, length) = open(path, hint)?;
    if length > MAX_JSON_BYTES {
        return Err(Error::TooLarge { path: path.to_owned(), found: length, limit: MAX_JSON_BYTES });
    }
    let mut text = Vec::new();
    // The file may have grown since its length was read.
    file.take(MAX_JSON_BYTES).read_to_end(&mut text).map_err(|source| Error::io(path, source))?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Opens a regular file and gives its length in bytes. Anything else (a pipe, a device) might block for ever.
pub(crate) fn open(path: &Path, hint: &'static str) -> Result<(File, u64), Error> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.to_owned(), hint },
        _ => Error::io(path, source),
    })?;
    if !metadata.is_file() {
        return Err(Error::io(path, io::Error::other("not a regular file")));
    }
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    Ok((file, metadata.len()))
}

/// The configurations and shard indices of the largest public models stay below 200 KB.
pub(crate) const MAX_JSON_BYTES: u64 = 4 << 20;
