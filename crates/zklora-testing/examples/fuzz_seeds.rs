//! Makes what fuzzing starts from, in a folder for each target of `fuzz/` but `package`, for which `zklora-delivery` has its own
//! example:
//!
//!     cargo run --release -p zklora-testing --example fuzz_seeds -- fuzz/seeds

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use serde::Serialize;
use zklora_proto::bundle::Bundle;
use zklora_proto::message::{ErrorCode, Nonce, ProofState, Request, Response};
use zklora_proto::packing::{activations_to_bytes, pack_deltas};
use zklora_proto::{Address, Disclosure, SessionId};
use zklora_testing::{PROOFS, RawBundle, World, known_key, rng, shape, vectors};

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("a folder"));
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    let seeds = Seeds { folder };

    // Two modules that share an input, one that does not, one that is not called; in one proof and in several.
    let shapes = [shape(60, 16, 60), shape(60, 16, 60), shape(40, 216, 48), shape(5, 1, 3)];
    let world = World::with_keys(known_key(1), known_key(2), &shapes, 1);
    let mut rng = rng(1);
    let calls = [world.call(2, &[0, 1], &mut rng), world.call(1, &[1], &mut rng)];
    let one = world.bundle(&calls);
    assert_eq!(one.proofs().len(), 1);
    let calls = [world.call(1, &[0, 1], &mut rng), world.call(1, &[2], &mut rng)];
    let several = world.clone().with_max_bits(10).bundle(&calls);
    assert_eq!(several.proofs().len(), 2);
    let redacted = world.redact(&one, &world.folds(&one, Clone::clone));
    for (name, bundle) in [("one-proof", &one), ("several-proofs", &several), ("redacted", &redacted)] {
        seeds.put("verifier", name, &bundle.to_bytes());
        seeds.put("bundle", name, &with_short_proofs(bundle.clone()));
    }
    for vector in vectors::load() {
        let name = vector.name.replace('/', "-");
        if vector.reason.is_none() {
            seeds.put("verifier", &name, &vector.bytes);
        }
        if let Some(bundle) = RawBundle::try_parse(&vector.bytes) {
            seeds.put("bundle", &name, &with_short_proofs(bundle));
        }
    }
    for (name, call, module) in [("first", 0, 0), ("shared", 0, 1), ("last", 1, 1)] {
        let mut bundle = Bundle::from_reader(Cursor::new(one.to_bytes())).unwrap();
        let disclosure = Disclosure::new(&mut bundle, &World::SEED, call, module).unwrap();
        seeds.put("disclosure", name, &disclosure.to_bytes());
    }
    seeds.messages(&one);
}

/// The reader does not look into proofs.
fn with_short_proofs(mut bundle: RawBundle) -> Vec<u8> {
    bundle.blobs.iter_mut().skip(PROOFS).for_each(|proof| proof.truncate(16));
    bundle.to_bytes()
}

struct Seeds {
    folder: PathBuf,
}

impl Seeds {
    fn put(&self, target: &str, name: &str, bytes: &[u8]) {
        let folder = self.folder.join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(Path::new(name)), bytes).unwrap();
    }

    /// For the target `message`, whose first byte says what the rest is.
    fn message(&self, kind: u8, name: &str, bytes: &[u8]) {
        self.put("message", name, &[&[kind], bytes].concat());
    }

    /// A message as it is on a stream, and its header alone.
    fn frames(&self, kinds: [u8; 2], name: &str, header: &impl Serialize, payload: &[u8]) {
        let header = serde_json::to_vec(header).unwrap();
        let lengths = ((header.len() as u32).to_le_bytes(), (payload.len() as u64).to_le_bytes());
        self.message(kinds[0], name, &[&lengths.0, &header[..], &lengths.1, payload].concat());
        self.message(kinds[1], &format!("{name}-header"), &header);
    }

    fn messages(&self, bundle: &RawBundle) {
        let session = SessionId::from_bytes([0xa5; 32]);
        let key = known_key(1);
        let [manifest, signature, receipt] = [0, 1, 2].map(|blob| bundle.blobs[blob].as_slice());
        let signature = zklora_proto::Signature::from_bytes(signature.try_into().unwrap());
        let signed = zklora_proto::Receipt::from_bytes(receipt).unwrap();
        let nonce: Nonce = "5a".repeat(32).parse().unwrap();
        self.message(b'm', "manifest", manifest);
        self.message(b'c', "receipt", receipt);

        let activations = activations_to_bytes(&[1, -2, 3, -32767]);
        for (name, request, payload) in [
            (
                "hello",
                Request::Hello {
                    version: 1,
                    adapter: signed.adapter,
                    base_model: signed.base_model,
                    nonce,
                    commitment_seed: World::SEED,
                },
                &[][..],
            ),
            ("forward", Request::Forward { session, call: 1, rows: 2, modules: vec![0, 1] }, &activations),
            ("finish", Request::Finish { session, calls: 2, transcript: signed.transcript }, &[]),
            ("countersign", Request::Countersign { session, signature }, &[]),
            ("status", Request::Status { session }, &[]),
            ("fetch", Request::Fetch { session, offset: 7 }, &[]),
        ] {
            self.frames(*b"qQ", name, &request, payload);
        }
        let deltas = pack_deltas(&[1, -300, 70_000]);
        let states = [
            ProofState::Open,
            ProofState::Queued,
            ProofState::Proving { done: 1, total: 2 },
            ProofState::Proved { bytes: 3 },
            ProofState::Failed,
        ];
        let states =
            states.into_iter().map(|state| (format!("{state:?}"), Response::Status { state }, &[][..]));
        let error = Response::Error { code: ErrorCode::BaseModel, message: "\"\u{1b}[2J\u{202e}".into() };
        for (name, response, payload) in [
            (
                "welcome".into(),
                Response::Welcome {
                    nonce,
                    signature,
                    max_call_bytes: 1 << 16,
                    left: vec![3, 0],
                    security: "standard".into(),
                },
                manifest,
            ),
            ("deltas".into(), Response::Deltas { widths: vec![deltas.width] }, &deltas.bytes),
            ("receipt-answer".into(), Response::Receipt { signature }, receipt),
            ("accepted".into(), Response::Accepted, &[]),
            ("bundle".into(), Response::Bundle { bytes: 9 }, b"part"),
            ("error".into(), error, &[]),
        ]
        .into_iter()
        .chain(states)
        {
            self.frames(*b"rR", &name, &response, payload);
        }

        self.message(b'a', "activations", &[&[4, 0], &activations[..]].concat());
        for values in [&[1, -128][..], &[1 << 20, -5], &[i64::MIN, i64::MAX, 0]] {
            let packed = pack_deltas(values);
            let bytes = [&[packed.width, values.len() as u8, 0], &packed.bytes[..]].concat();
            self.message(b'd', &format!("deltas-of-{}", packed.width), &bytes);
        }
        let address = Address { key: key.public(), host: "[::1]".into(), port: 4433 };
        for (name, text) in [
            ("address", address.to_string()),
            ("digest", session.to_string()),
            ("signature", signature.to_string().to_uppercase()),
        ] {
            self.message(b'n', name, text.as_bytes());
        }
    }
}
