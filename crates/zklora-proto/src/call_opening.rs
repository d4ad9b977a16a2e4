//! One module in one call, shown without the rest of its session: the file `*.opening.json`.
//!
//! It has the signed manifest, the signed receipt, the activations and deltas of that module in that call, and the path from
//! them to the [commitments](crate::commitments) in the receipt. What it shows is what both parties signed; that the deltas
//! are the adapter's is shown by the proofs, which are in the bundle. `docs/format.md` specifies every byte.

use std::io::{Read, Seek};

use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, BundleError};
use crate::commitments::{CommitmentSeed, Leaf, Path, SessionHasher};
use crate::json::Object;
use crate::limits::{MAX_CALL_MODULES, MAX_OPENING_BYTES};
use crate::manifest::{ManifestError, ModuleEntry};
use crate::packing::{
    PackedDeltas, PackingError, activations_from_bytes, activations_to_bytes, pack_deltas, unpack_deltas,
};
use crate::receipt::ReceiptError;
use crate::transcript::{Call, CallDigests, CallError, CallShape, Delta};
use crate::{
    CallSalt, CommitmentNode, ForeignReceipt, Signature, SignedManifest, SignedReceipt, SignedSession,
};

const FORMAT: &str = "zklora-opening/1";

/// One module in one call, of which both parties signed that it happened. Whether they are the right parties, and theirs the
/// right adapter, only pins tell.
#[derive(Debug, Clone, PartialEq)]
pub struct CallOpening {
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

impl CallOpening {
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
        let opening = Self { session, number, call, salt: seed.call_salt(number, module), path };
        let bytes = opening.to_bytes().len() as u64;
        if bytes > MAX_OPENING_BYTES {
            return Err(OpenError::TooLarge(bytes));
        }
        Ok(opening)
    }

    /// Reads a file from anywhere, and checks all that it says but who the parties are.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpeningError> {
        if bytes.len() as u64 > MAX_OPENING_BYTES {
            return Err(OpeningError::TooLarge);
        }
        let Object(fields): Object<Fields> =
            serde_json::from_slice(bytes).map_err(|e| OpeningError::Json(e.to_string()))?;
        if fields.format != FORMAT {
            return Err(OpeningError::Format(fields.format.chars().take(80).collect()));
        }
        // One opening has one encoding, as a bundle's header.
        if serde_json::to_vec(&fields).ok().as_deref() != Some(bytes) {
            return Err(OpeningError::Json("it is not in its canonical form".into()));
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
            return Err(OpeningError::Name { found: fields.name.chars().take(300).collect(), module });
        }
        let activations = activations_from_bytes(&fields.activations, rows * shape.d_in())
            .ok_or(OpeningError::Activations { rows, d_in: shape.d_in() })?;
        let values = unpack_deltas(fields.width, &fields.deltas, rows * shape.d_out())?;
        let opening = Self {
            number: fields.call,
            call: Call { rows, activations, deltas: vec![Delta { module, values }] },
            salt: fields.salt,
            path: Path { position: fields.position, leaves: fields.leaves, nodes: fields.path },
            session,
        };
        if opening.path.root(opening.leaf()) != Some(opening.receipt().receipt().commitments) {
            return Err(OpeningError::NotCommitted);
        }
        opening.check_place()?;
        Ok(opening)
    }

    /// Holds the place of the leaf against what the receipt counts.
    fn check_place(&self) -> Result<(), OpeningError> {
        let receipt = self.receipt().receipt();
        let most = MAX_CALL_MODULES as u64;
        let (call, calls) = (self.number, receipt.calls);
        let Path { position, leaves, .. } = self.path;
        let refuse = |what, found, counted: String| Err(OpeningError::Impossible { what, found, counted });
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
        serde_json::to_vec(&fields).expect("an opening always serialises")
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
    #[error("the opening takes {}, expected at most {}", crate::Bytes(*.0), crate::Bytes(MAX_OPENING_BYTES))]
    TooLarge(u64),
}

/// Why a file is no opening of a call. The first thing found wrong.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// More bytes than an opening may have.
    #[error("the opening has more than {}", crate::Bytes(MAX_OPENING_BYTES))]
    TooLarge,
    /// No such JSON.
    #[error("the opening is not valid JSON of its format: {0}")]
    Json(String),
    /// Another format or version.
    #[error("the opening's format is {0:?}, expected {FORMAT:?}")]
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
        "the opening names its module {found:?}, which is not the name of module {module} in the manifest"
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
    #[error("the opening has {found} as its {what}, but its receipt counts {counted}")]
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
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::bundle::{BundleParts, Plan, write};
    use crate::identity::Purpose;
    use crate::{BaseModelDigest, Commitment, Manifest, ModuleShape, Receipt, SecretKey, SessionId};

    /// A session of three calls, the first and the last of equal content, of whoever holds these keys.
    fn bundle(a: &SecretKey, b: &SecretKey, seed: &CommitmentSeed, session: u8) -> Bundle<Cursor<Vec<u8>>> {
        let base = BaseModelDigest::from_bytes([1; 32]);
        let entry = |name: &str, d_out| {
            let shape = ModuleShape::new(2, 1, d_out).unwrap();
            ModuleEntry::new(name.into(), shape, 0.5, Commitment::from_elements([1; 4]).unwrap()).unwrap()
        };
        let manifest =
            Manifest::new(a.public(), base, 0, vec![entry("m.0", 3), entry("m.1", 1)]).unwrap().sign(a);
        let first = Call {
            rows: 2,
            activations: vec![1, -2, 3, 32767],
            deltas: vec![
                Delta { module: 1, values: vec![0, 300] },
                Delta { module: 0, values: vec![1, 2, 3, -4, 5, 1 << 40] },
            ],
        };
        let second =
            Call { rows: 1, activations: vec![0, 0], deltas: vec![Delta { module: 1, values: vec![-1] }] };
        let calls = vec![first.clone(), second, first];
        let mut hasher = SessionHasher::new(2, seed.clone());
        assert!(calls.iter().all(|call| hasher.add(call)));
        let receipt = Receipt::new(
            SessionId::from_bytes([session; 32]),
            manifest.adapter_id(),
            base,
            a.public(),
            b.public(),
            3,
            hasher.rows().to_vec(),
            hasher.digest(),
            hasher.commitments(),
            1,
            2,
        );
        let bytes = receipt.to_bytes();
        let by_a = a.sign(Purpose::ReceiptContributor, &bytes);
        let by_b = b.sign(Purpose::ReceiptClient, &bytes);
        let receipt = SignedReceipt::parse(bytes, by_a, by_b).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pf");
        let plan = Plan { security: "any".into(), batches: vec![vec![1, 0]] };
        let salt = seed.transcript_salt();
        let proofs = [vec![1]];
        let session = SignedSession::new(manifest, receipt).unwrap();
        let parts = BundleParts { session: &session, salt, calls: &calls, plan: &plan, proofs: &proofs };
        write(&path, &parts).unwrap();
        Bundle::from_reader(Cursor::new(std::fs::read(&path).unwrap())).unwrap()
    }

    fn opened(session: u8, call: u64, module: usize) -> CallOpening {
        let (a, b) = (SecretKey::generate(), SecretKey::generate());
        let seed = CommitmentSeed::random();
        CallOpening::new(&mut bundle(&a, &b, &seed, session), &seed, call, module).unwrap()
    }

    #[test]
    fn every_module_of_every_call_opens_to_a_file_that_is_read_as_itself() {
        let (a, b, seed) = (SecretKey::generate(), SecretKey::generate(), CommitmentSeed::random());
        let mut bundle = bundle(&a, &b, &seed, 1);
        let mut nodes = Vec::new();
        for (call, module, values) in [
            (0, 1, &[0, 300][..]),
            (0, 0, &[1, 2, 3, -4, 5, 1 << 40]),
            (1, 1, &[-1]),
            (2, 1, &[0, 300]),
            (2, 0, &[1, 2, 3, -4, 5, 1 << 40]),
        ] {
            let opening = CallOpening::new(&mut bundle, &seed, call, module).unwrap();
            assert_eq!((opening.number(), opening.module(), opening.deltas()), (call, module, values));
            assert_eq!(CallOpening::from_bytes(&opening.to_bytes()).unwrap(), opening);
            nodes.push(opening.leaf());
        }
        // The first and the last call have equal content.
        assert!(nodes[0] != nodes[3] && nodes[1] != nodes[4]);

        let refused = |seed: &CommitmentSeed, bundle: &mut _, call, module| {
            CallOpening::new(bundle, seed, call, module).unwrap_err().to_string()
        };
        let error = refused(&seed, &mut bundle, 1, 0);
        assert!(error.contains("call 1 does not ask for this module; it asks for m.1"), "{error}");
        assert!(refused(&seed, &mut bundle, 3, 0).contains("there is no call 3: the session has 3"));
        assert!(refused(&seed, &mut bundle, u64::MAX, 0).contains("there is no call"));
        assert!(refused(&CommitmentSeed::random(), &mut bundle, 0, 0).contains("commitment seed"));
    }

    /// Changes a field of an honest opening.
    fn changed(opening: &CallOpening, edit: impl FnOnce(&mut Fields)) -> Result<CallOpening, OpeningError> {
        let Object(mut fields): Object<Fields> = serde_json::from_slice(&opening.to_bytes()).unwrap();
        edit(&mut fields);
        let bytes = serde_json::to_vec(&fields).unwrap();
        assert_ne!(bytes, opening.to_bytes());
        CallOpening::from_bytes(&bytes)
    }

    #[test]
    fn whatever_is_changed_is_not_what_was_committed_to() {
        let honest = opened(1, 0, 0);
        let other = opened(1, 0, 0);
        let not_committed = |what: &str, edit: fn(&mut Fields)| {
            let error = changed(&honest, edit).unwrap_err();
            assert!(matches!(error, OpeningError::NotCommitted), "{what}: {error}");
        };
        not_committed("an activation", |f| f.activations[1] ^= 1);
        not_committed("a delta", |f| f.deltas[3] ^= 1);
        not_committed("the salt", |f| f.salt = CallSalt::from_bytes([0; 32]));
        not_committed("the call", |f| f.call = 2);
        not_committed("a call that there is not", |f| f.call = u64::MAX);
        not_committed("the position", |f| f.position = 4);
        not_committed("the position beyond the end", |f| f.position = u64::MAX);
        not_committed("the number of leaves", |f| f.leaves = 6);
        not_committed("no leaves", |f| f.leaves = 0);
        not_committed("a node", |f| f.path[1] = f.path[0]);
        not_committed("fewer nodes", |f| f.path.truncate(1));
        not_committed("more nodes", |f| f.path.push(f.path[0]));
        not_committed("a row less", |f| {
            f.rows = 1;
            f.activations.truncate(4);
            f.deltas = vec![1, 2, 3];
            f.width = 1;
        });
        not_committed("another module", |f| {
            (f.module, f.name, f.width, f.deltas) = (1, "m.1".into(), 1, vec![0, 1]);
        });

        // Another session of other parties, whole; and its receipt alone.
        let Object(foreign): Object<Fields> = serde_json::from_slice(&other.to_bytes()).unwrap();
        let error = changed(&honest, |f| {
            f.receipt = foreign.receipt.clone();
            f.contributor_signature = foreign.contributor_signature;
            f.client_signature = foreign.client_signature;
        });
        assert!(matches!(error, Err(OpeningError::Foreign(ForeignReceipt { what: "adapter" }))), "{error:?}");
        let error = changed(&honest, |f| {
            f.receipt = foreign.receipt.clone();
            f.contributor_signature = foreign.contributor_signature;
            f.client_signature = foreign.client_signature;
            f.manifest = foreign.manifest;
            f.manifest_signature = foreign.manifest_signature;
        });
        assert!(matches!(error, Err(OpeningError::NotCommitted)), "{error:?}");
    }

    /// Parties in league can sign for anything, but no reader takes it.
    #[test]
    fn what_the_receipts_counts_do_not_allow_is_refused_though_both_signed_it() {
        let (a, b, seed) = (SecretKey::generate(), SecretKey::generate(), CommitmentSeed::random());
        // The second of five leaves, in the first of three calls; the fourth, in the third call.
        let open =
            |call, module| CallOpening::new(&mut bundle(&a, &b, &seed, 1), &seed, call, module).unwrap();
        let (first, third) = (open(0, 0), open(2, 1));
        assert_eq!((first.path.position, third.path.position, first.path.leaves), (1, 3, 5));
        let signed = |opening: &CallOpening, calls, rows: [u64; 2]| {
            let mut receipt = opening.receipt().receipt().clone();
            (receipt.calls, receipt.rows) = (calls, rows.to_vec());
            let bytes = receipt.to_bytes();
            let by_a = a.sign(Purpose::ReceiptContributor, &bytes);
            let by_b = b.sign(Purpose::ReceiptClient, &bytes);
            let receipt = SignedReceipt::parse(bytes, by_a, by_b).unwrap();
            let session = SignedSession::new(opening.manifest().clone(), receipt).unwrap();
            CallOpening::from_bytes(&CallOpening { session, ..opening.clone() }.to_bytes())
        };
        for (opening, calls, rows, expected) in [
            (&first, 3, [4, 5], None),
            (&third, 3, [4, 5], None),
            // As many leaves, each of a call of its own, would make the second leaf one of the second call; but the first may have two.
            (&first, 4, [4, 5], None),
            (&first, 5, [4, 5], Some("position")),
            (&third, 2, [4, 5], Some("call")),
            (&third, 4, [4, 5], None),
            (&third, 5, [4, 5], Some("position")),
            (&first, 0, [4, 5], Some("call")),
            (&first, 6, [4, 5], Some("leaves")),
            (&first, 1, [4, 5], None),
            (&first, 3, [2, 0], None),
            (&first, 3, [1, 5], Some("rows")),
            (&third, 3, [4, 1], Some("rows")),
        ] {
            let found = signed(opening, calls, rows);
            let what = found.as_ref().err().map(|error| match error {
                OpeningError::Impossible { what, .. } => *what,
                other => panic!("{other}"),
            });
            assert_eq!(what, expected, "call {} of {calls}, {rows:?}: {found:?}", opening.number());
        }
    }

    #[test]
    fn what_is_signed_is_checked_and_a_file_has_one_form() {
        let honest = opened(1, 0, 0);
        let refused = |edit: fn(&mut Fields), words: &str| {
            let error = changed(&honest, edit).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(|f| f.manifest_signature = Signature::from_bytes([0; 64]), "the manifest's signature");
        refused(|f| f.contributor_signature = f.client_signature, "signature of the contributor");
        refused(|f| f.client_signature = f.contributor_signature, "signature of the client");
        refused(
            |f| f.receipt = f.receipt.replace("\"calls\":3", "\"calls\":4"),
            "signature of the contributor",
        );
        refused(|f| f.format = "zklora-opening/2".into(), "zklora-opening/2");
        refused(|f| f.name = "m.1".into(), "is not the name of module 0");
        refused(|f| f.module = 7, "addresses module 7");
        refused(|f| f.rows = 0, "has 0 rows");
        refused(|f| f.rows = usize::MAX, "rows");
        refused(|f| f.rows = 1, "expected activations of 1 x 2");
        refused(|f| f.activations[..2].copy_from_slice(&[0, 0x80]), "expected activations of");
        refused(|f| f.width = 9, "deltas of 9 bytes");
        refused(|f| f.width = 7, "the deltas: ");

        let bytes = honest.to_bytes();
        let text = String::from_utf8(bytes.clone()).unwrap();
        for other in [
            format!("{text}\n"),
            text.replacen('{', "{ ", 1),
            text.replacen('{', "{\"x\":0,", 1),
            text.replacen("\"width\":6", "\"width\":6,\"width\":6", 1),
            text.replacen("ff7f", "FF7F", 1),
            text.replacen("\"call\":0", "\"call\":\"0\"", 1),
            "[]".into(),
            String::new(),
        ] {
            assert_ne!(other, text);
            let error = CallOpening::from_bytes(other.as_bytes()).unwrap_err();
            assert!(matches!(error, OpeningError::Json(_)), "{error}");
        }
        for end in (0..bytes.len()).step_by(7) {
            assert!(CallOpening::from_bytes(&bytes[..end]).is_err());
        }
    }
}
