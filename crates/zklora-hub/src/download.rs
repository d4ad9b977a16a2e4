//! From the hub into the cache.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hf_hub::CacheRepo;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest, Sha256};

use super::client::{Client, Metadata};
use super::{Error, Reference, layout, reference};

/// A commit of a repository, in the cache: the content of a file is in `blobs/<entity tag>`, and
/// `snapshots/<commit>/<file>` links to it.
pub(super) struct Repository<'a> {
    client: &'a Client,
    cache: &'a Path,
    reference: &'a Reference,
    commit: &'a str,
    layout: CacheRepo,
}

impl<'a> Repository<'a> {
    /// `commit` has to be one.
    pub(super) fn new(
        client: &'a Client,
        cache: &'a Path,
        reference: &'a Reference,
        commit: &'a str,
    ) -> Self {
        Self { client, cache, reference, commit, layout: layout(cache, reference) }
    }

    /// Where a file is, which has at most `limit` bytes, once it is there. `file` has to be a plain name.
    pub(super) fn fetch(&self, file: &str, limit: u64) -> Result<PathBuf, Error> {
        let pointer = self.layout.pointer_path(self.commit).join(file);
        if !pointer.is_file() {
            let metadata = self.client.metadata(self.reference, self.commit, file)?;
            if metadata.size > limit {
                return Err(Error::TooLarge {
                    reference: self.reference.clone(),
                    file: file.to_owned(),
                    found: metadata.size,
                    limit,
                });
            }
            self.fetch_blob(file, &metadata)?;
            make_parent(&pointer)?;
            // A link to a blob that is gone.
            let _ = fs::remove_file(&pointer);
            match symlink(Path::new("../../blobs").join(&metadata.etag), &pointer) {
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked.map_err(at(&pointer))?,
            }
        }
        Ok(pointer)
    }

    /// Notes which commit the revision means, for those who are offline later, and gives the folder of the snapshot.
    pub(super) fn remember(&self) -> Result<PathBuf, Error> {
        if !self.reference.is_commit() {
            self.layout.create_ref(self.commit).map_err(at(self.cache))?;
        }
        Ok(self.layout.pointer_path(self.commit))
    }

    fn fetch_blob(&self, file: &str, metadata: &Metadata) -> Result<(), Error> {
        let blob = self.layout.blob_path(&metadata.etag);
        make_parent(&blob)?;
        // huggingface_hub takes the same lock.
        let lock = self.cache.join(".locks").join(self.reference.repo().folder_name());
        let lock = lock.join(format!("{}.lock", metadata.etag));
        make_parent(&lock)?;
        let held = File::create(&lock).map_err(at(&lock))?;
        held.lock().map_err(at(&lock))?;
        if blob.is_file() {
            return Ok(());
        }

        let incomplete = blob.with_file_name(format!("{}.incomplete", metadata.etag));
        let announced =
            (metadata.etag.len() == 64 && reference::is_lower_hex(&metadata.etag)).then_some(&metadata.etag);
        let mut open = OpenOptions::new();
        // What an earlier run left is gone on with only if it can be checked in the end.
        let open = open.read(true).write(true).create(true).truncate(announced.is_none());
        let mut partial = open.open(&incomplete).map_err(at(&incomplete))?;
        self.fill(&mut partial, &incomplete, file, metadata.size)?;
        if let Some(announced) = announced {
            let found = sha256(&mut partial).map_err(at(&incomplete))?;
            if found != *announced {
                let _ = fs::remove_file(&incomplete);
                return Err(Error::Digest { file: file.to_owned(), expected: announced.clone(), found });
            }
        }
        // Whole on the disk before it has its name.
        partial.sync_all().map_err(at(&incomplete))?;
        fs::rename(&incomplete, &blob).map_err(at(&blob))
    }

    /// Downloads until a file has `size` bytes.
    fn fill(&self, partial: &mut File, path: &Path, file: &str, size: u64) -> Result<(), Error> {
        let mut have = partial.metadata().map_err(at(path))?.len();
        if have > size {
            partial.set_len(0).map_err(at(path))?;
            have = 0;
        }
        room(path.parent().unwrap_or(self.cache), file, size - have)?;
        let bar = progress(file, size);
        let mut failures = 0;
        while have < size {
            let began = have;
            let failure = match self.client.content(self.reference, self.commit, file, have, size) {
                Ok((from, body)) => {
                    have = from;
                    partial
                        .set_len(from)
                        .and_then(|()| partial.seek(io::SeekFrom::Start(from)))
                        .map_err(at(path))?;
                    bar.set_position(have);
                    let mut body = body.into_reader();
                    copy(&mut body, partial, size, &mut have, &bar).map_err(at(path))?
                }
                Err(error @ Error::Unreachable { .. }) => Some(error.to_string()),
                Err(Error::Status { status, .. }) if status == 429 || status >= 500 => {
                    Some(format!("status {status}"))
                }
                Err(error) => return Err(error),
            };
            if let Some(reason) = failure {
                // One that brought much does not count; together that bounds how often a request is made.
                if have < began.saturating_add(WORTH_A_REQUEST) {
                    failures += 1;
                }
                if failures >= MAX_FAILURES {
                    bar.abandon();
                    return Err(Error::BrokeOff { file: file.to_owned(), have, size, reason });
                }
                thread::sleep(PAUSE * failures);
            }
        }
        bar.finish();
        Ok(())
    }
}

/// Copies until `to` has `size` bytes. Gives why the source ended before; what fails is the writing.
fn copy(
    from: &mut impl Read,
    to: &mut File,
    size: u64,
    have: &mut u64,
    bar: &ProgressBar,
) -> io::Result<Option<String>> {
    let mut buffer = vec![0; 1 << 16];
    while *have < size {
        let wanted = buffer.len().min(usize::try_from(size - *have).unwrap_or(usize::MAX));
        match from.read(&mut buffer[..wanted]) {
            Ok(0) => return Ok(Some("the connection ended".to_owned())),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                *have += read as u64;
                bar.set_position(*have);
            }
            Err(error) => return Ok(Some(error.to_string())),
        }
    }
    Ok(None)
}

fn sha256(file: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    file.rewind()?;
    io::copy(file, &mut hasher)?;
    Ok(format!("{:x}", hasher.finalize()))
}

/// Refuses what does not fit.
fn room(folder: &Path, file: &str, needed: u64) -> Result<(), Error> {
    let disk = rustix::fs::statvfs(folder).map_err(|error| at(folder)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed > free {
        return Err(Error::NoRoom { file: file.to_owned(), needed, free, cache: folder.to_owned() });
    }
    Ok(())
}

/// A bar on stderr, if that is a terminal and the file takes a while.
fn progress(file: &str, size: u64) -> ProgressBar {
    if size < WORTH_A_BAR {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
    let form = ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}");
    bar.with_style(form.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(file.to_owned())
}

fn make_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(at(parent))
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| Error::Io { path: path.to_owned(), reason: error.to_string() }
}

const MAX_FAILURES: u32 = 5;
const WORTH_A_REQUEST: u64 = 1 << 20;
const WORTH_A_BAR: u64 = 1 << 20;
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_before() {
        let folder = tempfile::tempdir().unwrap();
        room(folder.path(), "model.safetensors", 1).unwrap();
        let message = room(folder.path(), "model.safetensors", u64::MAX).unwrap_err().to_string();
        assert!(message.contains("model.safetensors takes 18446744073709551615 more bytes"), "{message}");
    }
}
