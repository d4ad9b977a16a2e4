use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use zklora_circuit::parameters::Security;
use zklora_proto::identity::Purpose;
use zklora_proto::packing::activations_to_bytes;
use zklora_proto::{CommitmentSeed, SecretKey, SessionId};

use super::*;

fn adapter(byte: u8) -> AdapterId {
    AdapterId::from_bytes([byte; 32])
}

#[test]
fn a_session_survives_from_its_first_call_to_its_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    Store::create(&path, adapter(1), vec![Allowance::default(); 4]).unwrap();
    // Opened anew for each step, as after a crash.
    let store = || Store::open(&path, adapter(1)).unwrap();
    let (id, key) = (SessionId::from_bytes([7; 32]), SecretKey::generate());
    let seed = CommitmentSeed::random();
    store().begin(id, key.public(), 99, Security::Compact, &seed).unwrap();
    let call = (&[3, 1][..], 2, &[1i16, -2, 3, -32767][..]);
    store().record(id, 0, call, &[]).unwrap();
    assert!(store().record(id, 0, call, &[]).is_err(), "a call is recorded once");
    let exposed = Exposed { module: 3, first: 0, rows: vec![&[1, -2]], reserve: Some(5) };
    store().record(id, 1, (&[3], 1, &[1, -2]), &[exposed]).unwrap();

    let calls = || {
        let mut calls = Vec::new();
        let visited = store().calls(id, |call| {
            calls.push(call);
            Ok(())
        });
        visited.unwrap();
        calls
    };
    assert_eq!(calls()[0], StoredCall { modules: vec![3, 1], rows: 2, activations: vec![1, -2, 3, -32767] });
    assert_eq!(calls().len(), 2);
    let exposure = || {
        let (store, none) = (store(), Allowance::default());
        assert_eq!(store.exposed_rows(3).unwrap(), [[1, -2]]);
        assert_eq!(store.exposed_rows(1).unwrap(), [[0; 2]; 0]);
        let reserved = Allowance { reserved: 5, lost: 0 };
        assert_eq!(store.allowances(b"boot").unwrap(), (vec![none, none, none, reserved], None));
    };
    exposure();

    let signature = key.sign(Purpose::ReceiptContributor, b"receipt");
    store().sign(id, b"receipt", &signature).unwrap();
    assert_eq!(store().sessions_at(Stage::Signed).unwrap().len(), 1);
    store().finish(id, &signature).unwrap();
    let session = store().session(id).unwrap().unwrap();
    assert_eq!((session.stage, session.client, session.started), (Stage::Finished, key.public(), 99));
    assert_eq!(session.receipt.as_deref(), Some(&b"receipt"[..]));
    assert_eq!((session.by_contributor, session.by_client), (Some(signature), Some(signature)));
    assert_eq!((session.seed, session.security), (Some(seed), Security::Compact));
    store().proving(id).unwrap();
    assert_eq!(calls(), [], "the job folder has them");
    store().proved(id, 1234).unwrap();
    let session = store().session(id).unwrap().unwrap();
    assert_eq!((session.stage, session.bundle_bytes), (Stage::Proved, Some(1234)));
    assert_eq!(session.seed, None, "nobody asks for it any more");
    // The transcript is in the bundle now; the ledger keeps its rows.
    exposure();
}

#[test]
fn the_file_is_closed_to_others_and_of_one_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    Store::create(&path, adapter(1), vec![Allowance::default()]).unwrap();
    assert!(Store::create(&path, adapter(1), vec![]).is_err(), "one that is there is not made anew");
    let store = Store::open(&path, adapter(1)).unwrap();
    store
        .begin(
            SessionId::from_bytes([7; 32]),
            SecretKey::generate().public(),
            0,
            Security::Standard,
            &CommitmentSeed::random(),
        )
        .unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o77, 0, "{:?}", entry.file_name());
    }
    drop(store);
    let error = Store::open(&path, adapter(2)).err().unwrap();
    assert!(error.to_string().contains("of another adapter"), "{error}");
}

fn made(path: &Path) -> Store {
    Store::create(path, adapter(1), vec![Allowance::default()]).unwrap();
    Store::open(path, adapter(1)).unwrap()
}

#[test]
fn what_is_forgotten_is_in_no_byte_of_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let store = made(&path);
    let key = SecretKey::generate();
    let signature = key.sign(Purpose::ReceiptContributor, b"receipt");
    let files = || -> Vec<u8> {
        let files = std::fs::read_dir(folder.path()).unwrap();
        files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    };
    // Enough for pages to be split and joined, with receipts of a few modules and of many, some of which need pages of their own.
    let sessions: Vec<_> = (0..300)
        .map(|_| {
            (SessionId::from_bytes(rand::random()), CommitmentSeed::random(), rand::random::<[u8; 32]>())
        })
        .collect();
    for (id, seed, _) in &sessions {
        store.begin(*id, key.public(), 0, Security::Standard, seed).unwrap();
    }
    let row = |secret: &[u8; 32]| -> Vec<i16> { secret.iter().map(|&byte| byte.into()).collect() };
    for (id, _, secret) in &sessions {
        store.record(*id, 0, (&[0], 40, &row(secret).repeat(40)), &[]).unwrap();
    }
    let found = |bytes: &[u8]| -> (usize, usize) {
        let places: std::collections::HashSet<&[u8]> = bytes.windows(32).collect();
        let calls: std::collections::HashSet<&[u8]> = bytes.windows(64).collect();
        let seeds = sessions.iter().filter(|(_, seed, _)| places.contains(&seed.as_bytes()[..])).count();
        let rows =
            sessions.iter().filter(|(_, _, secret)| calls.contains(&activations_to_bytes(&row(secret))[..]));
        (seeds, rows.count())
    };
    assert_eq!(found(&files()), (300, 300), "what is kept is found where it is looked for");
    for (number, (id, ..)) in sessions.iter().enumerate().filter(|(number, _)| number % 5 != 0) {
        store.sign(*id, &vec![b'r'; number * 37 % 6000], &signature).unwrap();
    }
    for (number, (id, ..)) in sessions.iter().enumerate() {
        match number % 5 {
            0 => store.abandon(*id).unwrap(),
            _ => {
                store.finish(*id, &signature).unwrap();
                store.proving(*id).unwrap();
            }
        }
    }
    // The log is cut by a thread of its own, as soon as nobody reads it.
    let mut left = (300, 300);
    for _ in 0..600 {
        left = found(&files());
        if left == (0, 0) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(left, (0, 0));
    assert_eq!(store.sessions_at(Stage::Proving).unwrap().len(), 240);
    drop(store);
    assert_eq!(found(&files()), (0, 0));
}

#[test]
fn calls_that_a_killed_process_has_not_deleted_are_deleted_later() {
    let folder = tempfile::tempdir().unwrap();
    let store = made(&folder.path().join("store.sqlite"));
    let (key, ids) = (SecretKey::generate(), [1, 2].map(|byte| SessionId::from_bytes([byte; 32])));
    for id in ids {
        store.begin(id, key.public(), 0, Security::Standard, &CommitmentSeed::random()).unwrap();
        for number in 0..20 {
            store.record(id, number, (&[0], 1, &[1, 2]), &[]).unwrap();
        }
    }
    store.db().execute("UPDATE session SET state = 'proving' WHERE id = ?", [ids[0].as_bytes()]).unwrap();
    store.forget_leftovers().unwrap();
    let calls = ids.map(|id| {
        let mut calls = 0;
        let visited = store.calls(id, |_| {
            calls += 1;
            Ok(())
        });
        visited.unwrap();
        calls
    });
    assert_eq!(calls, [0, 20]);
}

/// For the owner's eyes alone, as the store makes its files.
fn close(path: &Path) {
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// Whoever can change the ledger can have the budget spent again, and its rows are what clients sent.
#[test]
fn a_store_that_others_can_read_or_change_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    Store::create(&path, adapter(1), vec![Allowance::default()]).unwrap();
    // Held open, so that its log is there.
    let _open = Store::open(&path, adapter(1)).unwrap();
    let refused = || Store::open(&path, adapter(1)).err().map(|error| error.to_string());
    for file in Store::files(&path) {
        for mode in [0o644, 0o660, 0o606, 0o601] {
            std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let said = refused().unwrap_or_default();
            let expected = format!("{} has mode {mode:04o}, expected 0600", file.display());
            assert!(said.starts_with(&expected), "{said:?} should begin with {expected:?}");
        }
        close(&file);
    }
    for mode in [0o777, 0o770, 0o702] {
        std::fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let said = refused().unwrap_or_default();
        assert!(said.contains("others may change what is in it; run `chmod 700"), "{said}");
    }
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(refused(), None, "to list its names is no harm");
}

/// `prove` and `exposure` open it while a daemon answers. What that has put into the log and not yet into the file is not missing.
#[test]
fn a_store_that_somebody_writes_to_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    Store::create(&path, adapter(1), vec![Allowance::default()]).unwrap();
    let writer = Store::open(&path, adapter(1)).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let key = SecretKey::generate().public();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let id = SessionId::from_bytes(rand::random());
                writer.begin(id, key, 0, Security::Standard, &CommitmentSeed::random()).unwrap();
                // Some pages at once.
                writer.record(id, 0, (&[0], 1, &vec![7; 4000]), &[]).unwrap();
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        });
        let opened = (0..100).map(|_| Store::open(&path, adapter(1)).map(drop)).find(Result::is_err);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        opened.unwrap_or(Ok(())).unwrap();
    });
}

#[test]
fn a_store_that_is_not_there_or_not_whole_is_not_taken_for_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let missing = |error: anyhow::Error| match error.downcast::<Unusable>().unwrap() {
        Unusable::Missing { path } => path,
        other => panic!("{other}"),
    };
    assert_eq!(missing(Store::open(&path, adapter(1)).err().unwrap()), path);
    assert!(!path.exists(), "to look for it makes none");
    Store::create(&path, adapter(1), vec![Allowance::default()]).unwrap();
    let [database, _, _, reserved] = Store::files(&path);
    {
        // Some pages of rows.
        let (store, id) = (Store::open(&path, adapter(1)).unwrap(), SessionId::from_bytes([7; 32]));
        store
            .begin(id, SecretKey::generate().public(), 0, Security::Standard, &CommitmentSeed::random())
            .unwrap();
        for number in 0..20 {
            let row = vec![number as i16; 2000];
            let exposed = Exposed { module: 0, first: number, rows: vec![&row], reserve: Some(64) };
            store.record(id, number as u64, (&[0], 1, &row), &[exposed]).unwrap();
        }
    }
    let whole = [&database, &reserved].map(|file| std::fs::read(file).unwrap());
    let [of_database, of_reserved] = &whole;
    let damaged = |file: &Path, bytes: &[u8]| {
        std::fs::write(file, bytes).unwrap();
        let error = Store::open(&path, adapter(1)).err().unwrap_or_else(|| panic!("{} bytes", bytes.len()));
        match error.downcast::<Unusable>().unwrap() {
            Unusable::Damaged { path, .. } => assert_eq!(path, file),
            other => panic!("{other}"),
        }
    };
    for length in [0, 1, 100, 4096, of_database.len() / 2, of_database.len() - 4096, of_database.len() - 1] {
        damaged(&database, &of_database[..length]);
    }
    damaged(&database, b"no database, though it has some bytes");
    // A page that was never written, and a database of something else.
    let mut hole = of_database.clone();
    hole[of_database.len() / 2..][..8192].fill(0);
    std::fs::write(&database, &hole).unwrap();
    let open = Store::open(&path, adapter(1));
    assert!(open.is_err() || open.unwrap().exposed_rows(0).is_ok_and(|rows| rows.len() == 20));
    std::fs::remove_file(&database).unwrap();
    Connection::open(&database)
        .unwrap()
        .execute_batch("CREATE TABLE fact (x); PRAGMA user_version = 4")
        .unwrap();
    close(&database);
    let other = std::fs::read(&database).unwrap();
    damaged(&database, &other);

    std::fs::write(&database, of_database).unwrap();
    for length in [0, 1, 17, of_reserved.len() / 2, of_reserved.len() - 2] {
        damaged(&reserved, &of_reserved[..length]);
    }
    let mut flipped = of_reserved.clone();
    flipped[60] ^= 1;
    damaged(&reserved, &flipped);
    std::fs::remove_file(&reserved).unwrap();
    assert_eq!(missing(Store::open(&path, adapter(1)).err().unwrap()), reserved);

    std::fs::write(&reserved, of_reserved).unwrap();
    close(&reserved);
    assert_eq!(Store::open(&path, adapter(1)).unwrap().exposed_rows(0).unwrap().len(), 20);
    let db = Connection::open(&database).unwrap();
    db.execute_batch("PRAGMA user_version = 3").unwrap();
    let error = Store::open(&path, adapter(1)).err().unwrap().to_string();
    assert!(error.contains("another version") && error.contains("layout 3, expected 4"), "{error}");
}
