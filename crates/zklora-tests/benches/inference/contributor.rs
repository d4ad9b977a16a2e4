//! What the contributor does for a forward, step by step, in this process and by the daemon's own functions.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::parameters::Security;
use zklora_contributor::delta::DeltaEngine;
use zklora_contributor::exposure::{Ledger, boot_id};
use zklora_contributor::state::State;
use zklora_contributor::store::{STORE, Store};
use zklora_proto::packing::{activations_from_bytes, activations_to_bytes, pack_deltas};
use zklora_proto::{Call, CommitmentSeed, Delta, SecretKey, SessionHasher, SessionId};

/// The steps, in their order.
pub const STEPS: [&str; 6] = ["parse", "delta", "pack", "ledger", "journal", "hash"];

/// A contributor without a network.
pub struct Contributor {
    state: State,
    engines: Vec<DeltaEngine>,
    ledger: Ledger,
    store: Store,
    hasher: SessionHasher,
    session: SessionId,
}

impl Contributor {
    /// Takes up a state folder that nobody serves.
    pub fn open(folder: &std::path::Path) -> Self {
        let state = State::open(folder).unwrap();
        let store = Store::open(&folder.join(STORE), state.manifest.adapter_id()).unwrap();
        let session = SessionId::from_bytes([1; 32]);
        let seed = CommitmentSeed::random();
        store.begin(session, SecretKey::generate().public(), 0, Security::Standard, &seed).unwrap();
        Self {
            engines: state.openings.iter().map(|opening| DeltaEngine::new(opening).unwrap()).collect(),
            ledger: Ledger::open(&store, state.manifest.manifest(), 1.0, &boot_id()).unwrap(),
            hasher: SessionHasher::new(state.manifest.manifest().modules().len(), seed),
            store,
            session,
            state,
        }
    }

    /// One call for each module, with random rows that follow from the seed; the time of each step, over all modules.
    pub fn forward(&mut self, rows: usize, seed: u64) -> [Duration; STEPS.len()] {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut spent = [Duration::ZERO; STEPS.len()];
        for (module, engine) in self.engines.iter().enumerate() {
            let entries = rows * self.state.manifest.manifest().modules()[module].shape().d_in();
            let row: Vec<i16> = (0..entries).map(|_| rng.random_range(-i16::MAX..=i16::MAX)).collect();
            let bytes = activations_to_bytes(&row);

            let mut at = Instant::now();
            let mut step = 0;
            let mut done = || {
                spent[step] += at.elapsed();
                step += 1;
                at = Instant::now();
            };
            let activations = activations_from_bytes(&bytes, entries).unwrap();
            done();
            let values = engine.delta(&activations).unwrap();
            done();
            let _packed = pack_deltas(&values);
            done();
            let considered = self.ledger.consider(&[module], &activations).unwrap();
            let charge = self.ledger.charge(considered, &activations).unwrap();
            done();
            let call = (&[module][..], rows, &activations[..]);
            charge
                .record(&activations, |exposed| {
                    self.store.record(self.session, self.hasher.calls(), call, exposed)
                })
                .unwrap();
            done();
            let call = Call { rows, activations, deltas: vec![Delta { module, values }] };
            assert!(self.hasher.add(&call));
            done();
        }
        spent
    }
}
