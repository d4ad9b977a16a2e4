//! The bundle's reader: it reads everything that a file may hold, and what it takes has one encoding and one meaning.
#![no_main]

use std::io::Cursor;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use zklora_fuzz::{Parties, attack, calls};
use zklora_proto::bundle::{Bundle, BundleError};
use zklora_proto::transcript::CallShape;
use zklora_testing::{
    CLIENT_SIGNATURE, CONTRIBUTOR_SIGNATURE, FOLDS, MANIFEST, MANIFEST_SIGNATURE, RECEIPT, REDACTED,
    RawBundle, TRANSCRIPT, TRANSCRIPT_SALT, encode_transcript,
};

static PARTIES: LazyLock<Parties> = LazyLock::new(Parties::default);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    attack(data, size, max_size, seed, &PARTIES)
});

fuzz_target!(|file: &[u8]| drop(read(file)));

fn read(file: &[u8]) -> Result<(), BundleError> {
    let mut bundle = Bundle::from_reader(Cursor::new(file))?;
    let raw = RawBundle::parse(file);
    assert_eq!(bundle.plan(), &raw.plan);
    let (manifest, receipt) = (bundle.manifest().clone(), bundle.receipt().clone());
    assert_eq!(manifest.bytes(), raw.blobs[MANIFEST]);
    assert_eq!(&manifest.signature().as_bytes()[..], raw.blobs[MANIFEST_SIGNATURE]);
    assert_eq!(receipt.bytes(), raw.blobs[RECEIPT]);
    assert_eq!(&receipt.contributor_signature().as_bytes()[..], raw.blobs[CONTRIBUTOR_SIGNATURE]);
    assert_eq!(&receipt.client_signature().as_bytes()[..], raw.blobs[CLIENT_SIGNATURE]);
    for (index, proof) in raw.proofs().iter().enumerate() {
        assert_eq!(&bundle.proof(index)?, proof);
    }

    assert_eq!(bundle.is_redacted(), raw.format == REDACTED);
    if let Some(folds) = bundle.folds()? {
        assert_eq!(folds.to_bytes(), raw.blobs[FOLDS]);
        assert!(matches!(bundle.calls(|_| Ok(())), Err(BundleError::Redacted)));
        assert_eq!(raw.to_bytes(), file);
        return Ok(());
    }
    assert_eq!(&bundle.transcript_salt()?.as_bytes()[..], raw.blobs[TRANSCRIPT_SALT]);
    bundle.calls(|call| {
        let modules = call.deltas.iter().map(|delta| delta.module).collect();
        let shape = CallShape::new(manifest.manifest(), call.rows, modules).unwrap();
        assert_eq!(call.activations.len(), call.rows * shape.d_in());
        assert!(!call.activations.contains(&i16::MIN));
        for delta in &call.deltas {
            let shape = manifest.manifest().modules()[delta.module].shape();
            assert_eq!(delta.values.len(), call.rows * shape.d_out());
        }
        Ok::<_, BundleError>(())
    })?;
    // It was read to the end, so it is the only file of its plan and blobs.
    assert_eq!(raw.to_bytes(), file);
    // Another compression of the same calls says the same.
    if let Some(read) = calls(file)? {
        let again = raw.with_blob(TRANSCRIPT, encode_transcript(&read, 0, &[])).to_bytes();
        assert_eq!(calls(&again)?, Some(read));
    }
    Ok(())
}
