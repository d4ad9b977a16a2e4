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
use schemars::JsonSchema;
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
mod tests;
