//! The adapter manifest: what a contributor commits to, once, before serving anything.
//!
//! A manifest is signed and named by the digest of its exact bytes; it is never re-serialised. Everything in it is
//! public: names, shapes, scales and commitments, but no weight and no salt.

use std::collections::HashSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{HexError, hex_text, parse_hex};
use crate::identity::{PublicKey, Purpose, SecretKey, Signature};
use crate::json::{Object, objects};
use crate::limits::{MAX_MANIFEST_BYTES, MAX_MODULES, MAX_NAME_BYTES, WEIGHT_BITS};
use crate::shape::{ModuleShape, ShapeError};
use crate::{AdapterId, BaseModelDigest};

const FORMAT: &str = "zklora-manifest/1";
/// The Goldilocks prime 2^64 - 2^32 + 1, whose field the commitments live in.
/// The order of F.
pub(crate) const GOLDILOCKS: u64 = 0xffff_ffff_0000_0001;
// A true delta is below 2^59 and a claimed one is any i64: if they differ, they differ modulo p too.
const _: () = assert!((1 << 63) + (1 << 59) < GOLDILOCKS);

/// A manifest whose every part has been checked. Made by [`Manifest::new`] or [`SignedManifest::parse`].
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    contributor: PublicKey,
    base_model: BaseModelDigest,
    created: u64,
    modules: Vec<ModuleEntry>,
}

impl Manifest {
    /// A manifest of these modules, in this order.
    pub fn new(
        contributor: PublicKey,
        base_model: BaseModelDigest,
        created: u64,
        modules: Vec<ModuleEntry>,
    ) -> Result<Self, ManifestError> {
        if modules.is_empty() || modules.len() > MAX_MODULES {
            return Err(ManifestError::ModuleCount(modules.len()));
        }
        let mut names = HashSet::new();
        for module in &modules {
            if !names.insert(module.name.as_str()) {
                return Err(ManifestError::DuplicateModule(module.name.clone()));
            }
        }
        Ok(Self { contributor, base_model, created, modules })
    }

    /// Who serves the adapter, and signed this.
    pub fn contributor(&self) -> &PublicKey {
        &self.contributor
    }

    /// The base model that the adapter belongs to.
    pub fn base_model(&self) -> &BaseModelDigest {
        &self.base_model
    }

    /// When the manifest was made, in seconds since 1970, by the contributor's word.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The modules; their positions are the module indices of messages, transcripts and plans.
    pub fn modules(&self) -> &[ModuleEntry] {
        &self.modules
    }

    /// Serialises and signs. The bytes made here are the manifest from now on.
    pub fn sign(&self, key: &SecretKey) -> SignedManifest {
        let wire = WireManifest {
            format: FORMAT.into(),
            contributor: self.contributor,
            base_model: self.base_model,
            created: self.created,
            weight_bits: WEIGHT_BITS,
            modules: self
                .modules
                .iter()
                .map(|m| WireModule {
                    name: m.name.clone(),
                    d_in: m.shape.d_in(),
                    rank: m.shape.rank(),
                    d_out: m.shape.d_out(),
                    scale: m.scale,
                    commitment: m.commitment,
                })
                .collect(),
        };
        // Plain structs of strings, integers and finite floats always serialise.
        let bytes = serde_json::to_vec(&wire).expect("a manifest always serialises");
        let signature = key.sign(Purpose::Manifest, &bytes);
        SignedManifest { manifest: self.clone(), bytes, signature }
    }
}

/// One module of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleEntry {
    name: String,
    shape: ModuleShape,
    scale: f64,
    commitment: Commitment,
}

impl ModuleEntry {
    /// A module under the name that the base model gives its projection, for example `transformer.h.0.attn.c_attn`. `scale`
    /// turns an integer delta of unit-scaled activations into a float delta and must be positive and finite.
    pub fn new(
        name: String,
        shape: ModuleShape,
        scale: f64,
        commitment: Commitment,
    ) -> Result<Self, ManifestError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(|c| c.is_ascii_graphic()) {
            return Err(ManifestError::Name(name.chars().take(80).collect()));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(ManifestError::Scale { module: name, found: scale });
        }
        Ok(Self { name, shape, scale, commitment })
    }

    /// The projection's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions of A and B.
    pub fn shape(&self) -> ModuleShape {
        self.shape
    }

    /// The public factor of the module's deltas.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The hiding commitment to A, B and the salt.
    pub fn commitment(&self) -> &Commitment {
        &self.commitment
    }
}

/// A Poseidon hash over the Goldilocks field: four canonical field elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Commitment([u8; 32]);

impl Commitment {
    /// The commitment with these field elements; `None` unless each is below the field's order.
    pub fn from_elements(elements: [u64; 4]) -> Option<Self> {
        if elements.iter().any(|&e| e >= GOLDILOCKS) {
            return None;
        }
        let mut bytes = [0; 32];
        for (chunk, element) in bytes.chunks_exact_mut(8).zip(elements) {
            chunk.copy_from_slice(&element.to_le_bytes());
        }
        Some(Self(bytes))
    }

    /// The four field elements.
    pub fn elements(&self) -> [u64; 4] {
        let mut elements = [0; 4];
        for (element, chunk) in elements.iter_mut().zip(self.0.chunks_exact(8)) {
            // Chunks of exactly eight bytes.
            *element = u64::from_le_bytes(chunk.try_into().unwrap());
        }
        elements
    }

    /// The elements' little-endian bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Commitment {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let unchecked = Self(parse_hex(text)?);
        Self::from_elements(unchecked.elements())
            .ok_or(HexError { expected: 32, found: "a field element that is not canonical".into() })
    }
}

hex_text!(Commitment, 32);

/// A manifest with the exact bytes that were signed and the contributor's valid signature over them.
#[derive(Debug, Clone, PartialEq)]
pub struct SignedManifest {
    manifest: Manifest,
    bytes: Vec<u8>,
    signature: Signature,
}

impl SignedManifest {
    /// Parses and checks bytes and signature from anywhere.
    pub fn parse(bytes: Vec<u8>, signature: Signature) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let Object(wire): Object<WireManifest> =
            serde_json::from_slice(&bytes).map_err(|e| ManifestError::Json(e.to_string()))?;
        if wire.format != FORMAT {
            return Err(ManifestError::Format(wire.format.chars().take(80).collect()));
        }
        if wire.weight_bits != WEIGHT_BITS {
            return Err(ManifestError::WeightBits(wire.weight_bits));
        }
        let modules = wire
            .modules
            .into_iter()
            .map(|m| {
                let shape = ModuleShape::new(m.d_in, m.rank, m.d_out)
                    .map_err(|error| ManifestError::Shape { module: m.name.clone(), error })?;
                ModuleEntry::new(m.name, shape, m.scale, m.commitment)
            })
            .collect::<Result<_, _>>()?;
        let manifest = Manifest::new(wire.contributor, wire.base_model, wire.created, modules)?;
        if !manifest.contributor.verifies(Purpose::Manifest, &bytes, &signature) {
            return Err(ManifestError::Signature(manifest.contributor));
        }
        Ok(Self { manifest, bytes, signature })
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The exact bytes that were signed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The contributor's signature over them.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The digest of the bytes: what a buyer pins.
    pub fn adapter_id(&self) -> AdapterId {
        AdapterId::of_manifest(&self.bytes)
    }
}

/// Why bytes are no valid manifest.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// More bytes than a manifest may have.
    #[error("the manifest has {}, expected at most {}", crate::Bytes(*.0 as u64), crate::Bytes(MAX_MANIFEST_BYTES as u64))]
    TooLarge(usize),
    /// No such JSON.
    #[error("the manifest is not valid JSON of its format: {0}")]
    Json(String),
    /// Another format or version.
    #[error("the manifest's format is {0:?}, expected {FORMAT:?}")]
    Format(String),
    /// A width of weights that this version does not prove.
    #[error("the manifest's weights have {0} bits, expected {WEIGHT_BITS}")]
    WeightBits(u32),
    /// No modules, or too many.
    #[error("the manifest has {0} modules, expected 1 to {MAX_MODULES}")]
    ModuleCount(usize),
    /// Two modules of one name.
    #[error("the manifest names module {0:?} twice")]
    DuplicateModule(String),
    /// A name that could not be shown or found.
    #[error("module name {0:?}: expected 1 to {MAX_NAME_BYTES} printable ASCII characters without spaces")]
    Name(String),
    /// A scale that no quantisation makes.
    #[error("module {module}: the scale is {found}, expected a positive finite number")]
    Scale {
        /// The module.
        module: String,
        /// Its scale.
        found: f64,
    },
    /// A shape out of bounds.
    #[error("module {module}: {error}")]
    Shape {
        /// The module.
        module: String,
        /// What is wrong.
        error: ShapeError,
    },
    /// Not signed by the contributor it names.
    #[error("the manifest's signature is not one of its contributor {0} over these bytes")]
    Signature(PublicKey),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireManifest {
    format: String,
    contributor: PublicKey,
    base_model: BaseModelDigest,
    created: u64,
    weight_bits: u32,
    #[serde(deserialize_with = "objects")]
    modules: Vec<WireModule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireModule {
    name: String,
    d_in: usize,
    rank: usize,
    d_out: usize,
    scale: f64,
    commitment: Commitment,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Result<ModuleEntry, ManifestError> {
        let shape = ModuleShape::new(4, 2, 3).unwrap();
        ModuleEntry::new(name.into(), shape, 1.5e-7, Commitment::from_elements([1, 2, 3, 4]).unwrap())
    }

    fn signed(key: &SecretKey) -> SignedManifest {
        let base = BaseModelDigest::from_bytes([7; 32]);
        Manifest::new(key.public(), base, 1, vec![entry("a").unwrap(), entry("b").unwrap()])
            .unwrap()
            .sign(key)
    }

    #[test]
    fn round_trips_as_the_exact_bytes() {
        let key = SecretKey::generate();
        let manifest = signed(&key);
        let parsed = SignedManifest::parse(manifest.bytes().to_vec(), *manifest.signature()).unwrap();
        assert_eq!(parsed, manifest);
        assert_eq!(parsed.adapter_id(), manifest.adapter_id());
    }

    #[test]
    fn refuses_objects_that_are_written_as_arrays() {
        let key = SecretKey::generate();
        let text = String::from_utf8(signed(&key).bytes().to_vec()).unwrap();
        // The values of an object without nested ones, in their order.
        let values = |object: &str| -> String {
            let fields = object.trim_matches(['{', '}']).split(',');
            fields.map(|field| field.split_once(':').unwrap().1).collect::<Vec<_>>().join(",")
        };
        let (head, modules) = text.trim_end_matches('}').split_once(",\"modules\":").unwrap();
        let module = &text[text.find("{\"name\"").unwrap()..=text.find('}').unwrap()];
        for array in
            [format!("[{},{modules}]", values(head)), text.replace(module, &format!("[{}]", values(module)))]
        {
            let signature = key.sign(Purpose::Manifest, array.as_bytes());
            let error = SignedManifest::parse(array.into_bytes(), signature).unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{error}");
        }
    }

    #[test]
    fn refuses_foreign_signatures_and_changed_bytes() {
        let (key, other) = (SecretKey::generate(), SecretKey::generate());
        let manifest = signed(&key);
        let foreign = other.sign(Purpose::Manifest, manifest.bytes());
        assert!(matches!(
            SignedManifest::parse(manifest.bytes().to_vec(), foreign),
            Err(ManifestError::Signature(_))
        ));
        let changed = String::from_utf8(manifest.bytes().to_vec()).unwrap().replace("1.5e-7", "1.6e-7");
        assert!(matches!(
            SignedManifest::parse(changed.into_bytes(), *manifest.signature()),
            Err(ManifestError::Signature(_))
        ));
    }

    #[test]
    fn refuses_what_cannot_be() {
        let key = SecretKey::generate();
        let base = BaseModelDigest::from_bytes([7; 32]);
        let new = |modules| Manifest::new(key.public(), base, 1, modules);
        assert!(matches!(new(vec![]), Err(ManifestError::ModuleCount(0))));
        assert!(matches!(
            new(vec![entry("a").unwrap(), entry("a").unwrap()]),
            Err(ManifestError::DuplicateModule(_))
        ));
        assert!(matches!(entry("a b"), Err(ManifestError::Name(_))));
        assert!(matches!(entry(""), Err(ManifestError::Name(_))));
        assert!(Commitment::from_elements([GOLDILOCKS, 0, 0, 0]).is_none());
        assert!("ff".repeat(32).parse::<Commitment>().is_err());
        let reparse = |from: &str, to: &str| {
            let text = String::from_utf8(signed(&key).bytes().to_vec()).unwrap();
            assert!(text.contains(from));
            let bytes = text.replace(from, to).into_bytes();
            let signature = key.sign(Purpose::Manifest, &bytes);
            SignedManifest::parse(bytes, signature)
        };
        assert!(matches!(reparse("manifest/1", "manifest/2"), Err(ManifestError::Format(_))));
        assert!(matches!(
            reparse("\"weight_bits\":12", "\"weight_bits\":13"),
            Err(ManifestError::WeightBits(13))
        ));
        assert!(matches!(reparse("\"d_in\":4", "\"d_in\":99999"), Err(ManifestError::Shape { .. })));
        assert!(matches!(reparse("1.5e-7", "-1.5e-7"), Err(ManifestError::Scale { .. })));
        assert!(matches!(reparse("\"created\"", "\"extra\":1,\"created\""), Err(ManifestError::Json(_))));
    }
}
