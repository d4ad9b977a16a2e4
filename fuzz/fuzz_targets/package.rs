//! Packages of delivered adapters: what is taken opens every commitment of the adapter that was committed to.
//!
//! The contributor's key is known, so that whatever is changed is signed again: manifest and package.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_delivery::Package;
use zklora_fuzz::Parties;
use zklora_proto::identity::Purpose;
use zklora_proto::{AdapterId, DeliveryDigest};

static PARTIES: LazyLock<Parties> = LazyLock::new(Parties::default);

const ADAPTER: usize = 18 + 32;
const LENGTH: usize = ADAPTER + 32;
const MANIFEST: usize = LENGTH + 8;
const SIGNATURE: usize = 64;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    let mut rng = StdRng::seed_from_u64(seed.into());
    if rng.random_ratio(7, 8) {
        sign(&mut data[..size], &mut rng);
    }
    size
});

/// Signs manifest and package again, each mostly.
fn sign(file: &mut [u8], rng: &mut StdRng) {
    let Some(end) = file.len().checked_sub(SIGNATURE).filter(|end| *end > MANIFEST) else { return };
    let length = u64::from_le_bytes(file[LENGTH..MANIFEST].try_into().unwrap());
    let manifest_end = usize::try_from(length).ok().and_then(|length| MANIFEST.checked_add(length));
    if let Some(after) = manifest_end.filter(|after| after.saturating_add(SIGNATURE) <= end)
        && rng.random_ratio(7, 8)
    {
        let manifest = file[MANIFEST..after].to_vec();
        let signature = PARTIES.contributor.sign(Purpose::Manifest, &manifest);
        file[after..after + SIGNATURE].copy_from_slice(signature.as_bytes());
        file[ADAPTER..LENGTH].copy_from_slice(AdapterId::of_manifest(&manifest).as_bytes());
    }
    let mut hasher = DeliveryDigest::hasher();
    hasher.update(&file[..end]);
    let signature = PARTIES.contributor.sign(Purpose::Delivery, DeliveryDigest::finish(&hasher).as_bytes());
    file[end..].copy_from_slice(signature.as_bytes());
}

fuzz_target!(|file: &[u8]| {
    let Ok(package) = Package::open(file) else { return };
    let Ok(delivery) = package.decrypt(&PARTIES.client, |_| {}) else { return };
    let entries = delivery.manifest().manifest().modules();
    assert_eq!(delivery.openings().len(), entries.len());
    for (opening, entry) in delivery.openings().iter().zip(entries) {
        assert_eq!(opening.commitment(), *entry.commitment());
    }
});
