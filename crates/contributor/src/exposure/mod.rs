//! How much of A·B the answered rows give away, and when to stop.
//!
//! A delta is linear in its activations. Whoever has the deltas of rows that span all of the input space computes A·B by linear
//! algebra, whatever is proved and however it is hidden. So each module has a budget: a share of d_in. Rows that are linearly
//! independent of all that were answered before count against it, over all sessions and clients; repeated and dependent rows,
//! which tell nothing new, do not.
//!
//! The ledger is on disk before an answer leaves. Rows are written to a database that survives the death of the process. To
//! wait for the disk at every call would cost more than the answer; instead the ledger *reserves* rows ahead, in a file of its own,
//! and waits for the disk then. After a loss of power, of which the kernel's boot id tells, or if the database has fewer rows than it
//! had, everything that was reserved counts as answered.

mod basis;
mod refusals;
mod renew;

use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::Rng;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize};
use tracing::warn;
use zklora_proto::Manifest;

pub use self::basis::{Addition, Basis, Prime};
pub use self::refusals::{MostRefused, Refusals};
pub use self::renew::renew;
use crate::store::{Allowance, Exposed, Store};

/// The share of d_in that is served unless told otherwise.
///
/// A half would be too much. Weights have 12 bits and activations 16, so that one row can be chosen to read two rows of A at once:
/// some d_in/2 chosen rows recover A·B. A quarter leaves a factor of two to that.
pub const DEFAULT_SHARE: f64 = 0.25;

/// Rows that are reserved at once, at most.
const RESERVE: usize = 64;
/// How often a call is looked at again because others were counted meanwhile, before the module is locked for it.
const ATTEMPTS: usize = 3;

/// The ledger of all modules.
pub struct Ledger {
    modules: Vec<Module>,
}

struct Module {
    name: String,
    width: usize,
    budget: usize,
    account: Mutex<Account>,
}

struct Account {
    basis: Basis,
    reserved: usize,
    lost: usize,
    closed: bool,
}

impl Account {
    fn charged(&self) -> usize {
        self.basis.rank() + self.lost
    }
}

impl Module {
    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self, account: &Account) -> usize {
        self.budget.saturating_sub(account.charged())
    }

    /// Rows as they are looked at without a lock: the space so far, and how many rows more it may have.
    fn at_this_moment(&self) -> Result<(Basis, usize), Refused> {
        let account = self.lock();
        if account.closed {
            return Err(Refused::Closed);
        }
        Ok((account.basis.clone(), self.left(&account)))
    }

    fn exhausted(&self, left: usize) -> Refused {
        let (module, budget, d_in) = (self.name.clone(), self.budget, self.width);
        Refused::Exhausted(Exhausted { module, left, budget, d_in })
    }

    /// What rows would add to this space, if it may have so many more.
    fn consider(&self, basis: &Basis, left: usize, activations: &[i16]) -> Result<Addition, Refused> {
        basis.consider(activations, left).ok_or_else(|| self.exhausted(left))
    }

    /// The same of rows that were looked at before the space grew. Those that were dependent then still are.
    fn reconsider(
        &self,
        basis: &Basis,
        left: usize,
        activations: &[i16],
        before: &Addition,
    ) -> Result<Addition, Refused> {
        let row = |&index: &usize| &activations[index * self.width..(index + 1) * self.width];
        let rows: Vec<i16> = before.independent.iter().flat_map(row).copied().collect();
        let mut addition = self.consider(basis, left, &rows)?;
        addition.independent.iter_mut().for_each(|index| *index = before.independent[*index]);
        Ok(addition)
    }
}

/// What is known of one module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// The module.
    pub module: String,
    /// Independent rows that were answered, or have to be taken for it.
    pub rows: usize,
    /// Of them, those that were reserved when power was lost, or when the record of them was.
    pub lost: usize,
    /// Rows that may be answered in all.
    pub budget: usize,
    /// Rows that would give everything away.
    pub d_in: usize,
}

impl Exposure {
    /// Independent rows that may still be answered, whatever they are: all there can be if the budget allows to give everything
    /// away.
    pub fn left(&self) -> usize {
        if self.gives_away() { self.d_in } else { self.budget.saturating_sub(self.rows) }
    }

    /// Whether the budget allows as many rows as give A·B away.
    fn gives_away(&self) -> bool {
        self.budget >= self.d_in
    }

    /// What has to be said of budgets that end nothing.
    pub fn warning(exposures: &[Self]) -> Option<String> {
        let modules: Vec<&Self> = exposures.iter().filter(|exposure| exposure.gives_away()).collect();
        let first = modules.first()?;
        Some(format!(
            "the exposure budget ends nothing: {} of {} modules may answer d_in independent rows or more, which give the adapter \
             away; {} may answer {}, and {} are enough",
            modules.len(),
            exposures.len(),
            first.module,
            first.budget,
            first.d_in
        ))
    }
}

/// Why a call is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It would go beyond a budget.
    #[error(transparent)]
    Exhausted(Exhausted),
    /// The ledger is closed.
    #[error("the contributor is stopping")]
    Closed,
}

/// A call that would go beyond a budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "module {module} may answer {left} more independent rows of its budget of {budget} ({d_in} would give the adapter away), \
     and this call has more"
)]
pub struct Exhausted {
    /// The module.
    pub module: String,
    /// Rows that are left.
    pub left: usize,
    /// Rows that may be answered in all.
    pub budget: usize,
    /// Rows that would give everything away.
    pub d_in: usize,
}

/// A call that fitted the budgets when it was looked at, and what it would add to each of its modules, in their order.
pub struct Considered(Vec<(usize, Addition)>);

/// A call that fits the budgets, with the modules' accounts locked until it is recorded or given up.
pub struct Charge<'a> {
    ledger: &'a Ledger,
    accounts: Vec<(usize, MutexGuard<'a, Account>, Addition)>,
    budgets: Vec<usize>,
}

impl Ledger {
    /// The ledger of a store, with this share of each module's d_in as budget.
    ///
    /// `boot` is the kernel's boot id. If it is another than that of the last time, and the ledger was not closed, then power
    /// was lost. A store that has fewer rows than were answered is taken for the same.
    pub fn open(store: &Store, manifest: &Manifest, share: f64, boot: &[u8]) -> anyhow::Result<Self> {
        let (ledger, allowances) = Self::read(store, manifest, share, boot)?;
        store.open_ledger(boot, allowances)?;
        Ok(ledger)
    }

    /// The ledger as it would be opened. Fails with [`Unusable`](crate::store::Unusable) if it is not whole.
    fn read(
        store: &Store,
        manifest: &Manifest,
        share: f64,
        boot: &[u8],
    ) -> anyhow::Result<(Self, Vec<Allowance>)> {
        let (allowances, lost) = allowances(store, manifest, boot)?;
        if let Some(why) = lost {
            warn!("{why}: all rows that were reserved count as answered");
        }
        let open = |index: usize| {
            let entry = &manifest.modules()[index];
            let width = entry.shape().d_in();
            let rows = store.exposed_rows(index)?;
            let damaged = || store.damaged(format!("the rows of module {}", entry.name()));
            anyhow::ensure!(rows.iter().all(|row| row.len() == width), damaged());
            // Another one for each module and each start: it is written nowhere.
            let prime = Prime::random(&mut rand::make_rng::<rand::rngs::StdRng>());
            let (mut basis, count, rows) = (Basis::new(prime, width), rows.len(), rows.concat());
            let addition =
                basis.consider(&rows, width).filter(|addition| addition.independent.len() == count);
            basis.add(&rows, addition.ok_or_else(damaged)?);
            let Allowance { reserved, lost } = allowances[index];
            let budget = budget(share, width);
            let account = Mutex::new(Account { basis, reserved, lost, closed: false });
            Ok(Module { name: entry.name().into(), width, budget, account })
        };
        let modules =
            (0..manifest.modules().len()).into_par_iter().map(open).collect::<anyhow::Result<_>>()?;
        Ok((Self { modules }, allowances))
    }

    /// What a store says of every module, without opening the ledger.
    pub fn report(
        store: &Store,
        manifest: &Manifest,
        share: f64,
        boot: &[u8],
    ) -> anyhow::Result<Vec<Exposure>> {
        let (allowances, _) = allowances(store, manifest, boot)?;
        let modules = manifest.modules().iter().zip(allowances).enumerate();
        modules
            .map(|(index, (entry, Allowance { lost, .. }))| {
                let d_in = entry.shape().d_in();
                Ok(Exposure {
                    module: entry.name().into(),
                    rows: store.exposed_rows(index)?.len() + lost,
                    lost,
                    budget: budget(share, d_in),
                    d_in,
                })
            })
            .collect()
    }

    /// Ends the ledger in order: what is being charged is recorded, nothing more is charged, and nothing that was reserved is open.
    pub fn close(&self, store: &Store) -> anyhow::Result<()> {
        for module in &self.modules {
            module.lock().closed = true;
        }
        store.close_ledger()
    }

    /// Whether a call fits the budgets of its modules at this moment. Takes as long as the arithmetic does, and locks nothing
    /// meanwhile.
    pub fn consider(&self, modules: &[usize], activations: &[i16]) -> Result<Considered, Refused> {
        // In one order, so that two calls never wait for each other when they lock.
        let mut ordered = modules.to_vec();
        ordered.sort_unstable();
        let consider = |index: usize| {
            let module = &self.modules[index];
            let (basis, left) = module.at_this_moment()?;
            Ok((index, module.consider(&basis, left, activations)?))
        };
        ordered.into_iter().map(consider).collect::<Result<_, _>>().map(Considered)
    }

    /// Whether a call that was considered still fits the budgets. The modules are locked until the charge is dropped.
    pub fn charge(
        &self,
        Considered(mut additions): Considered,
        activations: &[i16],
    ) -> Result<Charge<'_>, Refused> {
        for _ in 0..ATTEMPTS {
            if let Some(charge) = self.charge_unchanged(&mut additions)? {
                return Ok(charge);
            }
            for (index, addition) in &mut additions {
                let module = &self.modules[*index];
                let (basis, left) = module.at_this_moment()?;
                if is_outdated(addition, &basis) {
                    *addition = module.reconsider(&basis, left, activations, addition)?;
                }
            }
        }
        // Others are counted all the time. Each spends a row of the budget, so that this comes to an end.
        let mut charge = Charge { ledger: self, accounts: Vec::new(), budgets: Vec::new() };
        for (index, mut addition) in additions {
            let module = &self.modules[index];
            let account = module.lock();
            if account.closed {
                return Err(Refused::Closed);
            }
            if is_outdated(&addition, &account.basis) {
                addition =
                    module.reconsider(&account.basis, module.left(&account), activations, &addition)?;
            }
            charge.accounts.push((index, account, addition));
            charge.budgets.push(module.budget);
        }
        Ok(charge)
    }

    /// Locks the modules, if nothing was counted in them since the call was looked at.
    fn charge_unchanged(
        &self,
        additions: &mut Vec<(usize, Addition)>,
    ) -> Result<Option<Charge<'_>>, Refused> {
        let mut accounts = Vec::with_capacity(additions.len());
        for (index, addition) in additions.iter() {
            let account = self.modules[*index].lock();
            if account.closed {
                return Err(Refused::Closed);
            }
            if is_outdated(addition, &account.basis) {
                return Ok(None);
            }
            accounts.push(account);
        }
        let budgets = additions.iter().map(|(index, _)| self.modules[*index].budget).collect();
        let accounts = std::mem::take(additions)
            .into_iter()
            .zip(accounts)
            .map(|((index, addition), account)| (index, account, addition))
            .collect();
        Ok(Some(Charge { ledger: self, accounts, budgets }))
    }

    /// Modules beside those of a charge, and not in use, that have answered something and have less than half of a reservation left,
    /// with what they would reserve next.
    fn soon_exhausted(
        &self,
        charged: &[(usize, MutexGuard<'_, Account>, Addition)],
    ) -> Vec<(usize, MutexGuard<'_, Account>, usize)> {
        let others =
            self.modules.iter().enumerate().filter(|(index, _)| charged.iter().all(|(c, ..)| c != index));
        others
            // Never waited for, so that two charges do not wait for each other.
            .filter_map(|(index, module)| Some((index, module.budget, module.account.try_lock().ok()?)))
            .filter_map(|(index, budget, account)| {
                let rows = account.charged();
                let reserve = budget.min(rows + RESERVE);
                let soon = rows > 0 && account.reserved < rows + RESERVE / 2 && reserve > account.reserved;
                soon.then_some((index, account, reserve))
            })
            .collect()
    }

    /// The state of every module.
    pub fn exposures(&self) -> Vec<Exposure> {
        self.modules
            .iter()
            .map(|module| {
                let account = module.lock();
                Exposure {
                    module: module.name.clone(),
                    rows: account.charged(),
                    lost: account.lost,
                    budget: module.budget,
                    d_in: module.width,
                }
            })
            .collect()
    }
}

/// What a store allows each module of a manifest, and why it may know less than was answered, if so.
fn allowances(
    store: &Store,
    manifest: &Manifest,
    boot: &[u8],
) -> anyhow::Result<(Vec<Allowance>, Option<&'static str>)> {
    let allowances = store.allowances(boot)?;
    let (expected, found) = (manifest.modules().len(), allowances.0.len());
    anyhow::ensure!(
        found == expected,
        "the ledger is of {found} modules, expected {expected}: its files are of another state"
    );
    Ok(allowances)
}

/// Whether the space has grown since rows were looked at that would add to it.
fn is_outdated(addition: &Addition, basis: &Basis) -> bool {
    addition.to != basis.rank() && !addition.independent.is_empty()
}

fn budget(share: f64, d_in: usize) -> usize {
    (share * d_in as f64).floor() as usize
}

impl Charge<'_> {
    /// Records the charge by `write`, and only then counts it.
    pub fn record<T, E>(
        mut self,
        activations: &[i16],
        write: impl FnOnce(&[Exposed<'_>]) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut exposed: Vec<Exposed<'_>> = self
            .accounts
            .iter()
            .zip(&self.budgets)
            .filter(|((_, _, addition), _)| !addition.independent.is_empty())
            .map(|((module, account, addition), &budget)| {
                let width = account.basis.width();
                let row = |&index: &usize| &activations[index * width..(index + 1) * width];
                let charged = account.charged() + addition.independent.len();
                let reserve = (charged > account.reserved).then(|| budget.min(charged + RESERVE));
                let rows = addition.independent.iter().map(row).collect();
                Exposed { module: *module, first: account.basis.rank(), rows, reserve }
            })
            .collect();
        // Modules are mostly asked alike: who waits for the disk does so for all that would have to soon.
        let waits = exposed.iter().any(|exposed| exposed.reserve.is_some());
        let mut along = if waits { self.ledger.soon_exhausted(&self.accounts) } else { Vec::new() };
        exposed.extend(along.iter().map(|(module, account, reserve)| Exposed {
            module: *module,
            first: account.basis.rank(),
            rows: Vec::new(),
            reserve: Some(*reserve),
        }));
        let value = write(&exposed)?;
        for exposed in exposed {
            let changed = self.accounts.iter_mut().find(|(module, ..)| *module == exposed.module);
            if let (Some((_, account, _)), Some(reserved)) = (changed, exposed.reserve) {
                account.reserved = reserved;
            }
        }
        for (_, account, reserved) in &mut along {
            account.reserved = *reserved;
        }
        for (_, mut account, addition) in self.accounts {
            account.basis.add(activations, addition);
        }
        Ok(value)
    }
}

/// The kernel's boot id: another after every start of the machine.
pub fn boot_id() -> Vec<u8> {
    // Without it every unclean end is taken for a loss of power.
    std::fs::read("/proc/sys/kernel/random/boot_id")
        .unwrap_or_else(|_| rand::make_rng::<rand::rngs::StdRng>().next_u64().to_le_bytes().to_vec())
}

#[cfg(test)]
mod attack;

#[cfg(test)]
mod tests {
    use zklora_proto::{
        AdapterId, BaseModelDigest, Commitment, ModuleEntry, ModuleShape, SecretKey, SessionId,
    };

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
            Store::create(&world.path(), AdapterId::from_bytes([0; 32]), vec![Allowance::default(); 2])
                .unwrap();
            world
                .store()
                .begin(
                    SESSION,
                    SecretKey::generate().public(),
                    0,
                    zklora_circuit::security::Security::Standard,
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
                        let rows: Vec<i16> =
                            (0..2 * 64).map(|i| i16::from(i % 64 == first + i / 64)).collect();
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
}
