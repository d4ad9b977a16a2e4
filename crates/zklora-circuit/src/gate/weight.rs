//! The gate that does everything that touches weights, 40 of them in a row: range check, packing, hash and product.
//!
//! - A weight is given as four base-8 digits, each of which is checked to be one. Five weights make a word of 60 bits.
//! - The eight words of a row overwrite the first eight elements of a Poseidon state, whose last four come from the row
//!   before; after the permutation its last four go to the next row. That is the commitment's sponge.
//! - `acc' = c·acc + Σ_l q_l·Σ_i p_i·W[i][l]` over the quadratic extension, where W is the row's weights as a [`Grid`]. In rows
//!   of A, W is a part of A, the `p_i` are entries of `a_m` and the `q_l` are `w_k`. In rows of B, W is a part of one row of
//!   B and `p_i·q_l` runs through the powers of β.
//!
//! Public values, which are c and the p_i, are read from [`super::instance`] columns; all others are wires.

use std::array::from_fn;
use std::ops::{Add, Mul, Sub};

use plonky2::util::serialization::{Buffer, IoError, IoResult, Read, Write};
use zklora_proto::ModuleShape;
use zklora_proto::limits::WEIGHT_BITS;

use super::expression::impl_gate;
use super::poseidon::{self, SBOXES, WIDTH};

/// Weights of one row.
pub const WEIGHTS: usize = 40;
/// Packed words of one row: the rate of the sponge.
pub const WORDS: usize = 8;
/// Weights of one packed word, 12 bits each: 60 bits, below p.
pub const WEIGHTS_PER_WORD: usize = WEIGHTS / WORDS;
/// Elements that the sponge carries from row to row.
pub const CAPACITY: usize = WIDTH - WORDS;
/// Base-8 digits of a weight.
pub const DIGITS: usize = 4;
/// A weight w is stored as w + 2^11, which is not negative.
pub const BIAS: u64 = 1 << (WEIGHT_BITS - 1);
/// φ² in the quadratic extension `F[φ]/(φ² - 7)`.
pub const NON_RESIDUE: u64 = 7;

/// First wire of what the sponge carries into this row.
pub const WIRE_CAPACITY_IN: usize = 0;
/// First wire of what the sponge carries on.
pub const WIRE_CAPACITY_OUT: usize = WIRE_CAPACITY_IN + CAPACITY;
/// First wire of the accumulator before this row (two wires, as every value of the extension).
pub const WIRE_ACC_IN: usize = WIRE_CAPACITY_OUT + CAPACITY;
/// First wire of the accumulator after this row.
pub const WIRE_ACC_OUT: usize = WIRE_ACC_IN + 2;
const WIRE_Q: usize = WIRE_ACC_OUT + 2;
const WIRE_DIGITS: usize = WIRE_Q + 2 * Grid::MOST_RANKS;
/// First wire of the inputs of the permutation's S-boxes.
pub const WIRE_SBOXES: usize = WIRE_DIGITS + WEIGHTS * DIGITS;
/// Wires that the gate uses, beside the instance columns.
pub const WIRES: usize = WIRE_SBOXES + SBOXES;
/// Wires of them that must be routed.
pub const ROUTED_WIRES: usize = WIRE_DIGITS;

/// First wire of factor `q_l`.
pub const fn wire_q(l: usize) -> usize {
    WIRE_Q + 2 * l
}

/// Wire of digit `digit` (least significant first) of weight `weight`.
pub const fn wire_digit(weight: usize, digit: usize) -> usize {
    WIRE_DIGITS + weight * DIGITS + digit
}

/// How the 40 weights of a row stand for a part of A: `columns` entries of `ranks` columns of A. Entry i of column l is
/// weight `l·columns + i` of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Columns of A that a row covers.
    pub ranks: usize,
}

impl Grid {
    /// The most columns of A in one row.
    pub const MOST_RANKS: usize = 8;
    const LEAST_RANKS: usize = 2;

    /// The grid that takes the fewest rows for an A of this shape, and of these the one of the most columns of A.
    pub fn of(shape: ModuleShape) -> Self {
        let grids = [Self::MOST_RANKS, 4, Self::LEAST_RANKS].map(|ranks| Self { ranks });
        // The first of equals is kept.
        grids.into_iter().min_by_key(|grid| grid.rows_of_a(shape)).unwrap_or(grids[0])
    }

    /// Entries of one column of A in a row.
    pub const fn entries(self) -> usize {
        WEIGHTS / self.ranks
    }

    /// Rows that an A of this shape takes.
    pub fn rows_of_a(self, shape: ModuleShape) -> usize {
        shape.rank().div_ceil(self.ranks) * shape.d_in().div_ceil(self.entries())
    }

    /// Instance columns that a row reads: c, then the `p_i`.
    pub const fn instance_columns(self) -> usize {
        2 + 2 * self.entries()
    }
}

/// The most instance columns that any grid reads.
pub const MOST_INSTANCE_COLUMNS: usize = Grid { ranks: Grid::LEAST_RANKS }.instance_columns();

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightGate {
    /// How the weights of a row stand.
    pub grid: Grid,
}

const CONSTRAINTS: usize = WEIGHTS * DIGITS + SBOXES + CAPACITY + 2;

impl WeightGate {
    /// Evaluates all constraints over any ring that holds the field; `constant` embeds a number below p.
    ///
    /// Order: each digit is in 0..8; the inputs of the S-boxes; what the sponge carries on; both parts of the accumulator.
    #[inline(always)]
    fn constraints<T>(&self, wire: impl Fn(usize) -> T, constant: impl Fn(u64) -> T, mut emit: impl FnMut(T))
    where
        T: Copy + Add<Output = T> + Sub<Output = T> + Mul<Output = T>,
    {
        let (six, ten, twelve, seven) = (constant(6), constant(10), constant(12), constant(7));
        let eight = constant(8);
        let base = constant(1 << WEIGHT_BITS);
        let bias = constant(BIAS);
        let biased: [T; WEIGHTS] = from_fn(|weight| {
            let digits: [T; DIGITS] = from_fn(|digit| wire(wire_digit(weight, digit)));
            for l in digits {
                // l(l-1)...(l-7), with the factors paired from both ends: l(l-7) = t, (l-1)(l-6) = t + 6, ...
                let t = l * (l - seven);
                emit((t * (t + six)) * ((t + ten) * (t + twelve)));
            }
            let [low, second, third, high] = digits;
            ((high * eight + third) * eight + second) * eight + low
        });
        let state: [T; WIDTH] = from_fn(|i| match i.checked_sub(WORDS) {
            Some(carried) => wire(WIRE_CAPACITY_IN + carried),
            None => {
                let word = &biased[i * WEIGHTS_PER_WORD..(i + 1) * WEIGHTS_PER_WORD];
                let (&last, others) = word.split_last().expect("a word has weights");
                others.iter().rev().fold(last, |packed, &weight| packed * base + weight)
            }
        });
        let state = poseidon::permute(state, &constant, |slot, input| {
            let given = wire(WIRE_SBOXES + slot);
            emit(given - input);
            given
        });
        for (i, &carried) in state[WORDS..].iter().enumerate() {
            emit(wire(WIRE_CAPACITY_OUT + i) - carried);
        }

        let non_residue = constant(NON_RESIDUE);
        let pair = |first: usize| [wire(first), wire(first + 1)];
        let product =
            |x: [T; 2], y: [T; 2]| [x[0] * y[0] + non_residue * (x[1] * y[1]), x[0] * y[1] + x[1] * y[0]];
        let mut acc = product(pair(WIRES), pair(WIRE_ACC_IN));
        for (l, weights) in biased.chunks_exact(self.grid.entries()).enumerate() {
            let mut sum: Option<[T; 2]> = None;
            for (i, &weight) in weights.iter().enumerate() {
                let p = pair(WIRES + 2 + 2 * i);
                let term = p.map(|part| part * (weight - bias));
                sum = Some(sum.map_or(term, |sum| [sum[0] + term[0], sum[1] + term[1]]));
            }
            let added = product(pair(wire_q(l)), sum.expect("a column has entries"));
            acc = [acc[0] + added[0], acc[1] + added[1]];
        }
        let out = pair(WIRE_ACC_OUT);
        emit(out[0] - acc[0]);
        emit(out[1] - acc[1]);
    }
}

impl_gate!(
    WeightGate,
    id: |gate: &WeightGate| format!("zklora v2 {gate:?}"),
    write: |gate: &WeightGate, to: &mut Vec<u8>| to.write_usize(gate.grid.ranks),
    read: WeightGate::read,
    wires: |gate: &WeightGate| WIRES + gate.grid.instance_columns(),
    degree: 1 << 3,
    constraints: CONSTRAINTS
);

impl WeightGate {
    fn read(from: &mut Buffer<'_>, wires: usize) -> IoResult<Self> {
        let grid = Grid { ranks: from.read_usize()? };
        let known = [Grid::LEAST_RANKS, 4, Grid::MOST_RANKS].contains(&grid.ranks);
        if !known || WIRES + grid.instance_columns() > wires {
            return Err(IoError);
        }
        Ok(Self { grid })
    }
}

#[cfg(test)]
mod tests {
    use plonky2::gates::gate_testing::{test_eval_fns, test_low_degree};
    use zklora_testing::shape;

    use super::*;
    use crate::{D, F};

    fn gates() -> [WeightGate; 3] {
        [2, 4, 8].map(|ranks| WeightGate { grid: Grid { ranks } })
    }

    #[test]
    fn degree_is_as_declared() {
        for gate in gates() {
            test_low_degree::<F, _, D>(gate);
        }
    }

    #[test]
    fn native_packed_and_recursive_evaluation_agree() {
        use plonky2::plonk::config::PoseidonGoldilocksConfig;
        // The one Poseidon configuration that plonky2 brings has degree 2; the gate works over any.
        for gate in gates() {
            test_eval_fns::<F, PoseidonGoldilocksConfig, _, 2>(gate).unwrap();
        }
    }

    #[test]
    fn grids_take_few_rows() {
        let ranks = |rank| Grid::of(shape(768, rank, 8)).ranks;
        assert_eq!([1, 2, 3, 4, 7, 8, 12, 16, 64].map(ranks), [2, 2, 4, 4, 8, 8, 4, 8, 8]);
        assert_eq!(Grid { ranks: 8 }.rows_of_a(shape(768, 8, 2304)), 154);
    }
}
