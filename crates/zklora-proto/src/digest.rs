//! Digests, each with a type and a hash context of its own, so that none can be taken for another.

use std::str::FromStr;

/// A text that should be a fixed number of bytes in lower- or upper-case hexadecimal, and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} bytes as {} hexadecimal digits, found {found}", expected * 2)]
pub struct HexError {
    /// Bytes expected.
    pub expected: usize,
    /// What was found: a number of characters or the wrong character.
    pub found: String,
}

/// Parses exactly `N` bytes of hexadecimal.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|error| HexError {
        expected: N,
        found: match error {
            hex::FromHexError::InvalidHexCharacter { .. } => {
                "a character that is no hexadecimal digit".into()
            }
            _ => format!("{} characters", text.chars().count()),
        },
    })?;
    Ok(bytes)
}

/// Implements text and JSON forms (hexadecimal), and the schema of the second, for a newtype over `[u8; N]` that has `from_bytes` and `as_bytes`.
macro_rules! hex_text {
    ($name:ident, $len:expr) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.as_bytes()))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                // Read in upper case, too, and always written in lower.
                schemars::json_schema!({
                    "type": "string",
                    "pattern": format!("^[0-9a-f]{{{}}}$", 2 * $len),
                })
            }
        }
    };
}
pub(crate) use hex_text;

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes that already are such a digest.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                parse_hex::<32>(text).map(Self)
            }
        }

        hex_text!($name, 32);
    };
}

digest_type!(
    /// The digest of a signed manifest's exact bytes: the name under which an adapter is pinned.
    AdapterId
);
digest_type!(
    /// The digest of a base model's configuration and weights.
    BaseModelDigest
);
digest_type!(
    /// The name of one session, made from both parties' nonces, keys and the adapter.
    SessionId
);
digest_type!(
    /// The digest of all calls of a session, in order.
    TranscriptDigest
);
digest_type!(
    /// The digest of one blob of a bundle.
    BundleDigest
);
digest_type!(
    /// The digest of a Merkle tree over what every module was asked and answered in every call of a session.
    CommitmentsDigest
);
digest_type!(
    /// A leaf of that tree, or a node above leaves.
    CommitmentNode
);
digest_type!(
    /// What a leaf is salted with: whoever has it can check a guess of that leaf, and of no other.
    CallSalt
);
digest_type!(
    /// What the transcript's digest is salted with. It is in bundles, beside all that the digest is of, and nowhere else.
    TranscriptSalt
);

digest_type!(
    /// The digest of an exact model: of its arithmetic's version and of all its public constants.
    ExactModelDigest
);
digest_type!(
    /// The digest of a tokenizer: equal for two that turn every text into the same tokens for the same reasons.
    TokenizerDigest
);
digest_type!(
    /// The digest of a package in which an adapter is delivered, up to the signature over it.
    DeliveryDigest
);

impl AdapterId {
    /// The id of the manifest with these exact bytes.
    pub fn of_manifest(bytes: &[u8]) -> Self {
        Self(blake3::derive_key("zklora v1 adapter id", bytes))
    }
}

impl BundleDigest {
    /// The digest of a blob's bytes as they stand in the file.
    pub fn of_blob(bytes: &[u8]) -> Self {
        Self::finish(Self::hasher().update(bytes))
    }

    /// A hasher of this digest, for a blob that is read in parts.
    pub(crate) fn hasher() -> blake3::Hasher {
        blake3::Hasher::new_derive_key("zklora v1 bundle blob")
    }

    pub(crate) fn finish(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

impl DeliveryDigest {
    /// A hasher of this digest, for a package that is written or read in parts.
    pub fn hasher() -> blake3::Hasher {
        blake3::Hasher::new_derive_key("zklora v1 delivery")
    }

    /// What the hasher has come to.
    pub fn finish(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_errors_say_what_was_found() {
        let id = AdapterId::of_manifest(b"manifest");
        assert_eq!(id.to_string().parse::<AdapterId>(), Ok(id));
        let short = "ab".parse::<AdapterId>().unwrap_err().to_string();
        assert!(short.contains("64 hexadecimal digits") && short.contains("2 characters"), "{short}");
        let bad = "zz".repeat(32).parse::<AdapterId>().unwrap_err().to_string();
        assert!(bad.contains("no hexadecimal digit"), "{bad}");
    }

    #[test]
    fn contexts_keep_digests_apart() {
        assert_ne!(AdapterId::of_manifest(b"x").as_bytes(), BundleDigest::of_blob(b"x").as_bytes());
    }
}
