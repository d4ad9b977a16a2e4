//! A folder of verification keys, so that a circuit is built once and not once in every run.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zklora_circuit::CircuitId;
use zklora_circuit::circuit::{BatchVerifier, CircuitError};
use zklora_circuit::keys::{KeyError, MAX_KEY_BYTES};
use zklora_circuit::parameters::Security;
use zklora_proto::{Bytes, ModuleShape, partial, secret_file};

/// Keys by circuit id, in a folder that only its owner may change.
///
/// What is in the folder is trusted as the verifier's own program is: a key says which proofs are valid. What is not the
/// key of the wanted circuit, by its own header and digest, is built anew, and so is everything while the folder is one
/// that others may write to or that belongs to somebody else. No failure here is a failure of the verification.
#[derive(Debug, Clone)]
pub struct KeyCache {
    folder: PathBuf,
    /// Whom folder and keys have to belong to.
    user: u32,
}

/// Where a key came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was in the folder.
    Kept,
    /// It was built, and is in the folder now.
    Built,
    /// It was built, and could not be kept: the log says why.
    NotKept,
}

/// Why a key is not taken from the folder or put there.
#[derive(Debug, thiserror::Error)]
enum CacheError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "others than its owner may change it (mode {0:o}), expected mode 700 for the folder and 600 for a key"
    )]
    Open(u32),
    #[error(
        "it belongs to user {found}, who may change it; expected one of user {user}, who runs this verifier: move it away, or set \
         XDG_CACHE_HOME"
    )]
    Owner { found: u32, user: u32 },
    #[error("it has more than {}", Bytes(MAX_KEY_BYTES))]
    TooLarge,
    #[error("{0}")]
    Key(#[from] KeyError),
}

impl KeyCache {
    /// The keys in this folder, which is made when there is a key to keep.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, user: rustix::process::geteuid().as_raw() }
    }

    /// The keys of this user: `zklora/keys` in `$XDG_CACHE_HOME` or `~/.cache`. `None` if neither is known.
    pub fn of_user() -> Option<Self> {
        // The specification has relative paths ignored.
        let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
        Some(Self::new(cache.join("zklora").join("keys")))
    }

    /// Where the keys are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of a circuit's key.
    pub fn path(&self, id: &CircuitId) -> PathBuf {
        self.folder.join(format!("{}.key", hex::encode(id.as_bytes())))
    }

    /// The key of this circuit: the one that is kept, or a new one, which is kept from then on.
    pub fn get(
        &self,
        security: Security,
        shapes: &[ModuleShape],
    ) -> Result<(BatchVerifier, Origin), CircuitError> {
        let path = self.path(&CircuitId::new(security, shapes));
        match self.load(&path, security, shapes) {
            Ok(Some(verifier)) => return Ok((verifier, Origin::Kept)),
            Ok(None) => {}
            Err(error) => tracing::warn!("{}: {error}; building the key anew", path.display()),
        }
        let verifier = BatchVerifier::build(security, shapes)?;
        let origin = match self.keep(&path, security, &verifier) {
            Ok(()) => Origin::Built,
            Err(error) => {
                tracing::warn!("{}: {error}; the key is not kept", path.display());
                Origin::NotKept
            }
        };
        Ok((verifier, origin))
    }

    /// The kept key, if there is one.
    fn load(
        &self,
        path: &Path,
        security: Security,
        shapes: &[ModuleShape],
    ) -> Result<Option<BatchVerifier>, CacheError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.check_owner(&fs::metadata(&self.folder)?)?;
        self.check_owner(&file.metadata()?)?;
        let mut key = Vec::new();
        file.take(MAX_KEY_BYTES + 1).read_to_end(&mut key)?;
        if key.len() as u64 > MAX_KEY_BYTES {
            return Err(CacheError::TooLarge);
        }
        Ok(Some(BatchVerifier::from_key(security, shapes, &key)?))
    }

    /// Puts a key into the folder. It appears under its name only when it is whole.
    fn keep(&self, path: &Path, security: Security, verifier: &BatchVerifier) -> Result<(), CacheError> {
        let key = verifier.to_key(security)?;
        secret_file::create_folder(&self.folder, 0o700)?;
        self.check_owner(&fs::metadata(&self.folder)?)?;
        let mut file = partial::file(&self.folder, ".key-")?;
        file.write_all(&key)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Whether nobody but who runs this verifier may change it. An owner may whatever the mode says: it is theirs to change.
    fn check_owner(&self, metadata: &fs::Metadata) -> Result<(), CacheError> {
        match (metadata.uid(), metadata.mode() & 0o7777) {
            (found, _) if found != self.user => Err(CacheError::Owner { found, user: self.user }),
            (_, mode) if mode & 0o022 != 0 => Err(CacheError::Open(mode)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SECURITY: Security = Security::Standard;

    fn shapes(rank: usize) -> [ModuleShape; 1] {
        [ModuleShape::new(8, rank, 8).unwrap()]
    }

    #[test]
    fn a_key_is_built_once_and_only_its_owner_may_change_it() {
        let parent = tempfile::tempdir().unwrap();
        let cache = KeyCache::new(parent.path().join("zklora/keys"));
        let (built, origin) = cache.get(SECURITY, &shapes(2)).unwrap();
        assert_eq!(origin, Origin::Built);
        let (kept, origin) = cache.get(SECURITY, &shapes(2)).unwrap();
        assert_eq!(origin, Origin::Kept);
        assert_eq!(kept.to_key(SECURITY), built.to_key(SECURITY));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let path = cache.path(&CircuitId::new(SECURITY, &shapes(2)));
        assert_eq!((mode(cache.folder()), mode(&path)), (0o700, 0o600));
        assert_eq!(fs::read_dir(cache.folder()).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn what_belongs_to_somebody_else_is_not_used() {
        let parent = tempfile::tempdir().unwrap();
        let cache = KeyCache::new(parent.path().join("keys"));
        assert_eq!(cache.get(SECURITY, &shapes(1)).unwrap().1, Origin::Built);
        assert_eq!(cache.get(SECURITY, &shapes(1)).unwrap().1, Origin::Kept);
        // The same folder with the same modes, as another user sees it.
        let other = KeyCache { user: cache.user + 1, ..cache.clone() };
        assert_eq!(other.get(SECURITY, &shapes(1)).unwrap().1, Origin::NotKept);
        let metadata = fs::metadata(cache.folder()).unwrap();
        assert!(matches!(other.check_owner(&metadata), Err(CacheError::Owner { .. })));
        // A key alone that is another's, in a folder of one's own: only root can make one.
        let path = cache.path(&CircuitId::new(SECURITY, &shapes(1)));
        if std::os::unix::fs::chown(&path, Some(cache.user + 1), None).is_ok() {
            assert_eq!(cache.get(SECURITY, &shapes(1)).unwrap().1, Origin::Built);
            assert_eq!(fs::metadata(&path).unwrap().uid(), cache.user);
        }
    }

    #[test]
    fn what_is_not_this_circuits_key_is_built_anew() {
        let parent = tempfile::tempdir().unwrap();
        let cache = KeyCache::new(parent.path().join("keys"));
        let path = |rank| cache.path(&CircuitId::new(SECURITY, &shapes(rank)));
        cache.get(SECURITY, &shapes(1)).unwrap();
        cache.get(SECURITY, &shapes(2)).unwrap();
        let good = fs::read(path(2)).unwrap();
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let another = fs::read(path(1)).unwrap();
        assert_ne!(another, good);
        for content in [&damaged, &another, &good[..good.len() / 2].to_vec(), &Vec::new()] {
            fs::write(path(2), content).unwrap();
            let (verifier, origin) = cache.get(SECURITY, &shapes(2)).unwrap();
            assert_eq!(origin, Origin::Built);
            assert_eq!(verifier.to_key(SECURITY).unwrap(), good);
            assert_eq!(fs::read(path(2)).unwrap(), good);
        }
        File::options().write(true).open(path(2)).unwrap().set_len(MAX_KEY_BYTES + 1).unwrap();
        assert_eq!(cache.get(SECURITY, &shapes(2)).unwrap().1, Origin::Built);

        // A file that others may write is replaced; a folder that they may write to is not used at all.
        fs::set_permissions(path(2), Permissions::from_mode(0o666)).unwrap();
        assert_eq!(cache.get(SECURITY, &shapes(2)).unwrap().1, Origin::Built);
        assert_eq!(cache.get(SECURITY, &shapes(2)).unwrap().1, Origin::Kept);
        fs::set_permissions(cache.folder(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(cache.get(SECURITY, &shapes(2)).unwrap().1, Origin::NotKept);
    }
}
