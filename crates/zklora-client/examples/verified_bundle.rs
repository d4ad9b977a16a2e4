//! Has a running contributor answer one row, and gets a bundle that holds:
//!
//!     cargo run --release -p zklora-client --example verified_bundle -- ADDRESS ADAPTER BASE-MODEL FOLDER
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::path::Path;

use anyhow::{Context, Result};
use zklora_client::{Quantised, Record, Session};
use zklora_proto::{AdapterId, Address, SecretKey};
use zklora_verdict::{Pins, Verifier};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("expected ADDRESS ADAPTER BASE-MODEL FOLDER");
    let (address, adapter): (Address, AdapterId) = (next()?.parse()?, next()?.parse()?);
    let (base_model, folder) = (next()?.parse()?, next()?);
    let runtime = tokio::runtime::Runtime::new()?;
    let key = SecretKey::generate();
    let session = Session::open(runtime.handle().clone(), key, &address, adapter, base_model)?;

    let module = &session.manifest().modules()[0];
    let d_in = module.shape().d_in();
    let activations: Vec<f32> = (0..d_in).map(|i| (i as f32).sin()).collect();
    let row = Quantised::new(&activations, d_in)?;
    let deltas = session.forward(&[0], &row.values)?;
    println!("{}: {:?}...", module.name(), &row.restore(&[&deltas[0]], module.scale())[..3]);

    let receipt = Some(session.finish()?);
    session.wait_for_proof(|state| println!("proof: {state}"))?;
    let record = Record { receipt, ..session.record(address) };
    let verifier = Verifier::new(Pins { adapters: vec![adapter], ..Pins::default() });
    let bundle = session.fetcher().fetch(&record, Path::new(&folder), 1 << 30, &verifier, |_, _| ())?;
    println!("{}: every delta is the adapter's, and both signed for it", bundle.path.display());
    Ok(())
}
