//! Where the statement's values are in the circuit of a batch: a function of the modules' shapes alone.
//!
//! First the powers of β that rows of B take as `q_l`, then module after module: a row of public values, the row of the salt, the
//! rows of A and the rows of B. The rows of the masking follow, then plonky2's own.

use std::ops::Range;

use plonky2::field::types::Field;
use zklora_proto::{Commitment, ModuleShape};

use crate::commitment::header;
use crate::fold::Fold;
use crate::gate::instance::{Instance, InstanceRows, VALUES, digest};
use crate::gate::weight::{CAPACITY, Grid, WEIGHTS};
use crate::{E, F};

/// Columns of a module's public row: what the sponge starts with,
pub(crate) const PUBLIC_HEADER: usize = 0;
/// zero, as an element of the extension,
pub(crate) const PUBLIC_ZERO: usize = PUBLIC_HEADER + CAPACITY;
/// the commitment,
pub(crate) const PUBLIC_C: usize = PUBLIC_ZERO + 2;
/// and s.
pub(crate) const PUBLIC_S: usize = PUBLIC_C + CAPACITY;
const _: () = assert!(PUBLIC_S + 2 == VALUES);

/// Elements of the extension in a row of powers.
const PAIRS: usize = VALUES / 2;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The different grids, and the first of the rows of their powers of β.
    grids: Vec<(Grid, usize)>,
    pub(crate) modules: Vec<ModuleLayout>,
}

/// Where the rows of one module are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModuleLayout {
    pub(crate) shape: ModuleShape,
    pub(crate) grid: Grid,
    /// The row of its public values.
    pub(crate) public: usize,
}

impl Layout {
    pub(crate) fn new(shapes: &[ModuleShape]) -> Self {
        let mut grids: Vec<(Grid, usize)> = Vec::new();
        let mut row = 0;
        for grid in shapes.iter().map(|&shape| Grid::of(shape)) {
            if grids.iter().all(|&(other, _)| other != grid) {
                grids.push((grid, row));
                row += grid.ranks.div_ceil(PAIRS);
            }
        }
        let modules = shapes
            .iter()
            .map(|&shape| {
                let module = ModuleLayout { shape, grid: Grid::of(shape), public: row };
                row = module.weights().end;
                module
            })
            .collect();
        Self { grids, modules }
    }

    /// The rows that the statement takes.
    pub(crate) fn rows(shapes: &[ModuleShape]) -> usize {
        Self::new(shapes).end()
    }

    /// The row after the last.
    pub(crate) fn end(&self) -> usize {
        self.modules.last().map_or(self.powers().end, |module| module.weights().end)
    }

    /// Rows of powers of β.
    pub(crate) fn powers(&self) -> Range<usize> {
        0..self.grids.last().map_or(0, |&(grid, row)| row + grid.ranks.div_ceil(PAIRS))
    }

    /// Row and first column of the factor `q_l` of rows of B: `β^(l·entries)`.
    pub(crate) fn power(&self, grid: Grid, l: usize) -> (usize, usize) {
        let first = self.grids.iter().find(|&&(other, _)| other == grid).map_or(0, |&(_, row)| row);
        (first + l / PAIRS, 2 * (l % PAIRS))
    }

    /// The rows of powers of β, each with its values.
    pub(crate) fn all_powers(&self, beta: E) -> Vec<(usize, Vec<F>)> {
        let of_grid = |&(grid, first): &(Grid, usize)| {
            let step = beta.exp_u64(grid.entries() as u64);
            let powers: Vec<E> = step.powers().take(grid.ranks).collect();
            let rows = powers.chunks(PAIRS).map(flat).collect::<Vec<_>>();
            (first..).zip(rows).collect::<Vec<_>>()
        };
        self.grids.iter().flat_map(of_grid).collect()
    }

    /// Instance columns that the gates read.
    pub(crate) fn instance_columns(&self) -> usize {
        self.grids.iter().map(|(grid, _)| grid.instance_columns()).fold(VALUES, usize::max)
    }

    /// The public values of a proof about modules with these commitments and folds.
    pub(crate) fn instance(&self, modules: &[(&Commitment, &Fold)], beta: E) -> Instance {
        let mut all = Vec::new();
        let mut rows = |rows, values| all.push(InstanceRows { rows, values });
        for (row, powers) in self.all_powers(beta) {
            rows(vec![row], powers);
        }
        for (module, &(commitment, fold)) in self.modules.iter().zip(modules) {
            let mut values = header(module.shape).map(F::from_canonical_u64).to_vec();
            values.extend([F::ZERO; 2]);
            values.extend(commitment.elements().map(F::from_canonical_u64));
            values.extend(fold.s.0);
            rows(vec![module.public], values);
            let entries = module.grid.entries();
            for (chunk, a) in fold.a.chunks(entries).enumerate() {
                rows(module.rows_of_chunk(chunk).collect(), [flat(&[E::ONE]), flat(a)].concat());
            }
            let powers: Vec<E> = beta.powers().take(entries).collect();
            let of_b = [flat(&[beta.exp_u64(WEIGHTS as u64)]), flat(&powers)].concat();
            rows(module.all_rows_of_b().collect(), of_b);
        }
        let values = modules.iter().flat_map(|(commitment, fold)| {
            let commitment = commitment.elements().map(F::from_canonical_u64);
            commitment.into_iter().chain(fold.a.iter().flat_map(|x| x.0)).chain(fold.s.0)
        });
        Instance { digest: digest("zklora v2 instance", beta.0.into_iter().chain(values)), rows: all }
    }
}

impl ModuleLayout {
    fn count_of_a(&self) -> usize {
        self.grid.rows_of_a(self.shape)
    }

    fn chunks_of_b(&self) -> usize {
        self.shape.d_out().div_ceil(WEIGHTS)
    }

    /// The row of the salt.
    pub(crate) fn salt(&self) -> usize {
        self.public + 1
    }

    /// All rows of weights, that of the salt first.
    pub(crate) fn weights(&self) -> Range<usize> {
        self.salt()..self.all_rows_of_b().end
    }

    fn chunks_of_a(&self) -> usize {
        self.shape.d_in().div_ceil(self.grid.entries())
    }

    /// The rows of A, each with the number of its group of columns.
    pub(crate) fn rows_of_a(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (first, chunks) = (self.salt() + 1, self.chunks_of_a());
        (0..self.count_of_a()).map(move |i| (i / chunks, first + i))
    }

    /// The rows of A that stand for the same run of entries, one for each group of columns.
    fn rows_of_chunk(&self, chunk: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.salt() + 1;
        (first + chunk..first + self.count_of_a()).step_by(self.chunks_of_a())
    }

    /// The rows of row k of B.
    pub(crate) fn rows_of_b(&self, k: usize) -> Range<usize> {
        let first = self.salt() + 1 + self.count_of_a() + k * self.chunks_of_b();
        first..first + self.chunks_of_b()
    }

    pub(crate) fn all_rows_of_b(&self) -> Range<usize> {
        let last = self.shape.rank() - 1;
        self.rows_of_b(0).start..self.rows_of_b(last).end
    }
}

pub(crate) fn flat(values: &[E]) -> Vec<F> {
    values.iter().flat_map(|value| value.0).collect()
}
