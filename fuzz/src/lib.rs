//! What the targets share: how a bundle is attacked, and who the parties to the seeds are.
//!
//! Digests and signatures would stop a blind fuzzer at the door. So `bundle` and `verifier` take whole files, as anyone may
//! send them, but change them with [`attack`]: it takes a file apart, changes a part of it, and puts it together with all
//! digests right, mostly also with a receipt that fits and with the signatures of both parties, whose keys are known. What
//! is found is a file that can be given to any verifier.

use std::io::Cursor;

use libfuzzer_sys::fuzzer_mutate;
use rand::rngs::StdRng;
use rand::seq::{IndexedMutRandom, IndexedRandom, IteratorRandom};
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Value, json};
use zklora_proto::bundle::{Bundle, BundleError};
use zklora_proto::identity::Purpose;
use zklora_proto::{AdapterId, Call, Receipt, SecretKey, TranscriptHasher, TranscriptSalt};
use zklora_testing::{
    CLIENT_SIGNATURE, CONTRIBUTOR_SIGNATURE, FOLDS, FOLDS_SIGNATURE, MANIFEST, MANIFEST_SIGNATURE, PROOFS,
    RECEIPT, REDACTED, RawBundle, TRANSCRIPT, TRANSCRIPT_SALT, encode_transcript, known_key,
};

/// The contributor and the client of the seeds, whose keys everybody has.
pub struct Parties {
    /// Signs manifests and receipts.
    pub contributor: SecretKey,
    /// Signs receipts.
    pub client: SecretKey,
}

impl Default for Parties {
    fn default() -> Self {
        // The same as in crates/zklora-testing/examples/fuzz_seeds.rs.
        Self { contributor: known_key(1), client: known_key(2) }
    }
}

/// Makes another file of the one in `data[..size]`, in place; for `fuzz_mutator!`.
pub fn attack(data: &mut [u8], size: usize, max_size: usize, seed: u32, parties: &Parties) -> usize {
    let mut rng = StdRng::seed_from_u64(seed.into());
    let bundle = RawBundle::try_parse(&data[..size]).filter(|bundle| bundle.blobs.len() >= PROOFS);
    if let Some(mut bundle) = bundle.filter(|_| rng.random_ratio(15, 16)) {
        for _ in 0..rng.random_range(1..=2) {
            change(&mut bundle, &mut rng);
        }
        if rng.random_ratio(3, 4) {
            sign(&mut bundle, &mut rng, parties);
        }
        let file = bundle.to_bytes();
        if file.len() <= max_size {
            data[..file.len()].copy_from_slice(&file);
            return file.len();
        }
    }
    fuzzer_mutate(data, size, max_size)
}

/// One change of one part.
fn change(bundle: &mut RawBundle, rng: &mut StdRng) {
    let parts = bundle.blobs.len();
    match rng.random_range(0..16) {
        0 | 1 => change_plan(bundle, rng),
        2..=4 => change_calls(bundle, rng),
        // Bytes of a blob in the place of another's.
        5 => {
            let (from, to) = (rng.random_range(0..parts), rng.random_range(0..parts));
            bundle.blobs[to] = bundle.blobs[from].clone();
        }
        6 | 7 => {
            let index = *[MANIFEST, RECEIPT].choose(rng).unwrap();
            if let Some(json) = changed_json(&bundle.blobs[index], rng) {
                bundle.blobs[index] = json;
            }
        }
        8 | 9 => {
            let index = rng.random_range(0..parts);
            change_word(&mut bundle.blobs[index], rng);
        }
        _ => {
            let index = rng.random_range(0..parts);
            change_bytes(&mut bundle.blobs[index], rng);
        }
    }
}

fn change_plan(bundle: &mut RawBundle, rng: &mut StdRng) {
    let batches = &mut bundle.plan.batches;
    let module = rng.random_range(0..4);
    let batch = rng.random_range(0..=batches.len());
    match (rng.random_range(0..6), batches.get_mut(batch)) {
        (0, _) => {
            bundle.plan.security = ["standard", "compact", "", "Standard"].choose(rng).unwrap().to_string()
        }
        (1, Some(batch)) => batch.push(module),
        (2, Some(batch)) => drop(batch.pop()),
        (3, Some(batch)) => batch.reverse(),
        (4, Some(_)) => {
            batches.remove(batch);
            if PROOFS + batch < bundle.blobs.len() {
                bundle.blobs.remove(PROOFS + batch);
            }
        }
        _ => {
            batches.insert(batch, vec![module]);
            let proof = bundle.proofs().choose(rng).cloned().unwrap_or_default();
            bundle.blobs.insert((PROOFS + batch).min(bundle.blobs.len()), proof);
        }
    }
}

/// Changes what the transcript says, and writes it correctly.
fn change_calls(bundle: &mut RawBundle, rng: &mut StdRng) {
    let Some(mut calls) = calls(&bundle.to_bytes()).ok().flatten().filter(|calls| !calls.is_empty()) else {
        return;
    };
    let at = rng.random_range(0..calls.len());
    let call = &mut calls[at];
    match rng.random_range(0..6) {
        0 => drop(calls.remove(at)),
        1 => {
            let call = call.clone();
            let to = rng.random_range(0..calls.len());
            calls.insert(to, call);
        }
        2 => call.deltas.reverse(),
        3 => *call.activations.choose_mut(rng).unwrap() = number(rng) as i16,
        _ => {
            let delta = call.deltas.choose_mut(rng).unwrap().values.choose_mut(rng).unwrap();
            *delta = delta.wrapping_add(number(rng) as i64);
        }
    }
    bundle.blobs[TRANSCRIPT] = encode_transcript(&calls, 0, &[]);
}

/// The same JSON but for one value in it, or `None` if it is no JSON.
pub fn changed_json(text: &[u8], rng: &mut StdRng) -> Option<Vec<u8>> {
    let mut value = serde_json::from_slice(text).ok()?;
    change_value(&mut value, rng);
    serde_json::to_vec(&value).ok()
}

fn change_value(value: &mut Value, rng: &mut StdRng) {
    if rng.random_ratio(2, 3) {
        let inner = match value {
            Value::Array(items) => items.choose_mut(rng),
            Value::Object(fields) => fields.values_mut().choose(rng),
            _ => None,
        };
        if let Some(inner) = inner {
            return change_value(inner, rng);
        }
    }
    match (rng.random_range(0..4), &mut *value) {
        (0, Value::Object(fields)) => drop(fields.insert("x".into(), json!(0))),
        (1, Value::Object(fields)) => {
            let name = fields.keys().choose(rng).cloned();
            name.and_then(|name| fields.shift_remove(&name));
        }
        (2, Value::Object(fields)) => *value = fields.values().cloned().collect(),
        (0, Value::Array(items)) => items.extend(items.choose(rng).cloned()),
        (1, Value::Array(items)) => drop(items.pop()),
        (2, Value::Array(items)) => items.reverse(),
        _ => {
            let others = [
                json!(null),
                json!(true),
                json!(number(rng)),
                json!(-1),
                json!(0.5),
                json!(1e300),
                json!(""),
                json!("\u{0}\u{202e}"),
                json!("ff".repeat(32)),
                json!([]),
                json!([0, 1]),
                json!({}),
            ];
            *value = others.choose(rng).unwrap().clone();
        }
    }
}

/// Puts a number where fields of proofs, lengths and scalars have one.
fn change_word(bytes: &mut [u8], rng: &mut StdRng) {
    let words = bytes.len() / 8;
    if words > 0 {
        let start = 8 * rng.random_range(0..words) + bytes.len() % 8 * rng.random_range(0..=1);
        let word = &mut bytes[start..start + 8];
        let old = u64::from_le_bytes(word.try_into().unwrap());
        let new = if rng.random() { number(rng) } else { old.wrapping_add(number(rng)) };
        word.copy_from_slice(&new.to_le_bytes());
    }
}

/// Zero, small, large, the order of the field and its neighbours, or anything.
fn number(rng: &mut StdRng) -> u64 {
    const P: u64 = 0xffff_ffff_0000_0001;
    match rng.random_range(0..6) {
        0 => rng.random_range(0..3u64),
        1 => rng.random_range(0..3u64).wrapping_neg(),
        2 => P - 1 + rng.random_range(0..3),
        3 => 1 << rng.random_range(0..64),
        4 => P.wrapping_mul(1 << rng.random_range(0..32)),
        _ => rng.next_u64(),
    }
}

/// What libFuzzer does to bytes; in a large blob mostly to a window, since most changes of its length end at once.
fn change_bytes(blob: &mut Vec<u8>, rng: &mut StdRng) {
    const WINDOW: usize = 64;
    if blob.len() > 16 * WINDOW && rng.random_ratio(7, 8) {
        let start = rng.random_range(0..blob.len() - WINDOW);
        fuzzer_mutate(&mut blob[start..start + WINDOW], WINDOW, WINDOW);
        return;
    }
    let length = blob.len();
    blob.resize(length + 2 * WINDOW, 0);
    let length = fuzzer_mutate(blob, length, length + 2 * WINDOW);
    blob.truncate(length);
}

/// Has the parties agree to what was changed: they sign the manifest, the receipt is for it and for the transcript, and they
/// sign the receipt. Each step is left out now and then.
fn sign(bundle: &mut RawBundle, rng: &mut StdRng, parties: &Parties) {
    let manifest = bundle.blobs[MANIFEST].clone();
    bundle.blobs[MANIFEST_SIGNATURE] =
        parties.contributor.sign(Purpose::Manifest, &manifest).as_bytes().to_vec();
    if rng.random_ratio(7, 8) {
        change_receipt(bundle, |receipt| receipt.adapter = AdapterId::of_manifest(&manifest));
    }
    sign_receipt(bundle, parties);
    if bundle.format == REDACTED {
        let (receipt, folds) = (&bundle.blobs[RECEIPT], &bundle.blobs[FOLDS]);
        let message = [&(receipt.len() as u64).to_le_bytes()[..], receipt, folds].concat();
        bundle.blobs[FOLDS_SIGNATURE] = parties.client.sign(Purpose::Folds, &message).as_bytes().to_vec();
    } else if rng.random_ratio(7, 8)
        && let Ok(Some(calls)) = calls(&bundle.to_bytes())
        && let Ok(salt) = <[u8; 32]>::try_from(&bundle.blobs[TRANSCRIPT_SALT][..])
    {
        change_receipt(bundle, |receipt| {
            let mut hasher = TranscriptHasher::new(receipt.rows.len(), TranscriptSalt::from_bytes(salt));
            if calls.iter().all(|call| hasher.add(call)) {
                (receipt.calls, receipt.rows) = (hasher.calls(), hasher.rows().to_vec());
                receipt.transcript = hasher.digest();
            }
        });
        sign_receipt(bundle, parties);
    }
}

/// Changes what the receipt says. Its bytes stay as they are if that is nothing, or if it is no receipt.
fn change_receipt(bundle: &mut RawBundle, change: impl FnOnce(&mut Receipt)) {
    if let Ok(old) = Receipt::from_bytes(&bundle.blobs[RECEIPT]) {
        let mut new = old.clone();
        change(&mut new);
        if new != old {
            bundle.blobs[RECEIPT] = new.to_bytes();
        }
    }
}

fn sign_receipt(bundle: &mut RawBundle, parties: &Parties) {
    let receipt = bundle.blobs[RECEIPT].clone();
    for (blob, key, purpose) in [
        (CONTRIBUTOR_SIGNATURE, &parties.contributor, Purpose::ReceiptContributor),
        (CLIENT_SIGNATURE, &parties.client, Purpose::ReceiptClient),
    ] {
        bundle.blobs[blob] = key.sign(purpose, &receipt).as_bytes().to_vec();
    }
}

/// The calls of a bundle, or `None` if they are more than is kept here: a small file may hold a very long transcript.
pub fn calls(file: &[u8]) -> Result<Option<Vec<Call>>, BundleError> {
    let (mut calls, mut size) = (Vec::new(), 0);
    Bundle::from_reader(Cursor::new(file))?.calls(|call| {
        size += call.activations.len() + call.deltas.iter().map(|delta| delta.values.len()).sum::<usize>();
        if size <= 1 << 16 {
            calls.push(call);
        }
        Ok::<_, BundleError>(())
    })?;
    Ok((size <= 1 << 16).then_some(calls))
}
