//! Messages, their payloads, signed documents and names: what is read and written again is the same.
//!
//! The first byte of the input says what the rest is.
#![no_main]

use std::fmt::Display;
use std::str::FromStr;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use zklora_fuzz::{Parties, changed_json};
use zklora_net::{FrameError, read_frame, read_header, write_frame};
use zklora_proto::identity::Purpose;
use zklora_proto::limits::MAX_MESSAGE_HEADER_BYTES;
use zklora_proto::message::{Nonce, Request, Response};
use zklora_proto::packing::{
    PackedDeltas, activations_from_bytes, activations_to_bytes, pack_deltas, unpack_deltas,
};
use zklora_proto::{
    AdapterId, Address, Commitment, PublicKey, Receipt, SecretKey, Signature, SignedManifest, SignedReceipt,
};

static PARTIES: LazyLock<Parties> = LazyLock::new(Parties::default);
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().unwrap());

/// Most bytes of a payload.
const MAX_PAYLOAD: u64 = 1 << 12;

// Half of the time the fields of JSON are changed, and else its bytes, or those of what is no JSON.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut rng = StdRng::seed_from_u64(seed.into());
    if rng.random()
        && let Some((_, text)) = data[..size].split_first()
        && let Some(json) = changed_json(text, &mut rng)
        && json.len() < max_size
    {
        data[1..=json.len()].copy_from_slice(&json);
        return 1 + json.len();
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    match kind {
        b'q' => frame::<Request>(bytes),
        b'r' => frame::<Response>(bytes),
        b'Q' => frame::<Request>(&framed(bytes)),
        b'R' => frame::<Response>(&framed(bytes)),
        b'm' => manifest(bytes),
        b'c' => receipt(bytes),
        b'a' => activations(bytes),
        b'd' => deltas(bytes),
        b'n' => names(bytes),
        _ => {}
    }
});

/// The frame of this header, whose length is right whatever the header is, and no payload.
fn framed(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u32).to_le_bytes()[..], header, &[0; 8]].concat()
}

fn frame<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let read = |bytes: &[u8]| RUNTIME.block_on(read_frame::<T>(&mut &bytes[..], MAX_PAYLOAD));
    let header: Result<T, FrameError> = RUNTIME.block_on(read_header(&mut &bytes[..]));
    let (message, payload) = match read(bytes) {
        Ok(frame) => frame,
        Err(FrameError::Io(error)) => panic!("nothing fails here: {error}"),
        Err(_) => return,
    };
    assert_eq!(header.unwrap(), message);
    let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    assert!(length <= MAX_MESSAGE_HEADER_BYTES && payload.len() as u64 <= MAX_PAYLOAD);
    assert_eq!(bytes.len(), 4 + length + 8 + payload.len());
    assert_eq!(&bytes[4 + length + 8..], payload);

    let mut again = Vec::new();
    RUNTIME.block_on(write_frame(&mut again, &message, &payload)).unwrap();
    assert_eq!(again, bytes);
}

fn manifest(bytes: &[u8]) {
    let parse = |key: &SecretKey| SignedManifest::parse(bytes.to_vec(), key.sign(Purpose::Manifest, bytes));
    let Ok(signed) = parse(&PARTIES.contributor) else { return };
    assert_eq!(signed.bytes(), bytes);
    assert_eq!(*signed.manifest().contributor(), PARTIES.contributor.public());
    assert!(parse(&PARTIES.client).is_err());
    let again = signed.manifest().sign(&PARTIES.contributor);
    same_json(bytes, again.bytes());
    assert_eq!(SignedManifest::parse(again.bytes().to_vec(), *again.signature()).unwrap(), again);
}

fn receipt(bytes: &[u8]) {
    let Ok(receipt) = Receipt::from_bytes(bytes) else { return };
    let again = receipt.to_bytes();
    same_json(bytes, &again);
    assert_eq!(Receipt::from_bytes(&again).as_ref(), Ok(&receipt));
    let by_contributor = PARTIES.contributor.sign(Purpose::ReceiptContributor, bytes);
    let by_client = PARTIES.client.sign(Purpose::ReceiptClient, bytes);
    let parties = [PARTIES.contributor.public(), PARTIES.client.public()];
    match SignedReceipt::parse(bytes.to_vec(), by_contributor, by_client) {
        Ok(signed) => {
            assert_eq!(signed.bytes(), bytes);
            assert_eq!([receipt.contributor, receipt.client], parties);
        }
        Err(_) => assert_ne!([receipt.contributor, receipt.client], parties),
    }
}

/// A `u16` number of entries, then what may be their bytes.
fn activations(bytes: &[u8]) {
    let Some((count, bytes)) = bytes.split_first_chunk() else { return };
    if let Some(values) = activations_from_bytes(bytes, u16::from_le_bytes(*count).into()) {
        assert_eq!(activations_to_bytes(&values), bytes);
        assert!(!values.contains(&i16::MIN));
    }
}

/// A width, a `u16` number of entries, then what may be their bytes.
fn deltas(bytes: &[u8]) {
    let Some(([width, count @ ..], bytes)) = bytes.split_first_chunk::<3>() else { return };
    if let Ok(values) = unpack_deltas(*width, bytes, u16::from_le_bytes(*count).into()) {
        assert_eq!(pack_deltas(&values), PackedDeltas { width: *width, bytes: bytes.to_vec() });
    }
}

fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let address = name::<Address>(text);
    if let Some(address) = address {
        let (key, rest) = text.strip_prefix("zklora://").unwrap().split_at(64);
        assert!(key.eq_ignore_ascii_case(&address.key.to_string()));
        let port = rest.strip_prefix('@').and_then(|rest| rest.strip_prefix(&address.host)).unwrap();
        assert_eq!(port.strip_prefix(':').and_then(|port| port.parse().ok()), Some(address.port));
    }
    let hex = [
        name::<AdapterId>(text).map(|x| x.to_string()),
        name::<PublicKey>(text).map(|x| x.to_string()),
        name::<Nonce>(text).map(|x| x.to_string()),
        name::<Signature>(text).map(|x| x.to_string()),
        name::<Commitment>(text).map(|x| x.to_string()),
    ];
    assert!(hex.into_iter().flatten().all(|again| again == text.to_lowercase()));
}

/// What the text names, if it does; that is written and read as itself.
fn name<T: FromStr + Display + PartialEq>(text: &str) -> Option<T> {
    let name: T = text.parse().ok()?;
    assert!(name.to_string().parse().is_ok_and(|again: T| again == name));
    Some(name)
}

/// Both texts hold the same JSON, but for the case of hexadecimal digits and how a number is written.
fn same_json(found: &[u8], written: &[u8]) {
    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::String(a), Value::String(b)) => {
                a == b || (a.eq_ignore_ascii_case(b) && b.bytes().all(|c| c.is_ascii_hexdigit()))
            }
            (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64() && b.is_f64(),
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            (a, b) => a == b,
        }
    }
    let parse = |text| serde_json::from_slice::<Value>(text).unwrap();
    assert!(same(&parse(found), &parse(written)), "read as {}", String::from_utf8_lossy(written));
}
