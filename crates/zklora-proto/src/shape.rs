//! The shape of a LoRA module, valid by construction.

use crate::limits::{MAX_D_IN, MAX_D_OUT, MAX_RANK};

/// Dimensions of one LoRA-adapted projection: A is `d_in x rank`, B is `rank x d_out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleShape {
    d_in: usize,
    rank: usize,
    d_out: usize,
}

/// A shape outside the bounds under which the statement holds over the integers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found}, expected 1 to {max}")]
pub struct ShapeError {
    what: &'static str,
    found: usize,
    max: usize,
}

impl ModuleShape {
    /// A shape with every dimension between 1 and its maximum ([`crate::limits`]).
    pub fn new(d_in: usize, rank: usize, d_out: usize) -> Result<Self, ShapeError> {
        for (what, found, max) in
            [("d_in", d_in, MAX_D_IN), ("rank", rank, MAX_RANK), ("d_out", d_out, MAX_D_OUT)]
        {
            if found == 0 || found > max {
                return Err(ShapeError { what, found, max });
            }
        }
        Ok(Self { d_in, rank, d_out })
    }

    /// Rows of A: the length of an activation.
    pub const fn d_in(&self) -> usize {
        self.d_in
    }

    /// Columns of A and rows of B.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// Columns of B: the length of a delta.
    pub const fn d_out(&self) -> usize {
        self.d_out
    }

    /// Entries of A and B together.
    pub const fn weights(&self) -> usize {
        self.rank * (self.d_in + self.d_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_is_bounded() {
        assert!(ModuleShape::new(MAX_D_IN, MAX_RANK, MAX_D_OUT).is_ok());
        for (d_in, rank, d_out) in [
            (0, 1, 1),
            (1, 0, 1),
            (1, 1, 0),
            (MAX_D_IN + 1, 1, 1),
            (1, MAX_RANK + 1, 1),
            (1, 1, MAX_D_OUT + 1),
        ] {
            assert!(ModuleShape::new(d_in, rank, d_out).is_err());
        }
    }
}
