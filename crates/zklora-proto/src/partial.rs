//! Files and folders that have a name of their own until they are complete, and what killed processes left of such.
//!
//! As long as a process writes one, it holds a lock on it (flock(2)), which the kernel drops with the process. So whoever comes next can tell
//! what is abandoned from what somebody else is still at. On a file system without locks nothing is taken for abandoned.

use std::fs::{self, File, FileType, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

/// What the names of files and folders begin with that are made for people, in folders of theirs, until they are complete.
pub const PARTIAL: &str = ".zklora-";

/// Random characters behind the prefix.
const RANDOM: usize = 6;

/// A new file in a folder, of mode 0600, whose name begins with `prefix`. It goes when it is dropped, unless it is given its own name.
/// Files with that prefix that killed processes left there are removed first.
pub fn file(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    tidy(folder, prefix, FileType::is_file);
    loop {
        let file = Builder::new()
            .prefix(prefix)
            .rand_bytes(RANDOM)
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(folder)?;
        // Whatever the umask takes.
        file.as_file().set_permissions(Permissions::from_mode(0o600))?;
        if is_ours(file.as_file())? {
            return Ok(file);
        }
    }
}

/// The same with the mode that any file gets, less what the umask takes: there is no secret in it.
pub fn readable_file(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    tidy(folder, prefix, FileType::is_file);
    loop {
        let permissions = Permissions::from_mode(0o666);
        let file =
            Builder::new().prefix(prefix).rand_bytes(RANDOM).permissions(permissions).tempfile_in(folder)?;
        if is_ours(file.as_file())? {
            return Ok(file);
        }
    }
}

/// A folder that is being filled, with its lock.
#[derive(Debug)]
pub struct PartialFolder {
    folder: TempDir,
    _lock: File,
}

/// A new folder in another one, of mode 0700, as [`file()`] makes a file.
pub fn folder(parent: &Path, prefix: &str) -> io::Result<PartialFolder> {
    tidy(parent, prefix, FileType::is_dir);
    loop {
        let folder = Builder::new()
            .prefix(prefix)
            .rand_bytes(RANDOM)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
        let lock = File::open(folder.path())?;
        if is_ours(&lock)? {
            return Ok(PartialFolder { folder, _lock: lock });
        }
    }
}

impl PartialFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// It has been given its own name, and stays.
    pub fn keep(self) {
        let _ = self.folder.keep();
    }
}

/// Removes the files with this prefix that killed processes left in a folder of this program's own, and says how many there were. None if
/// there is no such folder.
pub fn remove_abandoned_files(folder: &Path, prefix: &str) -> io::Result<usize> {
    remove_abandoned(folder, |name, kind| kind.is_file() && is_partial(name, prefix, None))
}

/// The same with folders, and all that is in them.
pub fn remove_abandoned_folders(folder: &Path, prefix: &str) -> io::Result<usize> {
    remove_abandoned(folder, |name, kind| kind.is_dir() && is_partial(name, prefix, None))
}

/// Removes what was left in a folder that may be anybody's, and so only what is named exactly as here.
fn tidy(folder: &Path, prefix: &str, is_kind: fn(&FileType) -> bool) {
    // If it fails, what is to be written can be written all the same.
    let _ = remove_abandoned(folder, |name, kind| is_kind(&kind) && is_partial(name, prefix, Some(RANDOM)));
}

/// Whether a name is a prefix with random characters behind it, of which it has so many.
fn is_partial(name: &str, prefix: &str, length: Option<usize>) -> bool {
    let is_random = |random: &str| {
        length.map_or(!random.is_empty(), |length| random.len() == length)
            && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    name.strip_prefix(prefix).is_some_and(is_random)
}

fn remove_abandoned(folder: &Path, is_partial: impl Fn(&str, FileType) -> bool) -> io::Result<usize> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        // Neither a link nor a device is one of ours.
        if !(kind.is_file() || kind.is_dir()) || !is_partial(&entry.file_name().to_string_lossy(), kind) {
            continue;
        }
        // On a network file system, who locks a file must be able to write it.
        let open = if kind.is_dir() { File::open(&path) } else { OpenOptions::new().write(true).open(&path) };
        // Another user's, or gone by now.
        let Ok(open) = open else { continue };
        if open.try_lock().is_err() {
            continue;
        }
        // Its writer may have given it its own name in between: then there is none of this name.
        match if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(()) => removed += 1,
        }
    }
    Ok(removed)
}

/// Locks what has just been made. `false` if somebody has taken it for abandoned just then.
fn is_ours(made: &File) -> io::Result<bool> {
    match made.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(false),
        // Without locks nobody takes it.
        Err(TryLockError::Error(_)) => Ok(true),
        Ok(()) => Ok(made.metadata()?.nlink() > 0),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_nobody_writes_any_more_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        let [live_file, live_folder] = [".pf-", ".new-"];
        let mut open = file(parent, live_file).unwrap();
        open.write_all(b"half").unwrap();
        let filling = folder(parent, live_folder).unwrap();
        fs::write(filling.path().join("a"), b"half").unwrap();
        // What a process that is killed leaves: nobody holds it.
        fs::write(parent.join(".pf-Abc123"), b"left").unwrap();
        fs::create_dir(parent.join(".new-xyz789")).unwrap();
        fs::write(parent.join(".new-xyz789/unproved.pf"), b"left").unwrap();
        // What looks alike, and is somebody's.
        let theirs = [".pf-my-notes", ".pf-", ".pf-notes.txt", "a.pf", "x.pf-Abc123"];
        theirs.iter().for_each(|name| fs::write(parent.join(name), b"mine").unwrap());
        fs::create_dir(parent.join(".pf-Folder")).unwrap();
        std::os::unix::fs::symlink(parent.join("a.pf"), parent.join(".pf-Link01")).unwrap();
        let before = names(parent);

        assert_eq!(remove_abandoned_files(parent, ".pf-").unwrap(), 1);
        assert_eq!(remove_abandoned_folders(parent, ".new-").unwrap(), 1);
        let gone = [".new-xyz789", ".pf-Abc123"];
        let left: Vec<String> = before.into_iter().filter(|name| !gone.contains(&&name[..])).collect();
        assert_eq!(names(parent), left);
        assert_eq!(remove_abandoned_files(&parent.join("none"), ".pf-").unwrap(), 0);

        // Those that were left alone are given their names.
        open.persist(parent.join("whole.pf")).unwrap();
        fs::rename(filling.path(), parent.join("whole")).unwrap();
        filling.keep();
        assert_eq!(fs::read(parent.join("whole.pf")).unwrap(), b"half");
        assert_eq!(fs::read(parent.join("whole/a")).unwrap(), b"half");
        // And who makes another one, in whatever folder, removes what was left before, and was named as here.
        fs::write(parent.join(".pf-Abc123"), b"left").unwrap();
        fs::write(parent.join(".pf-Abc1234"), b"mine").unwrap();
        drop(file(parent, ".pf-").unwrap());
        assert!(!parent.join(".pf-Abc123").exists());
        assert!(parent.join(".pf-Abc1234").exists() && parent.join(".pf-Folder").exists());
    }

    #[test]
    fn writers_and_those_who_tidy_up_do_not_disturb_each_other() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                scope.spawn(move || {
                    for number in 0..200 {
                        let mut file = file(parent, ".pf-").unwrap();
                        file.write_all(b"whole").unwrap();
                        file.persist(parent.join(format!("{writer}-{number}"))).unwrap();
                    }
                });
            }
        });
        assert_eq!(names(parent).len(), 800);
    }
}
