//! One module in one call, shown without the rest of its session: the file `*.disclosure.json`.
//!
//! It has the signed manifest, the signed receipt, the activations and deltas of that module in that call, and the path from
//! them to the [commitments](crate::commitments) in the receipt. What it shows is what both parties signed; that the deltas
//! are the adapter's is shown by the proofs, which are in the bundle. `docs/format.md` specifies every byte.

use std::io::{Read, Seek};

use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, BundleError};
use crate::commitments::{CommitmentSeed, Leaf, Path, SessionHasher};
use crate::json::Object;
use crate::limits::{MAX_CALL_MODULES, MAX_DISCLOSURE_BYTES};
use crate::manifest::{ManifestError, ModuleEntry};
use crate::packing::{
    PackedDeltas, PackingError, activations_from_bytes, activations_to_bytes, pack_deltas, unpack_deltas,
};
use crate::receipt::ReceiptError;
use crate::transcript::{Call, CallDigests, CallError, CallShape, Delta};
use crate::{
    CallSalt, CommitmentNode, ForeignReceipt, Signature, SignedManifest, SignedReceipt, SignedSession,
};

const FORMAT: &str = "zklora-disclosure/1";

/// One module in one call, of which both parties signed that it happened. Whether they are the right parties, and theirs the
/// right adapter, only pins tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Disclosure {
    session: SignedSession,
    number: u64,
    /// With the deltas of the one module.
    call: Call,
    salt: CallSalt,
    path: Path,
}

/// The file, field by field.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: String,
    manifest: String,
    manifest_signature: Signature,
    receipt: String,
    contributor_signature: Signature,
    client_signature: Signature,
    call: u64,
    module: usize,
    name: String,
    rows: usize,
    #[serde(with = "hex::serde")]
    activations: Vec<u8>,
    width: u8,
    #[serde(with = "hex::serde")]
    deltas: Vec<u8>,
    salt: CallSalt,
    position: u64,
    leaves: u64,
    path: Vec<CommitmentNode>,
}

impl Disclosure {
    /// Opens a module's part of a call of a bundle, whose transcript is held against its receipt; proofs are not looked at.
    pub fn new<R: Read + Seek>(
        bundle: &mut Bundle<R>,
        seed: &CommitmentSeed,
        number: u64,
        module: usize,
    ) -> Result<Self, OpenError> {
        let session = bundle.session().clone();
        if bundle.transcript_salt()? != seed.transcript_salt() {
            return Err(OpenError::Seed);
        }
        let modules = session.rows().len();
        let mut hasher = SessionHasher::watching(modules, seed.clone(), number, module);
        let mut found = None;
        bundle.calls(|call| {
            if !hasher.add(&call) {
                return Err(OpenError::Transcript);
            }
            if hasher.calls() == number.saturating_add(1) {
                found = Some(call);
            }
            Ok(())
        })?;
        let said = session.receipt().receipt();
        if hasher.digest() != said.transcript || hasher.calls() != said.calls {
            return Err(OpenError::Transcript);
        }
        if hasher.commitments() != said.commitments {
            return Err(OpenError::Commitments);
        }
        let Some(call) = found else {
            return Err(OpenError::NoCall { found: number, calls: said.calls });
        };
        let called: Vec<usize> = call.deltas.iter().map(|delta| delta.module).collect();
        let delta = call.deltas.into_iter().find(|delta| delta.module == module);
        let (Some(delta), Some(path)) = (delta, hasher.path()) else {
            let entries = session.manifest().manifest().modules();
            let names = called.iter().map(|&module| entries[module].name().to_owned());
            return Err(OpenError::NotCalled { call: number, called: names.collect() });
        };
        let call = Call { deltas: vec![delta], ..call };
        let disclosure = Self { session, number, call, salt: seed.call_salt(number, module), path };
        let bytes = disclosure.to_bytes().len() as u64;
        if bytes > MAX_DISCLOSURE_BYTES {
            return Err(OpenError::TooLarge(bytes));
        }
        Ok(disclosure)
    }

    /// Reads a file from anywhere, and checks all that it says but who the parties are.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DisclosureError> {
        if bytes.len() as u64 > MAX_DISCLOSURE_BYTES {
            return Err(DisclosureError::TooLarge);
        }
        let Object(fields): Object<Fields> =
            serde_json::from_slice(bytes).map_err(|e| DisclosureError::Json(e.to_string()))?;
        if fields.format != FORMAT {
            return Err(DisclosureError::Format(fields.format.chars().take(80).collect()));
        }
        // One disclosure has one encoding, as a bundle's header.
        if serde_json::to_vec(&fields).ok().as_deref() != Some(bytes) {
            return Err(DisclosureError::Json("it is not in its canonical form".into()));
        }
        let manifest = SignedManifest::parse(fields.manifest.into_bytes(), fields.manifest_signature)?;
        let receipt = SignedReceipt::parse(
            fields.receipt.into_bytes(),
            fields.contributor_signature,
            fields.client_signature,
        )?;
        let session = SignedSession::new(manifest, receipt)?;
        let manifest = session.manifest();
        let (module, rows) = (fields.module, fields.rows);
        let shape = CallShape::new(manifest.manifest(), rows, vec![module])?;
        // The call's shape knows the module.
        let entry = &manifest.manifest().modules()[module];
        if entry.name() != fields.name {
            return Err(DisclosureError::Name { found: fields.name.chars().take(300).collect(), module });
        }
        let activations = activations_from_bytes(&fields.activations, rows * shape.d_in())
            .ok_or(DisclosureError::Activations { rows, d_in: shape.d_in() })?;
        let values = unpack_deltas(fields.width, &fields.deltas, rows * shape.d_out())?;
        let disclosure = Self {
            number: fields.call,
            call: Call { rows, activations, deltas: vec![Delta { module, values }] },
            salt: fields.salt,
            path: Path { position: fields.position, leaves: fields.leaves, nodes: fields.path },
            session,
        };
        if disclosure.path.root(disclosure.leaf()) != Some(disclosure.receipt().receipt().commitments) {
            return Err(DisclosureError::NotCommitted);
        }
        disclosure.check_place()?;
        Ok(disclosure)
    }

    /// Holds the place of the leaf against what the receipt counts.
    fn check_place(&self) -> Result<(), DisclosureError> {
        let receipt = self.receipt().receipt();
        let most = MAX_CALL_MODULES as u64;
        let (call, calls) = (self.number, receipt.calls);
        let Path { position, leaves, .. } = self.path;
        let refuse = |what, found, counted: String| Err(DisclosureError::Impossible { what, found, counted });
        if call >= calls {
            return refuse("call", call, format!("{calls} calls, from 0"));
        }
        // None overflows: the receipt has at most 2^24 calls, and the path is one in a tree of so many leaves.
        if !(calls..=most * calls).contains(&leaves) {
            return refuse("leaves", leaves, format!("{calls} calls of 1 to {most} leaves each"));
        }
        let (before, after) = (call..=most * call + most - 1, calls - call..=most * (calls - call));
        if !before.contains(&position) || !after.contains(&(leaves - position)) {
            let counted =
                format!("{calls} calls of 1 to {most} leaves each, {leaves} in all, and this is call {call}");
            return refuse("position", position, counted);
        }
        let rows = receipt.rows.get(self.module()).copied().unwrap_or(0);
        if self.call.rows as u64 > rows {
            return refuse("rows", self.call.rows as u64, format!("{rows} rows of this module in all calls"));
        }
        Ok(())
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let PackedDeltas { width, bytes: deltas } = pack_deltas(self.deltas());
        let (manifest, receipt) = (self.manifest(), self.receipt());
        let fields = Fields {
            format: FORMAT.into(),
            // JSON is UTF-8, so that nothing is lost.
            manifest: text(manifest.bytes()),
            manifest_signature: *manifest.signature(),
            receipt: text(receipt.bytes()),
            contributor_signature: *receipt.contributor_signature(),
            client_signature: *receipt.client_signature(),
            call: self.number,
            module: self.module(),
            name: self.entry().name().into(),
            rows: self.call.rows,
            activations: activations_to_bytes(&self.call.activations),
            width,
            deltas,
            salt: self.salt,
            position: self.path.position,
            leaves: self.path.leaves,
            path: self.path.nodes.clone(),
        };
        // A plain struct of strings and integers always serialises.
        serde_json::to_vec(&fields).expect("a disclosure always serialises")
    }

    fn leaf(&self) -> CommitmentNode {
        let digests = CallDigests::of(&self.call);
        let leaf = Leaf {
            salt: self.salt,
            call: self.number,
            module: self.module(),
            rows: self.call.rows,
            activations: digests.activations,
            deltas: digests.deltas[0],
        };
        leaf.hash()
    }

    /// What both parties signed.
    pub fn session(&self) -> &SignedSession {
        &self.session
    }

    /// The adapter's manifest.
    pub fn manifest(&self) -> &SignedManifest {
        self.session.manifest()
    }

    /// The session's receipt, for this manifest.
    pub fn receipt(&self) -> &SignedReceipt {
        self.session.receipt()
    }

    /// The number of the call in its session, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The module, by index in the manifest.
    pub fn module(&self) -> usize {
        self.call.deltas[0].module
    }

    /// The module.
    pub fn entry(&self) -> &ModuleEntry {
        &self.manifest().manifest().modules()[self.module()]
    }

    /// Rows of the call.
    pub fn rows(&self) -> usize {
        self.call.rows
    }

    /// Quantised activations, row-major, `rows x d_in`.
    pub fn activations(&self) -> &[i16] {
        &self.call.activations
    }

    /// The module's deltas, row-major, `rows x d_out`.
    pub fn deltas(&self) -> &[i64] {
        &self.call.deltas[0].values
    }
}

/// Why a call of a bundle cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The seed is another session's.
    #[error("the commitment seed is not the one of this bundle's session")]
    Seed,
    /// The transcript was changed.
    #[error("the bundle's transcript is not the one of its receipt")]
    Transcript,
    /// The contributor signed other commitments, and so did the client.
    #[error("the receipt's commitments are not those of the bundle's transcript under this seed")]
    Commitments,
    /// There is no such call.
    #[error("there is no call {found}: the session has {calls}, counted from 0")]
    NoCall {
        /// The number given.
        found: u64,
        /// Calls of the session.
        calls: u64,
    },
    /// The module is not one of that call's.
    #[error("call {call} does not ask for this module; it asks for {}", .called.join(", "))]
    NotCalled {
        /// The call.
        call: u64,
        /// The names of its modules.
        called: Vec<String>,
    },
    /// The call is larger than a file may be.
    #[error("the disclosure takes {}, expected at most {}", crate::Bytes(*.0), crate::Bytes(MAX_DISCLOSURE_BYTES))]
    TooLarge(u64),
}

/// Why a file is no disclosure of a call. The first thing found wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisclosureError {
    /// More bytes than a disclosure may have.
    #[error("the disclosure has more than {}", crate::Bytes(MAX_DISCLOSURE_BYTES))]
    TooLarge,
    /// No such JSON.
    #[error("the disclosure is not valid JSON of its format: {0}")]
    Json(String),
    /// Another format or version.
    #[error("the disclosure's format is {0:?}, expected {FORMAT:?}")]
    Format(String),
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The receipt is not valid.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// Manifest and receipt are each valid, but do not belong together.
    #[error(transparent)]
    Foreign(#[from] ForeignReceipt),
    /// The manifest allows no such call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The module has another name.
    #[error(
        "the disclosure names its module {found:?}, which is not the name of module {module} in the manifest"
    )]
    Name {
        /// The name found.
        found: String,
        /// The module's index.
        module: usize,
    },
    /// Activations of another size, or one of -2^15.
    #[error("expected activations of {rows} x {d_in} entries of two bytes, each above -2^15")]
    Activations {
        /// Rows.
        rows: usize,
        /// Columns.
        d_in: usize,
    },
    /// Deltas that are no deltas.
    #[error("the deltas: {0}")]
    Deltas(#[from] PackingError),
    /// The parties signed for what cannot be.
    #[error("the disclosure has {found} as its {what}, but its receipt counts {counted}")]
    Impossible {
        /// Which number.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What the receipt says.
        counted: String,
    },
    /// The parties signed for something else.
    #[error(
        "the receipt does not commit to this: call, module, position, rows, activations, deltas, salt or path were changed, or \
         belong to another session"
    )]
    NotCommitted,
}

#[cfg(test)]
mod tests;
