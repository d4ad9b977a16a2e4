//! Ed25519 identities, signatures with a purpose, and `zklora://` addresses.

#[cfg(unix)]
mod file;

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::pkcs8::EncodePrivateKey;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::digest::{HexError, hex_text, parse_hex};
use crate::random::system_random;

/// What a signature is for. A signature made for one purpose is never valid for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The contributor signs the adapter manifest.
    Manifest,
    /// The contributor signs the receipt of a session.
    ReceiptContributor,
    /// The base-model user signs the receipt of a session.
    ReceiptClient,
    /// The base-model user signs the folds of a session's transcript, for a redacted bundle.
    Folds,
    /// The contributor signs the package in which it delivers an adapter.
    Delivery,
}

impl Purpose {
    fn digest(self, message: &[u8]) -> [u8; 32] {
        let context = match self {
            Self::Manifest => "zklora v1 signature: manifest",
            Self::ReceiptContributor => "zklora v1 signature: receipt, contributor",
            Self::ReceiptClient => "zklora v1 signature: receipt, client",
            Self::Folds => "zklora v1 signature: folds, client",
            Self::Delivery => "zklora v1 signature: delivery",
        };
        blake3::derive_key(context, message)
    }
}

/// An Ed25519 public key: who someone is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes 32 bytes for a key; whether they are a curve point shows when a signature is checked.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` is this key's over exactly these bytes for this purpose (strict verification: no malleable
    /// encodings, no small-order keys).
    pub fn verifies(&self, purpose: Purpose, message: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(&purpose.digest(message), &ed25519_dalek::Signature::from_bytes(&signature.0))
                .is_ok()
        })
    }

    /// The X25519 public key of who holds this identity: the same point on the curve's Montgomery form. `None` if the bytes are no
    /// point, or one of small order, to which anybody could read what is encrypted.
    pub fn to_x25519(&self) -> Option<[u8; 32]> {
        let key = VerifyingKey::from_bytes(&self.0).ok().filter(|key| !key.is_weak())?;
        Some(key.to_montgomery().to_bytes())
    }
}

impl FromStr for PublicKey {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        parse_hex(text).map(Self)
    }
}

hex_text!(PublicKey, 32);

/// An Ed25519 signature over a purpose and the exact bytes of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Wraps 64 bytes.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl FromStr for Signature {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        parse_hex(text).map(Self)
    }
}

hex_text!(Signature, 64);

/// An Ed25519 private key. Wiped from memory when dropped; never printed.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        Self(SigningKey::from_bytes(&Zeroizing::new(system_random())))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs these exact bytes for this purpose.
    pub fn sign(&self, purpose: Purpose, message: &[u8]) -> Signature {
        Signature(self.0.sign(&purpose.digest(message)).to_bytes())
    }

    /// The X25519 secret that belongs to [`PublicKey::to_x25519`], for decrypting alone: the scalar that signatures are made with.
    pub fn to_x25519(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_scalar_bytes())
    }

    /// The key as PKCS#8 DER, for a TLS stack.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let document = self
            .0
            .to_pkcs8_der()
            // Ed25519 keys have one fixed-size encoding, which cannot fail.
            .expect("an Ed25519 key always encodes");
        Zeroizing::new(document.as_bytes().to_vec())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// Where a contributor is reached and who it must turn out to be: `zklora://<public key>@host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The key that the peer must hold.
    pub key: PublicKey,
    /// Host name or IP address; an IPv6 address is in brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// A text that is no `zklora://` address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected zklora://<64 hexadecimal digits>@<host>:<port>, found {found:?}: {why}")]
pub struct AddressError {
    found: String,
    why: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = |why: &str| AddressError { found: text.chars().take(200).collect(), why: why.into() };
        let rest = text.strip_prefix("zklora://").ok_or_else(|| error("it does not start with zklora://"))?;
        let (key, authority) =
            rest.split_once('@').ok_or_else(|| error("it names no public key before an @"))?;
        let (host, port) = authority.rsplit_once(':').ok_or_else(|| error("it names no port"))?;
        if host.is_empty() {
            return Err(error("it names no host"));
        }
        Ok(Self {
            key: key.parse().map_err(|e: HexError| error(&format!("the key: {e}")))?,
            host: host.into(),
            port: port.parse().map_err(|_| error("the port is no number from 0 to 65535"))?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zklora://{}@{}:{}", self.key, self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_binds_key_purpose_and_message() {
        let (a, b) = (SecretKey::generate(), SecretKey::generate());
        let signature = a.sign(Purpose::Manifest, b"bytes");
        assert!(a.public().verifies(Purpose::Manifest, b"bytes", &signature));
        assert!(!b.public().verifies(Purpose::Manifest, b"bytes", &signature));
        assert!(!a.public().verifies(Purpose::ReceiptClient, b"bytes", &signature));
        assert!(!a.public().verifies(Purpose::Manifest, b"Bytes", &signature));
    }

    #[test]
    fn keys_to_which_anybody_could_read_have_no_x25519_key() {
        // The neutral element, a point of order 2, one of order 4, and no point at all.
        let (mut neutral, mut order_2, mut no_point) = ([0; 32], [0xff; 32], [0; 32]);
        (neutral[0], order_2[0], order_2[31], no_point[0]) = (1, 0xec, 0x7f, 2);
        for bytes in [neutral, order_2, [0; 32], no_point] {
            assert_eq!(PublicKey::from_bytes(bytes).to_x25519(), None, "{bytes:?}");
        }
        assert!(SecretKey::generate().public().to_x25519().is_some());
    }

    #[test]
    fn addresses_round_trip() {
        let key = SecretKey::generate().public();
        for authority in ["127.0.0.1:30000", "[::1]:1", "host.example:65535"] {
            let text = format!("zklora://{key}@{authority}");
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in ["http://x", "zklora://abc@h:1", "zklora://h:1"] {
            assert!(bad.parse::<Address>().is_err());
        }
        assert!(format!("zklora://{key}@h:99999").parse::<Address>().is_err());
        assert!(format!("zklora://{key}@:1").parse::<Address>().is_err());
    }
}
