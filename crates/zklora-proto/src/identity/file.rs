//! Private keys in files.

use std::path::Path;

use ed25519_dalek::SigningKey;
use zeroize::{Zeroize, Zeroizing};

use super::SecretKey;
use crate::digest::parse_hex;
use crate::secret_file::{self, SecretFileError};

impl SecretKey {
    /// The key in a file that [`SecretKey::save`] wrote.
    pub fn load(path: &Path) -> Result<Self, SecretFileError> {
        Self::parse_file(path, secret_file::read(path, MAX_KEY_FILE)?)
    }

    /// The key in a file that a service manager made for this process from one that [`SecretKey::save`] wrote.
    pub fn load_credential(path: &Path) -> Result<Self, SecretFileError> {
        Self::parse_file(path, secret_file::read_credential(path, MAX_KEY_FILE)?)
    }

    fn parse_file(path: &Path, content: Vec<u8>) -> Result<Self, SecretFileError> {
        let text = Zeroizing::new(content);
        let text = std::str::from_utf8(&text).unwrap_or_default().trim_end();
        let mut bytes = parse_hex::<32>(text).map_err(|_| SecretFileError::Content {
            path: path.into(),
            expected: "an Ed25519 private key as 64 hexadecimal digits",
        })?;
        let key = Self(SigningKey::from_bytes(&bytes));
        bytes.zeroize();
        Ok(key)
    }

    /// Writes the key to a new file that only its owner may read.
    pub fn save(&self, path: &Path) -> Result<(), SecretFileError> {
        let mut text = Zeroizing::new(hex::encode(self.0.as_bytes()));
        text.push('\n');
        secret_file::create(path, text.as_bytes())
    }

    /// The key in `path`, or a new one that is saved there if there is no such file.
    pub fn load_or_create(path: &Path) -> Result<Self, SecretFileError> {
        if path.exists() {
            return Self::load(path);
        }
        let key = Self::generate();
        key.save(path)?;
        Ok(key)
    }
}

/// More than the file of a key has.
const MAX_KEY_FILE: u64 = 128;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_survive_a_file_that_only_the_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        let key = SecretKey::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SecretKey::load(&path).unwrap().public(), key.public());
        assert!(!format!("{key:?}").contains(&hex::encode(key.0.as_bytes())));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = SecretKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("0600"), "{error}");
    }

    #[test]
    fn a_credential_may_have_the_mask_of_an_access_control_list_in_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        let key = SecretKey::load_or_create(&path).unwrap();
        for (mode, is_secret) in [(0o400, true), (0o440, true), (0o600, true), (0o460, false), (0o444, false)]
        {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let loaded = SecretKey::load_credential(&path).map(|key| key.public()).ok();
            assert_eq!(loaded, is_secret.then(|| key.public()), "{mode:o}");
        }
    }
}
