//! Writes `fixtures/vectors` anew: `cargo run --release -p zklora-testing --example make_vectors [full|redacted]`, those of one layout
//! or all.
//!
//! What the vectors are is fixed here; keys, salts and proofs are random, so that the files differ from run to run.

use std::fs;

use zklora_circuit::parameters::Security;
use zklora_proto::bundle::Folds;
use zklora_proto::identity::Purpose;
use zklora_proto::{Call, Delta, SecretKey, Signature, SignedReceipt};
use zklora_testing::vectors::{Change, Edit, Patch, Reason, folder};
use zklora_testing::{
    CLIENT_SIGNATURE, CONTRIBUTOR_SIGNATURE, FOLDS, FOLDS_SIGNATURE, MANIFEST, MANIFEST_SIGNATURE, RECEIPT,
    RawBundle, TRANSCRIPT, World, encode_transcript, rng, shape,
};

const SMALL: &str = "valid/one-module.pf";
const SHARED: &str = "valid/shared-input.pf";
const GRIDS: &str = "valid/compact-grids.pf";

const REDACTED: &str = "valid/redacted.pf";

fn main() {
    let asked = std::env::args().nth(1);
    if asked.as_deref() != Some("redacted") {
        remove(|name| !name.starts_with("redacted"));
        full();
    }
    if asked.as_deref() != Some("full") {
        remove(|name| name.starts_with("redacted"));
        redacted();
    }
}

/// Removes the vectors of these names.
fn remove(which: impl Fn(&str) -> bool) {
    for kind in ["valid", "invalid"] {
        let folder = folder().join(kind);
        fs::create_dir_all(&folder).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if which(entry.file_name().to_str().unwrap()) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

fn full() {
    let world = World::new(&[shape(8, 2, 8)], 1);
    let small = world.bundle(&[world.call(2, &[0], &mut rng(1))]);
    fs::write(folder().join(SMALL), small.to_bytes()).unwrap();

    // The other parameter set, and ranks for each of the grids that weights stand in.
    let world =
        World::new(&[shape(30, 1, 5), shape(45, 3, 24), shape(9, 8, 41)], 3).with_security(Security::Compact);
    let mut calls_rng = rng(3);
    let calls: Vec<Call> = (0..3).map(|module| world.call(2, &[module], &mut calls_rng)).collect();
    fs::write(folder().join(GRIDS), world.bundle(&calls).to_bytes()).unwrap();

    // Two modules that share an input, in one call and apart, and one that is never called.
    let world = World::new(&[shape(12, 2, 24), shape(12, 2, 24), shape(5, 1, 3)], 2);
    let mut rng = rng(2);
    let calls = vec![
        world.call(3, &[0, 1], &mut rng),
        world.call(1, &[1], &mut rng),
        world.answer(2, [[32767; 12], [-32767; 12]].concat(), &[1, 0]),
    ];
    let shared = world.bundle(&calls);
    assert_eq!(shared.plan.batches, [vec![0, 1]]);
    fs::write(folder().join(SHARED), shared.to_bytes()).unwrap();

    let session = Session { world, calls, bundle: shared };
    session.layout();
    session.manifest();
    session.receipt();
    session.plan();
    session.transcript();
    session.proof();
    session.wraps();
}

/// A redacted bundle of two modules, one of which is never called, and what is no such bundle.
fn redacted() {
    let world = World::new(&[shape(8, 2, 8), shape(5, 1, 3)], 4);
    let bundle = world.bundle(&[world.call(20, &[0], &mut rng(4)), world.call(1, &[0], &mut rng(5))]);
    let folds = world.folds(&bundle, Clone::clone);
    let valid = world.redact(&bundle, &folds);
    fs::write(folder().join(REDACTED), valid.to_bytes()).unwrap();

    let write = |name: &str, about: &str, edits, kind: &str, says: &str| {
        let reason = Reason { kind: kind.into(), says: says.into() };
        let name = format!("redacted-{name}");
        write_patch(&name, Patch { about: about.into(), from: REDACTED.into(), fit: true, edits, reason });
    };
    let signed = |bytes: Vec<u8>| {
        let redacted = world.redact_bytes(&bundle, bytes);
        vec![
            edit("folds", set(&redacted.blobs[FOLDS])),
            edit("folds.client", set(&redacted.blobs[FOLDS_SIGNATURE])),
        ]
    };
    let with = |change: &dyn Fn(&mut Folds)| {
        let mut folds = folds.clone();
        change(&mut folds);
        signed(folds.to_bytes())
    };
    let not_signed = "not one of the receipt's client";
    let edits = vec![edit("folds", xor(40, 1))];
    write("changed", "Folds that nobody signed.", edits, "folds", not_signed);
    let receipt = &valid.blobs[RECEIPT];
    let message = [&(receipt.len() as u64).to_le_bytes()[..], receipt, &valid.blobs[FOLDS]].concat();
    let signature = world.contributor().sign(Purpose::Folds, &message);
    let edits = vec![edit("folds.client", set(signature.as_bytes()))];
    write("contributor", "Folds that the contributor signed.", edits, "folds", not_signed);
    let edits = vec![edit("folds.client", set(&valid.blobs[CLIENT_SIGNATURE]))];
    write("receipts-signature", "The signature of the receipt under the folds.", edits, "folds", not_signed);
    let about = "Other folds than the proof's, which the client signed.";
    write("false", about, with(&|folds| folds.modules[0].a[1][0] ^= 1), "proof", "does not show");
    let about = "Folds under another challenge, which the client signed.";
    write("alpha", about, with(&|folds| folds.alpha[0] ^= 1), "folds", "other challenges");
    let bytes = folds.to_bytes();
    let mut beyond = bytes.clone();
    beyond[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    write("element", "A part of an element beyond p.", signed(beyond), "folds", "no canonical field element");
    let about = "Folds without their last element.";
    write("short", about, signed(bytes[..bytes.len() - 16].to_vec()), "folds", "expected");
    let about = "Folds of the module that was not called, too.";
    write("module", about, signed([&bytes[..], &[0; 16 * 6]].concat()), "folds", "expected");
    let edits = vec![edit("header", replace("zklora-pf-redacted/2", "zklora-pf/2"))];
    write("as-full", "A redacted bundle that says it is a full one.", edits, "format", "transcript.salt");
}

/// What the invalid vectors are made from.
struct Session {
    world: World,
    calls: Vec<Call>,
    bundle: RawBundle,
}

impl Session {
    fn layout(&self) {
        let file = |name, about, change, says| {
            write(name, about, false, vec![edit("file", change)], "format", says);
        };
        file("trailing-byte", "A byte after the last blob.", append(&[0]), "cut off or extended");
        file("cut-off", "The last byte is missing.", Change::Cut(1), "cut off or extended");
        file("header-length", "A header beyond the file.", xor(7, 0x80), "its header has");
        let header = |name, about, from, to, says| {
            write(name, about, false, vec![edit("header", replace(from, to))], "format", says);
        };
        header(
            "header-space",
            "White space in the header.",
            r#"{"format""#,
            r#"{ "format""#,
            "canonical form",
        );
        header(
            "header-field-misplaced",
            "A field of the header in the plan.",
            r#"{"format":"zklora-pf/2","plan":{"security""#,
            r#"{"plan":{"format":"zklora-pf/2","security""#,
            "not valid JSON of its format",
        );
        header("version", "A later version.", "zklora-pf/2", "zklora-pf/3", "\"zklora-pf/3\"");
        header("version-1", "The version before.", "zklora-pf/2", "zklora-pf/1", "\"zklora-pf/1\"");
        header("blob-name", "A blob of another name.", r#""receipt""#, r#""deceipt""#, "the blob table");
        let edits = vec![edit("manifest", xor(20, 1))];
        write("blob-digest", "A changed blob under the old digest.", false, edits, "format", "digest");
    }

    fn manifest(&self) {
        let edits = vec![edit("manifest", replace(r#""created":0"#, r#""created":1"#))];
        let not_signed = "the manifest's signature";
        write("manifest-changed", "A manifest that nobody signed.", true, edits, "manifest", not_signed);

        let mut signature = self.bundle.blobs[MANIFEST_SIGNATURE].clone();
        add_group_order(&mut signature[32..]);
        let edits = vec![edit("manifest.signature", set(&signature))];
        let about = "A signature whose scalar is not reduced: the group's order is added to it.";
        write("signature-scalar", about, true, edits, "manifest", not_signed);

        // A key of order 1, whose signature of R = identity and S = 0 lax verification takes for any message.
        let identity = [&[1][..], &[0; 31]].concat();
        let key = self.world.contributor().public().to_string();
        let edits = vec![
            edit("manifest", replace(&key, &hex::encode(&identity))),
            edit("manifest.signature", set(&[identity, vec![0; 32]].concat())),
        ];
        let about = "A contributor's key of small order, under which everything is signed.";
        write("small-order-key", about, true, edits, "manifest", not_signed);

        for (name, about, from, to, says) in [
            ("manifest-name-twice", "Two modules of one name.", "m.1", "m.0", "names module \"m.0\" twice"),
            (
                "manifest-weight-bits",
                "Weights of 13 bits.",
                "\"weight_bits\":12",
                "\"weight_bits\":13",
                "have 13 bits",
            ),
            ("manifest-field", "A field too many.", "{\"format\"", "{\"x\":0,\"format\"", "unknown field"),
            (
                "manifest-field-twice",
                "A repeated field.",
                "{\"format\"",
                "{\"created\":0,\"format\"",
                "duplicate field",
            ),
            ("manifest-shape", "A rank of zero.", "\"rank\":1", "\"rank\":0", "rank is 0"),
            ("manifest-version", "A later version.", "manifest/1", "manifest/2", "zklora-manifest/2"),
        ] {
            let edits = self.signed_manifest(from, to);
            write(name, about, true, edits, "manifest", says);
        }
        let module = r#"{"name":"m.2","d_in":5,"rank":1,"d_out":3,"scale":1e-6,"commitment":"#;
        let commitment = self.world.openings()[2].commitment();
        let edits = self.signed_manifest(
            &format!("{module}\"{commitment}\"}}"),
            &format!("[\"m.2\",5,1,3,1e-6,\"{commitment}\"]"),
        );
        let about = "A module as an array of its values.";
        write("manifest-array", about, true, edits, "manifest", "expected an object");
        let edits = self.signed_manifest("\"created\":0", "\"created\":1");
        let about = "The contributor exchanged the manifest under the receipt.";
        write("manifest-exchanged", about, true, edits, "receipt", "names another adapter");
    }

    /// A manifest that the contributor changed and signed.
    fn signed_manifest(&self, from: &str, to: &str) -> Vec<Edit> {
        let text = text(&self.bundle.blobs[MANIFEST]);
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed);
        let signature = self.world.contributor().sign(Purpose::Manifest, changed.as_bytes());
        vec![edit("manifest", set(changed.as_bytes())), edit("manifest.signature", set(signature.as_bytes()))]
    }

    fn receipt(&self) {
        let bytes = &self.bundle.blobs[RECEIPT];
        let stranger = SecretKey::generate();
        for (name, blob, party, purpose) in [
            ("receipt-contributor", "receipt.contributor", "contributor", Purpose::ReceiptContributor),
            ("receipt-client", "receipt.client", "client", Purpose::ReceiptClient),
        ] {
            let edits = vec![edit(blob, set(stranger.sign(purpose, bytes).as_bytes()))];
            let about = format!("The {party}'s signature is somebody else's.");
            write(name, &about, true, edits, "receipt", party);
        }
        let edits = vec![edit("receipt.contributor", set(&self.bundle.blobs[CLIENT_SIGNATURE]))];
        let about = "The client's signature in the place of the contributor's.";
        write("receipt-signatures-swapped", about, true, edits, "receipt", "contributor");

        let receipt = SignedReceipt::parse(
            bytes.clone(),
            Signature::from_bytes(self.bundle.blobs[CONTRIBUTOR_SIGNATURE][..].try_into().unwrap()),
            Signature::from_bytes(self.bundle.blobs[CLIENT_SIGNATURE][..].try_into().unwrap()),
        );
        let again = self.world.sign_again(&receipt.unwrap(), 1);
        let edits = vec![edit("receipt.client", set(again.client_signature().as_bytes()))];
        let about =
            "Another valid signature of the client over the same receipt: other challenges than the proof's.";
        write("receipt-signed-again", about, true, edits, "proof", "does not show");

        for (name, about, from, to, kind, says) in [
            (
                "receipt-rows",
                "The receipt has a row more than the transcript.",
                "\"rows\":[5,6,0]",
                "\"rows\":[5,7,0]",
                "transcript",
                "the number of rows of a module",
            ),
            (
                "receipt-calls",
                "The receipt has a call more than the transcript.",
                "\"calls\":3",
                "\"calls\":4",
                "transcript",
                "the number of calls",
            ),
            (
                "receipt-modules",
                "The receipt has a module more than the manifest.",
                "\"rows\":[5,6,0]",
                "\"rows\":[5,6,0,0]",
                "receipt",
                "number of modules",
            ),
            (
                "receipt-times",
                "The session ends before it begins.",
                "\"started\":1,\"finished\":2",
                "\"started\":2,\"finished\":1",
                "receipt",
                "before its start",
            ),
        ] {
            let edits = self.signed_receipt(&text(bytes).replacen(from, to, 1));
            write(name, about, true, edits, kind, says);
        }
        let fields: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        let names = "format session adapter base_model contributor client calls rows transcript commitments started finished";
        let values: Vec<_> = names.split(' ').map(|name| fields[name].to_string()).collect();
        let edits = self.signed_receipt(&format!("[{}]", values.join(",")));
        let about = "A receipt as an array of its values.";
        write("receipt-array", about, true, edits, "receipt", "expected an object");
    }

    /// A receipt that both parties signed.
    fn signed_receipt(&self, receipt: &str) -> Vec<Edit> {
        assert_ne!(receipt, text(&self.bundle.blobs[RECEIPT]));
        let bytes = receipt.as_bytes();
        let contributor = self.world.contributor().sign(Purpose::ReceiptContributor, bytes);
        let client = self.world.client().sign(Purpose::ReceiptClient, bytes);
        vec![
            edit("receipt", set(bytes)),
            edit("receipt.contributor", set(contributor.as_bytes())),
            edit("receipt.client", set(client.as_bytes())),
        ]
    }

    fn plan(&self) {
        for (name, about, batches, says) in [
            ("plan-left-out", "A module with rows is in no batch.", "[[0]]", "leaves out module 1"),
            ("plan-twice", "A module is in a batch twice.", "[[0,1,1]]", "names module 1 twice"),
            ("plan-no-rows", "A module without rows is in a batch.", "[[0,1,2]]", "which has no rows"),
            ("plan-unknown", "A module that the manifest does not have.", "[[0,1,3]]", "module 3 of 3"),
        ] {
            let edits = vec![edit("header", replace("[[0,1]]", batches))];
            write(name, about, false, edits, "plan", says);
        }
        let name = format!("\"security\":\"{}\"", self.bundle.plan.security);
        let edits = vec![edit("header", replace(&name, "\"security\":\"none\""))];
        let about = "A parameter set that is not known.";
        write("plan-security", about, false, edits, "security", "\"none\" is not known");
        let edits = vec![edit("header", replace("[[0,1]]", "[[1,0]]"))];
        let about = "Another order of the same modules than the proof's.";
        write("plan-order", about, false, edits, "proof", "does not show");
    }

    fn transcript(&self) {
        let transcript = |name, about, blob: &[u8], says| {
            write(name, about, true, vec![edit("transcript", set(blob))], "transcript", says);
        };
        let wider = encode_transcript(&self.calls, 1, &[]);
        transcript("transcript-width", "Deltas in a byte more than they need.", &wider, "that all fit in");
        let extra = encode_transcript(&self.calls, 0, &[0]);
        transcript("transcript-stream", "A byte after a tensor's zlib stream.", &extra, "compressed ones");
        let extended = [&self.bundle.blobs[TRANSCRIPT][..], &[0]].concat();
        let salt = vec![edit("transcript.salt", xor(0, 1))];
        let about = "Another salt of the transcript's digest.";
        write("transcript-salt", about, true, salt, "transcript", "its digest");
        let short = vec![edit("transcript.salt", Change::Cut(1))];
        write("transcript-salt-short", "A salt of 31 bytes.", true, short, "format", "31 bytes, expected 32");
        transcript("transcript-extended", "A byte after the last call.", &extended, "after the last call");

        let changed = |edit: fn(&mut Vec<Call>)| {
            let mut calls = self.calls.clone();
            edit(&mut calls);
            encode_transcript(&calls, 0, &[])
        };
        let asymmetric = changed(|calls| calls[0].activations[3] = i16::MIN);
        transcript("transcript-activation", "An activation of -2^15.", &asymmetric, "-2^15");
        let shorter = changed(|calls| drop(calls.pop()));
        transcript("transcript-call-dropped", "The last call is missing.", &shorter, "the number of calls");
        let swapped = changed(|calls| calls.swap(0, 1));
        transcript("transcript-calls-swapped", "Two calls in another order.", &swapped, "its digest");
        let deltas = changed(|calls| calls[0].deltas.swap(0, 1));
        transcript("transcript-modules-swapped", "A call's modules in another order.", &deltas, "its digest");
        let delta = changed(|calls| calls[1].deltas[0].values[7] += 1);
        transcript("transcript-delta", "A delta that was not sent.", &delta, "its digest");
        let twice = changed(|calls| calls[0].deltas[1].module = 0);
        transcript("transcript-module-twice", "A call to one module twice.", &twice, "module 0 twice");
    }

    /// As many deltas as wrap to none in 32 bits, and none there.
    fn wraps(&self) {
        let world = self.world.with_manifest(|text| text.replacen("\"d_out\":24", "\"d_out\":65536", 1));
        let rows = 1 << 16;
        let deltas = vec![Delta { module: 0, values: Vec::new() }];
        let calls = [Call { rows, activations: vec![0; 12 * rows], deltas }];
        let receipt = world.sign(&world.receipt(&calls));
        let edits = vec![
            edit("manifest", set(world.manifest().bytes())),
            edit("manifest.signature", set(world.manifest().signature().as_bytes())),
            edit("receipt", set(receipt.bytes())),
            edit("receipt.contributor", set(receipt.contributor_signature().as_bytes())),
            edit("receipt.client", set(receipt.client_signature().as_bytes())),
            edit("transcript", set(&encode_transcript(&calls, 0, &[]))),
            edit("header", replace("[[0,1]]", "[[0]]")),
        ];
        let about = "65,536 rows of 65,536 deltas, which are none in 32 bits; and none are there.";
        write("transcript-wraps", about, true, edits, "transcript", "65536 x 65536 entries");
    }

    fn proof(&self) {
        // A false delta for which both signed, with the proof of the true ones.
        let mut calls = self.calls.clone();
        calls[1].deltas[0].values[7] += 1;
        let receipt = String::from_utf8(self.world.receipt(&calls).to_bytes()).unwrap();
        let mut edits = self.signed_receipt(&receipt);
        edits.push(edit("transcript", set(&encode_transcript(&calls, 0, &[]))));
        let about = "A false delta that both parties signed for.";
        write("proof-false-delta", about, true, edits, "proof", "does not show");

        for (name, about, change, says) in [
            ("proof-cut-off", "A proof without its last byte.", Change::Cut(1), "malformed"),
            ("proof-extended", "A byte after a proof.", append(&[0]), "left over"),
            ("proof-changed", "A changed byte of a proof.", xor(9, 1), "does not show"),
        ] {
            write(name, about, true, vec![edit("proof.0", change)], "proof", says);
        }
    }
}

fn write(name: &str, about: &str, fit: bool, edits: Vec<Edit>, kind: &str, says: &str) {
    let reason = Reason { kind: kind.into(), says: says.into() };
    write_patch(name, Patch { about: about.into(), from: SHARED.into(), fit, edits, reason });
}

fn write_patch(name: &str, patch: Patch) {
    let text = serde_json::to_string_pretty(&patch).unwrap() + "\n";
    fs::write(folder().join(format!("invalid/{name}.json")), text).unwrap();
}

fn edit(part: &str, change: Change) -> Edit {
    Edit { part: part.into(), change }
}

fn replace(from: &str, to: &str) -> Change {
    Change::Replace { from: from.into(), to: to.into() }
}

fn set(bytes: &[u8]) -> Change {
    Change::Set(hex::encode(bytes))
}

fn xor(at: usize, value: u8) -> Change {
    Change::Xor { at, value }
}

fn append(bytes: &[u8]) -> Change {
    Change::Append(hex::encode(bytes))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Adds the order of Ed25519's group, 2^252 + 27742317777372353535851937790883648493, to a scalar.
fn add_group_order(scalar: &mut [u8]) {
    let order = (1u128 << 124, 27_742_317_777_372_353_535_851_937_790_883_648_493u128);
    let bytes = [order.1.to_le_bytes(), order.0.to_le_bytes()].concat();
    let mut carry = 0u16;
    for (byte, addend) in scalar.iter_mut().zip(bytes) {
        carry += u16::from(*byte) + u16::from(addend);
        *byte = carry as u8;
        carry >>= 8;
    }
}
