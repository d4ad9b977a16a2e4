//! Files and folders that only their owner may read.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::read_bounded;

/// Why a secret file could not be written or read. Never carries the content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretFileError {
    /// The operating system refused.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        error: io::Error,
    },
    /// Others may read the file.
    #[error("{path} has mode {mode:04o}, expected 0600: it holds a secret; run `chmod 600 {path}` if nobody else read it",
        path = path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may put files into the folder, or take some away.
    #[error("{path} has mode {mode:04o}, expected 0700: others may change what is in it; run `chmod 700 {path}` if nobody did",
        path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not what it should be.
    #[error("{path}: expected {expected}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// The file is larger than such a file can be.
    #[error("{path}: expected at most {}", crate::Bytes(*.max), path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        max: u64,
    },
}

/// Writes a new file with mode 0600. Fails if there is one already: a secret is never overwritten.
pub fn create(path: &Path, content: &[u8]) -> Result<(), SecretFileError> {
    let io = |error| SecretFileError::Io { path: path.into(), error };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    // Whatever the umask takes.
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
    file.write_all(content).map_err(io)?;
    file.sync_all().map_err(io)
}

/// Makes a folder, and those above it that are missing, with this mode whatever the umask is: 0700 for its owner alone. One that is there
/// stays as it is.
pub fn create_folder(path: &Path, mode: u32) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_folder(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        // Somebody else has made it just now.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        made => made?,
    }
    let made = fs::metadata(path)?.permissions().mode() & 0o7777;
    if made & 0o777 != mode {
        // What it has from the folder above, such as the group, stays.
        fs::set_permissions(path, Permissions::from_mode(made & 0o7000 | mode))?;
    }
    Ok(())
}

/// Fails if others than their owners may read or change these files, as far as they are there, or change the folder that they are in.
pub fn check_closed(folder: &Path, files: &[PathBuf]) -> Result<(), SecretFileError> {
    let mode_of = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.permissions().mode() & 0o777),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(SecretFileError::Io { path: path.into(), error }),
    };
    let mode = mode_of(folder)?;
    if mode & 0o022 != 0 {
        return Err(SecretFileError::Folder { path: folder.into(), mode });
    }
    for path in files {
        let mode = mode_of(path)?;
        if mode & 0o077 != 0 {
            return Err(SecretFileError::Permissions { path: path.clone(), mode });
        }
    }
    Ok(())
}

/// Reads a file of at most `max` bytes that nobody but its owner may read.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, SecretFileError> {
    read_closed_to(0o077, path, max)
}

/// Reads a file of at most `max` bytes that a service manager made for this process alone, as systemd does for
/// `LoadCredential=`. It may belong to root and be opened to the service by an access control list, whose mask stands where the
/// group's bits would: mode 0440, though the group has no access.
pub fn read_credential(path: &Path, max: u64) -> Result<Vec<u8>, SecretFileError> {
    read_closed_to(0o037, path, max)
}

fn read_closed_to(others: u32, path: &Path, max: u64) -> Result<Vec<u8>, SecretFileError> {
    let io = |error| SecretFileError::Io { path: path.into(), error };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if mode & others != 0 {
        return Err(SecretFileError::Permissions { path: path.into(), mode });
    }
    read_bounded(file, max).map_err(io)?.ok_or_else(|| SecretFileError::TooLarge { path: path.into(), max })
}
