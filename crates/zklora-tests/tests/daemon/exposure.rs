//! What answered rows give away, and that the ledger stops it.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::Planner;
use zklora_client::{Session, SessionError};
use zklora_contributor::delta::Engines;
use zklora_contributor::limits::Limits;
use zklora_contributor::prover::{Place, Prover, ProverConfig};
use zklora_contributor::service::Service;
use zklora_contributor::state::State;
use zklora_contributor::store::{STORE, Store};
use zklora_proto::message::{ErrorCode, Nonce, Request, Response};
use zklora_proto::packing::activations_to_bytes;
use zklora_proto::{CommitmentSeed, PROTOCOL_VERSION, SecretKey, SessionId};
use zklora_tests::bare::{ask as ask_bare, error, open};
use zklora_tests::{Contributor, fixtures};

/// The fixture's first module.
const MODULE: usize = 0;

/// Rows that look like any others and are independent: small random numbers below the diagonal, one on it.
fn rows(width: usize) -> Vec<Vec<i16>> {
    let mut rng = StdRng::seed_from_u64(8);
    let entry = |row: usize, column: usize, rng: &mut StdRng| match column {
        _ if column < row => rng.random_range(-3..=3),
        _ => i16::from(column == row),
    };
    (0..width).map(|row| (0..width).map(|column| entry(row, column, &mut rng)).collect()).collect()
}

/// A·B from the deltas of the first rows, by forward substitution; zero where there is no row.
fn solve(rows: &[Vec<i16>], deltas: &[Vec<i64>], width: usize) -> Vec<Vec<i64>> {
    let outputs = deltas[0].len();
    let mut map = vec![vec![0i64; outputs]; width];
    for (row, delta) in deltas.iter().enumerate() {
        for j in 0..outputs {
            let known: i64 = (0..row).map(|i| i64::from(rows[row][i]) * map[i][j]).sum();
            map[row][j] = delta[j] - known;
        }
    }
    map
}

/// Whether the map predicts what the contributor itself computes for rows that were never asked for.
fn predicts(world: &Contributor, map: &[Vec<i64>]) -> bool {
    let opening = &world.state.openings[MODULE];
    let (d_in, rank, d_out) = (opening.shape().d_in(), opening.shape().rank(), opening.shape().d_out());
    let mut rng = StdRng::seed_from_u64(9);
    (0..5).all(|_| {
        let x: Vec<i64> = (0..d_in).map(|_| rng.random_range(-32767..=32767)).collect();
        let inner: Vec<i64> =
            (0..rank).map(|k| (0..d_in).map(|i| x[i] * i64::from(opening.a()[i * rank + k])).sum()).collect();
        (0..d_out).all(|j| {
            let delta: i64 = (0..rank).map(|k| inner[k] * i64::from(opening.b()[k * d_out + j])).sum();
            delta == (0..d_in).map(|i| x[i] * map[i][j]).sum::<i64>()
        })
    })
}

/// Asks for the rows one by one until the contributor refuses.
fn ask(session: &Session, rows: &[Vec<i16>]) -> (Vec<Vec<i64>>, Option<SessionError>) {
    let mut deltas = Vec::new();
    for row in rows {
        match session.forward(&[MODULE], row) {
            Ok(mut answer) => deltas.push(answer.remove(0)),
            Err(error) => return (deltas, Some(error)),
        }
    }
    (deltas, None)
}

#[test]
fn without_a_budget_as_many_rows_as_inputs_give_the_map_away() {
    let world = Contributor::with_budget(Limits::default(), 1.0);
    let rows = rows(world.d_in(MODULE));
    let session = world.session(SecretKey::generate()).unwrap();
    let (deltas, error) = ask(&session, &rows);
    assert!(error.is_none());
    let map = solve(&rows, &deltas, rows.len());
    assert!(predicts(&world, &map));
    // One row less, and it predicts nothing: the attack needs every row.
    assert!(!predicts(&world, &solve(&rows, &deltas[..rows.len() - 1], rows.len())));
}

#[test]
fn the_budget_ends_service_for_all_clients_and_sessions_together() {
    let world = Contributor::with_budget(Limits::default(), 0.25);
    let width = world.d_in(MODULE);
    let rows = rows(width);
    let (first, second) = (SecretKey::generate(), SecretKey::generate());
    let session = world.session(first).unwrap();
    assert_eq!(session.left()[MODULE], width as u64 / 4);
    let (mut deltas, error) = ask(&session, &rows[..20]);
    assert!(error.is_none());
    session.finish().unwrap();

    // Another client, who knows the first one's rows, gets the rest of the budget and no more.
    let session = world.session(second).unwrap();
    assert_eq!(session.left()[MODULE], width as u64 / 4 - 20);
    let (more, error) = ask(&session, &rows[20..]);
    deltas.extend(more);
    assert_eq!(deltas.len(), width / 4);
    let Some(SessionError::Refused { code: ErrorCode::Exposure, message }) = error else {
        panic!("{error:?}")
    };
    assert!(message.contains("0 more independent rows of its budget of 32"), "{message}");
    assert!(!predicts(&world, &solve(&rows, &deltas, width)));
    // What tells nothing new is still answered, and so are other modules.
    assert_eq!(session.forward(&[MODULE], &rows[3]).unwrap()[0], deltas[3]);
    let sum: Vec<i16> = rows[1].iter().zip(&rows[2]).map(|(a, b)| a + b).collect();
    session.forward(&[MODULE], &sum).unwrap();
    session.forward(&[MODULE + 1], &vec![5; world.d_in(MODULE + 1)]).unwrap();
    session.finish().unwrap();
}

/// A client that has opened a session of a service, without any network.
fn hello(service: &Service, state: &State, key: &SecretKey) -> SessionId {
    let mine = Nonce::random();
    let request = Request::Hello {
        version: PROTOCOL_VERSION,
        adapter: state.manifest.adapter_id(),
        base_model: *state.manifest.manifest().base_model(),
        nonce: mine,
        commitment_seed: CommitmentSeed::random(),
    };
    let (Response::Welcome { nonce, .. }, _) = service.answer(key.public(), request, vec![]).unwrap() else {
        panic!("no welcome")
    };
    let adapter = state.manifest.adapter_id();
    SessionId::derive(mine.as_bytes(), nonce.as_bytes(), &key.public(), &state.key.public(), &adapter)
}

#[test]
fn a_call_beyond_the_budget_is_refused_before_its_deltas_are_computed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let state = State::create(&path, &fixtures().join("gpt2-tiny"), &fixtures().join("lora-es")).unwrap();
    let state = Arc::new(state);
    let store = Arc::new(Store::open(&path.join(STORE), state.manifest.adapter_id()).unwrap());
    // Whoever asks this one for a delta of any module panics.
    let engines = Arc::new(Engines::new(state.manifest.clone(), &[]).unwrap());
    let config = ProverConfig {
        folder: path.clone(),
        out_dir: folder.path().join("out"),
        planner: Planner::new(Security::Standard),
        place: Place::Here,
    };
    let prover = Prover::start(state.clone(), engines.clone(), store.clone(), config).unwrap();
    // Two rows of 128.
    let service = Service::new(state.clone(), engines, Limits::default(), store, 0.02, prover).unwrap();
    let key = SecretKey::generate();
    let session = hello(&service, &state, &key);
    let forward = |rows: usize| {
        let activations: Vec<i16> = (0..rows * 128).map(|i| i16::from(i % 129 == 0)).collect();
        let request = Request::Forward { session, call: 0, rows, modules: vec![MODULE] };
        service.answer(key.public(), request, activations_to_bytes(&activations))
    };
    let refused = forward(3).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Exposure);
    assert!(refused.message.ends_with("and this call has more"), "{}", refused.message);
    assert_eq!(forward(100).unwrap_err(), refused, "by how much is not told");
    assert!(service.exposures().iter().all(|module| module.rows == 0));
    let (calls, most) = service.overview().exposure_refusals;
    assert_eq!((calls, most.map(|most| (most.client, most.calls))), (2, Some((key.public(), 2))));
    // One that fits would be computed.
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| forward(2))).is_err());
}

#[test]
fn clients_who_only_send_what_is_refused_take_nothing_from_others() {
    let world = Contributor::with_budget(Limits::default(), 0.25);
    let width = world.d_in(MODULE);
    let rows = rows(width);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let world = &world;
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed);
                let (connection, session) = open(world, &SecretKey::generate());
                let many: Vec<i16> = (0..4000 * width).map(|_| rng.random_range(-9999..=9999)).collect();
                let many = activations_to_bytes(&many);
                for _ in 0..5 {
                    let request = Request::Forward { session, call: 0, rows: 4000, modules: vec![MODULE] };
                    let (code, message) = error(ask_bare(world, &connection, &request, &many));
                    assert_eq!(code, ErrorCode::Exposure, "{message}");
                }
            });
        }
        // Meanwhile somebody gets all of the budget, row by row.
        let session = world.session(SecretKey::generate()).unwrap();
        let (deltas, refused) = ask(&session, &rows);
        assert!(refused.is_some());
        assert_eq!(deltas.len(), width / 4);
        session.finish().unwrap();
    });
    let (calls, most) = world.service.overview().exposure_refusals;
    assert_eq!((calls, most.unwrap().calls), (8 * 5 + 1, 5));
    assert_eq!(world.service.exposures()[MODULE].rows, width / 4);
}
