use zklora_proto::{AdapterId, BaseModelDigest, Commitment, ModuleEntry, ModuleShape, SecretKey, SessionId};

use super::*;

/// Two modules of the same inputs, with one budget.
pub(super) struct World {
    folder: tempfile::TempDir,
    manifest: Manifest,
    share: f64,
    calls: u64,
}

const SESSION: SessionId = SessionId::from_bytes([1; 32]);

impl World {
    /// Four inputs, a budget of half.
    fn new() -> Self {
        Self::with(4, 0.5)
    }

    pub(super) fn with(d_in: usize, share: f64) -> Self {
        let entry = |name: &str| {
            let commitment = Commitment::from_elements([0; 4]).unwrap();
            ModuleEntry::new(name.into(), ModuleShape::new(d_in, 1, 4).unwrap(), 1.0, commitment).unwrap()
        };
        let manifest = Manifest::new(
            SecretKey::generate().public(),
            BaseModelDigest::from_bytes([0; 32]),
            0,
            vec![entry("m.0"), entry("m.1")],
        )
        .unwrap();
        let world = Self { folder: tempfile::tempdir().unwrap(), manifest, share, calls: 0 };
        Store::create(&world.path(), AdapterId::from_bytes([0; 32]), vec![Allowance::default(); 2]).unwrap();
        world
            .store()
            .begin(
                SESSION,
                SecretKey::generate().public(),
                0,
                zklora_circuit::parameters::Security::Standard,
                &zklora_proto::CommitmentSeed::random(),
            )
            .unwrap();
        world
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    fn store(&self) -> Store {
        Store::open(&self.path(), AdapterId::from_bytes([0; 32])).unwrap()
    }

    pub(super) fn open(&self, boot: &[u8]) -> (Store, Ledger) {
        let store = self.store();
        let ledger = Ledger::open(&store, &self.manifest, self.share, boot).unwrap();
        (store, ledger)
    }

    /// Asks for rows, and says how many of each module then count.
    pub(super) fn ask(
        &mut self,
        (store, ledger): &(Store, Ledger),
        modules: &[usize],
        rows: &[i16],
    ) -> Result<[usize; 2], Refused> {
        let charge = ledger.charge(ledger.consider(modules, rows)?, rows)?;
        let width = self.manifest.modules()[0].shape().d_in();
        let call = (modules, rows.len() / width, rows);
        charge.record(rows, |exposed| store.record(SESSION, self.calls, call, exposed)).unwrap();
        self.calls += 1;
        Ok(counted(ledger))
    }
}

pub(super) fn counted(ledger: &Ledger) -> [usize; 2] {
    let rows: Vec<usize> = ledger.exposures().iter().map(|exposure| exposure.rows).collect();
    rows.try_into().unwrap()
}

#[test]
fn independent_rows_count_for_each_module_and_the_budget_ends_service() {
    let mut world = World::new();
    let open = world.open(b"boot");
    assert_eq!(world.ask(&open, &[0], &[1, 0, 0, 0]), Ok([1, 0]));
    assert_eq!(world.ask(&open, &[1, 0], &[1, 0, 0, 0, 2, 0, 0, 0]), Ok([1, 1]));
    assert_eq!(world.ask(&open, &[0], &[1, 1, 0, 0, 0, 0, 0, 0]), Ok([2, 1]));
    let refused = world.ask(&open, &[0, 1], &[0, 0, 1, 0]).unwrap_err();
    let Refused::Exhausted(refused) = refused else { panic!("{refused}") };
    assert_eq!((refused.module.as_str(), refused.left), ("m.0", 0));
    assert!(refused.to_string().contains("0 more independent rows of its budget of 2"), "{refused}");
    // How many more a call has would tell what it depends on: these have one, and two.
    let more = |rows: &[i16]| open.1.consider(&[0], rows).err().unwrap();
    assert_eq!(more(&[0, 0, 1, 0]), more(&[0, 0, 1, 0, 0, 0, 0, 1]));
    // Nothing of a refused call counts, and what tells nothing new is still answered.
    assert_eq!(world.ask(&open, &[0], &[-7, 30, 0, 0]), Ok([2, 1]));
    assert_eq!(world.ask(&open, &[1], &[0, 0, 1, 0]), Ok([2, 2]));
}

#[test]
fn a_call_holds_up_nobody_while_it_is_looked_at_and_is_looked_at_again_if_others_were_counted() {
    let mut world = World::with(8, 0.5);
    let open = world.open(b"boot");
    let unit = |i: usize| -> Vec<i16> { (0..8).map(|j| i16::from(i == j)).collect() };
    // Three rows, of which others ask for one before they are counted, and then for one more than fits.
    let mine = [unit(0), unit(1), unit(2)].concat();
    let considered = open.1.consider(&[0, 1], &mine).unwrap();
    assert_eq!(world.ask(&open, &[0], &[unit(1), unit(1)].concat()), Ok([1, 0]));
    let charge = open.1.charge(considered, &mine).unwrap();
    let counted: Vec<_> =
        charge.accounts.iter().map(|(_, _, addition)| addition.independent.clone()).collect();
    assert_eq!(counted, [vec![0, 2], vec![0, 1, 2]]);
    // One that was given up counts nothing.
    drop(charge);
    let considered = open.1.consider(&[0], &mine).unwrap();
    let dependent = open.1.consider(&[0], &unit(1)).unwrap();
    world.ask(&open, &[0], &[unit(3), unit(4)].concat()).unwrap();
    assert!(matches!(open.1.charge(considered, &mine), Err(Refused::Exhausted(_))));
    assert!(open.1.charge(dependent, &unit(1)).is_ok());
}

#[test]
fn calls_at_once_count_no_row_twice_and_never_more_than_the_budget() {
    let world = World::with(64, 0.5);
    let (store, ledger) = world.open(b"boot");
    let calls = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (store, ledger, calls) = (&store, &ledger, &calls);
            scope.spawn(move || {
                for step in 0..40usize {
                    // Neighbours ask for the same rows, of both modules or of one.
                    let first = (thread / 2 * 11 + step) % 62;
                    let rows: Vec<i16> = (0..2 * 64).map(|i| i16::from(i % 64 == first + i / 64)).collect();
                    let modules: &[usize] = if thread % 2 == 0 { &[1, 0] } else { &[0] };
                    let charge = ledger
                        .consider(modules, &rows)
                        .and_then(|considered| ledger.charge(considered, &rows));
                    if let Ok(charge) = charge {
                        let number = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        charge
                            .record(&rows, |exposed| {
                                store.record(SESSION, number, (modules, 2, &rows), exposed)
                            })
                            .unwrap();
                    }
                }
            });
        }
    });
    let rows = counted(&ledger);
    assert!(rows.iter().all(|&rows| rows > 16 && rows <= 32), "{rows:?}");
    drop((store, ledger));
    // What is on the disk is independent, in order and whole.
    assert_eq!(counted(&world.open(b"boot").1), rows);
}

#[test]
fn modules_that_will_soon_have_to_reserve_along() {
    let mut world = World::new();
    let open = world.open(b"boot");
    world.ask(&open, &[0], &[1, 0, 0, 0]).unwrap();
    // As if RESERVE rows had been answered since.
    open.1.modules[0].account.lock().unwrap().reserved = 1;
    world.ask(&open, &[1], &[1, 0, 0, 0]).unwrap();
    for module in 0..2 {
        assert_eq!(open.1.modules[module].account.lock().unwrap().reserved, 2);
        assert_eq!(open.0.allowances(b"boot").unwrap().0[module].reserved, 2);
        assert_eq!(open.0.exposed_rows(module).unwrap().len(), 1);
    }
}

#[test]
fn what_was_answered_is_remembered() {
    let mut world = World::new();
    let open = world.open(b"boot");
    world.ask(&open, &[0], &[1, 2, 3, 4]).unwrap();
    // Killed: nothing is closed, and the same machine goes on.
    drop(open);
    let open = world.open(b"boot");
    assert_eq!(counted(&open.1), [1, 0]);
    assert_eq!(world.ask(&open, &[0], &[2, 4, 6, 8]), Ok([1, 0]));
    // Power lost: all that was reserved counts, up to the budget.
    drop(open);
    let open = world.open(b"another boot");
    assert_eq!(counted(&open.1), [2, 0]);
    assert_eq!(open.1.exposures()[0].lost, 1);
    assert!(world.ask(&open, &[0], &[0, 0, 0, 1]).is_err());
    assert_eq!(world.ask(&open, &[0], &[1, 2, 3, 4]), Ok([2, 0]));
    assert_eq!(world.ask(&open, &[1], &[1, 2, 3, 4]), Ok([2, 1]));
    // Stopped in order: the next boot loses nothing.
    open.1.close(&open.0).unwrap();
    assert_eq!(world.ask(&open, &[1], &[1, 2, 3, 4]), Err(Refused::Closed));
    drop(open);
    assert_eq!(counted(&world.open(b"third boot").1), [2, 1]);
}

#[test]
fn a_database_that_has_lost_rows_counts_as_all_that_was_reserved() {
    let cut_at =
        |share: f64| move |bytes: &mut Vec<u8>| bytes.truncate((bytes.len() as f64 * share) as usize);
    let half = |bytes: &mut Vec<u8>| cut_at(0.5)(bytes);
    let all = |bytes: &mut Vec<u8>| cut_at(0.0)(bytes);
    let last_bit = |bytes: &mut Vec<u8>| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    };
    let first_page = |bytes: &mut Vec<u8>| bytes[100] ^= 1;
    let none = |_: &mut Vec<u8>| ();
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>), [usize; 2]);
    let damages: [Damage<'_>; 5] = [
        ("nothing", &none, [2, 0]),
        ("the last bit", &last_bit, [8, 0]),
        ("a half", &half, [8, 0]),
        ("all of it", &all, [8, 0]),
        ("its beginning", &first_page, [8, 0]),
    ];
    for (what, damage, expected) in damages {
        // A budget of all sixteen: as many are reserved as there may be. Half of it is left for what comes after.
        let mut world = World::with(16, 0.5);
        let open = world.open(b"boot");
        let files = Store::files(&world.path());
        // The log is moved into the file from time to time, which is left out here.
        let before = std::fs::read(&files[0]).unwrap();
        for row in 0..2 {
            let unit: Vec<i16> = (0..16).map(|i| i16::from(i == row)).collect();
            world.ask(&open, &[0], &unit).unwrap();
        }
        // Killed: nothing is closed.
        let [mut log, reserved] = [&files[1], &files[3]].map(|file| std::fs::read(file).unwrap());
        drop(open);
        damage(&mut log);
        for (file, bytes) in [(&files[0], before), (&files[1], log), (&files[3], reserved)] {
            std::fs::write(file, bytes).unwrap();
            std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }
        let _ = std::fs::remove_file(&files[2]);
        // The same boot of the machine: nothing but the rows themselves tells.
        let open = world.open(b"boot");
        assert_eq!(counted(&open.1), expected, "{what}");
        assert_eq!(open.0.allowances(b"boot").unwrap().1, None, "told once");
        drop(open);
        assert_eq!(counted(&world.open(b"boot").1), expected, "{what}, opened again");
    }
}
