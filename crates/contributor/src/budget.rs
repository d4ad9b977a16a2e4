//! Disk space that sessions share: all of them, and those of one client.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of bytes that reservations may take parts of.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// Bytes taken.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn grow(&self, more: usize) -> bool {
        let fits = |used: usize| used.checked_add(more).filter(|&used| used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// A part of several budgets at once, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budgets: Vec<Arc<Budget>>,
    bytes: usize,
}

impl Reservation {
    /// Nothing yet.
    pub fn none(budgets: Vec<Arc<Budget>>) -> Self {
        Self { budgets, bytes: 0 }
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more of each budget, unless one of them does not have it.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        let grown = self.budgets.iter().take_while(|budget| budget.grow(more)).count();
        if grown < self.budgets.len() {
            for budget in &self.budgets[..grown] {
                budget.used.fetch_sub(more, Ordering::Relaxed);
            }
            return false;
        }
        self.bytes += more;
        true
    }

    /// Gives back what [`Reservation::grow`] took.
    pub fn shrink(&mut self, less: usize) {
        for budget in &self.budgets {
            budget.used.fetch_sub(less, Ordering::Relaxed);
        }
        self.bytes -= less;
    }

    /// Takes what is in use already, whether the budgets have it or not.
    pub fn note(&mut self, bytes: usize) {
        for budget in &self.budgets {
            budget.used.fetch_add(bytes, Ordering::Relaxed);
        }
        self.bytes += bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for budget in &self.budgets {
            budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::new(10);
        let mut first = Reservation::none(vec![budget.clone()]);
        let mut second = Reservation::none(vec![budget]);
        assert!(first.grow(6) && second.grow(4));
        assert!(!second.grow(1) && !second.grow(usize::MAX));
        drop(first);
        assert!(second.grow(6));
        second.shrink(3);
        assert!(second.grow(3) && !second.grow(1));
        assert_eq!(second.bytes(), 10);
        second.note(5);
        assert_eq!(second.bytes(), 15);
        assert!(!second.grow(1));
    }

    #[test]
    fn every_budget_counts_and_none_keeps_what_another_refused() {
        let (all, one, other) = (Budget::new(10), Budget::new(6), Budget::new(20));
        let mut first = Reservation::none(vec![all.clone(), one.clone()]);
        let mut second = Reservation::none(vec![all.clone(), other.clone()]);
        assert!(first.grow(6) && !first.grow(1));
        assert_eq!((all.used(), one.used()), (6, 6));
        assert!(!second.grow(5) && second.grow(4));
        assert_eq!((all.used(), other.used()), (10, 4));
    }
}
