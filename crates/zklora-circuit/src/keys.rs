//! Verification keys as bytes, for a verifier that keeps those it built.
//!
//! A key is what [`BatchVerifier::build`] makes of a parameter set and shapes, and nothing else: it is never part of a
//! bundle. Whoever can change a kept key can have any proof accepted, so that keys belong where the verifier's own program
//! is, and a digest in them finds damage, not malice.
//!
//! A kept key is one line of text, then plonky2's serialised verifier data:
//!
//! ```text
//! zklora-key/1 <circuit id> qp-plonky2-<version> <fingerprint of this crate's sources> <BLAKE3 digest of what follows>
//! ```

use plonky2::gates::constant::ConstantGate;
use plonky2::gates::noop::NoopGate;
use plonky2::gates::public_input::PublicInputGate;
use plonky2::util::serialization::{Buffer, GateSerializer, Read, Write};
use plonky2::{get_gate_tag_impl, impl_gate_serializer, read_gate_impl};
use zklora_proto::ModuleShape;

use crate::CircuitId;
use crate::circuit::BatchVerifier;
use crate::gate::instance::InstanceGate;
use crate::gate::weight::WeightGate;
use crate::layout::Layout;
use crate::masking::MaskGate;
use crate::parameters::Security;
use crate::{D, F};

/// Largest kept key in bytes; those of today have some three thousand.
pub const MAX_KEY_BYTES: u64 = 16 << 20;

const FORMAT: &str = "zklora-key/1";
const PLONKY2: &str = "qp-plonky2-1.6.0";

/// Why bytes are not the key that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A key of another circuit, or made by another version.
    #[error("it is of another circuit or version: it begins with {found:?}, expected {expected:?}")]
    Foreign {
        /// What it should begin with.
        expected: String,
        /// What it begins with.
        found: String,
    },
    /// Bytes that were changed since the key was made.
    #[error("it was changed or damaged: its digest is not that of its content")]
    Damaged,
    /// plonky2 does not read or write it.
    #[error("plonky2 cannot serialise this key")]
    Serialise,
}

impl BatchVerifier {
    /// The key as bytes that [`BatchVerifier::from_key`] takes.
    pub fn to_key(&self, security: Security) -> Result<Vec<u8>, KeyError> {
        let mut content = Vec::new();
        content.write_verifier_circuit_data(&self.data, &Gates).map_err(|_| KeyError::Serialise)?;
        let line = format!("{}{}\n", header(security, &self.shapes()), hex(&digest(&content)));
        Ok([line.as_bytes(), &content].concat())
    }

    /// The key of this set and these shapes from bytes that [`BatchVerifier::to_key`] made. Refuses the key of any other
    /// circuit, of another version of this crate or of plonky2, and one that is not whole.
    pub fn from_key(security: Security, shapes: &[ModuleShape], key: &[u8]) -> Result<Self, KeyError> {
        let expected = header(security, shapes);
        let Some(rest) = key.strip_prefix(expected.as_bytes()) else {
            let found = String::from_utf8_lossy(&key[..key.len().min(expected.len())]).into_owned();
            return Err(KeyError::Foreign { expected, found });
        };
        // The digest's 64 digits and the end of the line.
        let Some((line, content)) = rest.split_at_checked(65) else {
            return Err(KeyError::Damaged);
        };
        if line != format!("{}\n", hex(&digest(content))).as_bytes() {
            return Err(KeyError::Damaged);
        }
        let mut buffer = Buffer::new(content);
        let data = buffer.read_verifier_circuit_data(&Gates).map_err(|_| KeyError::Serialise)?;
        if !buffer.unread_bytes().is_empty() {
            return Err(KeyError::Damaged);
        }
        Ok(Self { data, layout: Layout::new(shapes) })
    }
}

/// The first line but for the digest.
fn header(security: Security, shapes: &[ModuleShape]) -> String {
    let id = hex(CircuitId::new(security, shapes).as_bytes());
    format!("{FORMAT} {id} {PLONKY2} {} ", env!("ZKLORA_CIRCUIT_SOURCES"))
}

fn digest(content: &[u8]) -> [u8; 32] {
    blake3::derive_key("zklora v1 kept key", content)
}

fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

/// Every gate that a batch's circuit may have. Their order is part of the bytes.
struct Gates;

impl GateSerializer<F, D> for Gates {
    impl_gate_serializer! {
        Gates,
        NoopGate,
        ConstantGate,
        PublicInputGate,
        InstanceGate,
        WeightGate,
        MaskGate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECURITY: Security = Security::Standard;

    fn shapes() -> [ModuleShape; 2] {
        [ModuleShape::new(8, 2, 8).unwrap(), ModuleShape::new(30, 1, 5).unwrap()]
    }

    #[test]
    fn keys_round_trip() {
        for security in Security::ALL {
            let built = BatchVerifier::build(security, &shapes()).unwrap();
            let key = built.to_key(security).unwrap();
            let read = BatchVerifier::from_key(security, &shapes(), &key).unwrap();
            assert_eq!(read.data.verifier_only, built.data.verifier_only);
            assert_eq!(read.data.common, built.data.common);
            assert_eq!(read.layout, built.layout);
            assert!((key.len() as u64) < MAX_KEY_BYTES / 100, "{} bytes", key.len());
        }
    }

    #[test]
    fn other_keys_and_damaged_ones_are_refused() {
        let key = BatchVerifier::build(SECURITY, &shapes()).unwrap().to_key(SECURITY).unwrap();
        let refused =
            |shapes: &[ModuleShape], key: &[u8]| BatchVerifier::from_key(SECURITY, shapes, key).err();
        assert!(matches!(refused(&shapes()[..1], &key), Some(KeyError::Foreign { .. })));
        assert!(matches!(
            BatchVerifier::from_key(Security::Compact, &shapes(), &key).err(),
            Some(KeyError::Foreign { .. })
        ));
        for position in 0..key.len() {
            let mut damaged = key.clone();
            damaged[position] ^= 1;
            assert!(refused(&shapes(), &damaged).is_some(), "byte {position}");
            assert!(refused(&shapes(), &key[..position]).is_some(), "cut at {position}");
        }
        assert_eq!(refused(&shapes(), &[&key[..], &[0]].concat()), Some(KeyError::Damaged));
    }

    #[test]
    fn plonky2s_version_is_the_one_that_is_used() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap();
        let package = lock.split("[[package]]").find(|p| p.contains("name = \"qp-plonky2\"\n")).unwrap();
        let version = package.split('"').nth(3).unwrap();
        assert_eq!(format!("qp-plonky2-{version}"), PLONKY2);
    }
}
