//! The committed adapter among the cells.
//!
//! All weights of all modules, in the order in which their commitments `C_m` hash them, are an array of one row. That they are the committed ones is shown by one
//! number: `f = Σ_n β^n·w_n` is a functional of the cells, and the plonky2 circuit computes it from the openings of all `C_m`. The chance that other cells
//! give the same is `cells/|E|`. The range of 12 bits comes with the openings.

use p3_field::PrimeCharacteristicRing;
use zklora_circuit::commitment::{Opening, Place, hashed_places};
use zklora_proto::ModuleShape;

use crate::claims::Functional;
use crate::field::{E, F, signed};
use crate::layout::{ArrayId, Builder, Cells, Layout};
use crate::scene::Scene;

/// The place of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    array: ArrayId,
    modules: Vec<Module>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Module {
    shape: ModuleShape,
    /// Its first cell in the array.
    start: usize,
    cells: usize,
    /// Where the entries of A are, row-major `d_in x rank`, counted from the start.
    a: Vec<u32>,
    /// Where the entries of B are, row-major `rank x d_out`.
    b: Vec<u32>,
}

impl Adapter {
    /// The adapter with modules of these shapes, at least one.
    pub fn new(builder: &mut Builder, shapes: &[ModuleShape]) -> Self {
        let mut start = 0;
        let modules: Vec<Module> = shapes
            .iter()
            .map(|&shape| {
                let mut module = Module {
                    shape,
                    start,
                    cells: 0,
                    a: vec![0; shape.d_in() * shape.rank()],
                    b: vec![0; shape.rank() * shape.d_out()],
                };
                for place in hashed_places(shape) {
                    // At most 2^26 weights a module.
                    let at = module.cells as u32;
                    match place {
                        Place::A(index) => module.a[index] = at,
                        Place::B(index) => module.b[index] = at,
                        Place::Padding => {}
                    }
                    module.cells += 1;
                }
                start += module.cells;
                module
            })
            .collect();
        Self { array: builder.array(1, start.max(1), Cells::Free), modules }
    }

    /// The shapes of its modules.
    pub fn shapes(&self) -> Vec<ModuleShape> {
        self.modules.iter().map(|module| module.shape).collect()
    }

    /// Fills in the cells.
    pub fn fill(&self, layout: &Layout, cells: &mut [F], openings: &[&Opening]) {
        let mut weights = openings.iter().flat_map(|opening| opening.hashed_weights());
        for block in &layout.array(self.array).blocks {
            for cell in &mut cells[block.range()] {
                *cell = signed(weights.next().unwrap_or(0).into());
            }
        }
    }

    /// Shows that the cells are the committed weights, at the powers of a challenge, which is returned.
    pub(crate) fn converse(&self, scene: &mut Scene<'_>) -> E {
        let beta = scene.run.challenge("weights");
        let (layout, cells) = (scene.layout, self.modules.iter().map(|module| module.cells).sum());
        let value = scene.claim(|| layout.dense(self.array, 0, &beta.powers().take(cells).collect()));
        let value = scene.run.value(value);
        scene.run.check_weights(value);
        beta
    }

    /// `Σ_{i, k} u[i]·v[k]·A[i][k]` of a module.
    pub(crate) fn a(&self, layout: &Layout, module: usize, u: &[E], v: &[E]) -> Functional {
        self.bilinear(layout, module, true, 0, (u, v))
    }

    /// `Σ_{k, j} u[k]·v[j]·B[k][from + j]` of a module.
    pub(crate) fn b(&self, layout: &Layout, module: usize, from: usize, u: &[E], v: &[E]) -> Functional {
        self.bilinear(layout, module, false, from, (u, v))
    }

    fn bilinear(
        &self,
        layout: &Layout,
        module: usize,
        of_a: bool,
        from: usize,
        (u, v): (&[E], &[E]),
    ) -> Functional {
        let module = &self.modules[module];
        let (places, columns) =
            if of_a { (&module.a, module.shape.rank()) } else { (&module.b, module.shape.d_out()) };
        let mut weights = E::zero_vec(module.cells);
        for (places, &u) in places.chunks_exact(columns).zip(u) {
            for (&place, &v) in places[from..].iter().zip(v) {
                weights[place as usize] = u * v;
            }
        }
        layout.dense(self.array, module.start, &weights)
    }

    /// `Σ_k v[k]·A[i][k]` for each i, from the cells.
    pub(crate) fn a_times(&self, layout: &Layout, cells: &[F], module: usize, v: &[E]) -> Vec<E> {
        let module = &self.modules[module];
        module
            .a
            .chunks_exact(module.shape.rank())
            .map(|places| {
                places.iter().zip(v).map(|(&at, &v)| v * self.weight(layout, cells, module, at)).sum()
            })
            .collect()
    }

    /// `Σ_j v[j]·B[k][from + j]` for each k, from the cells.
    pub(crate) fn b_times(
        &self,
        layout: &Layout,
        cells: &[F],
        module: usize,
        from: usize,
        v: &[E],
    ) -> Vec<E> {
        let module = &self.modules[module];
        module
            .b
            .chunks_exact(module.shape.d_out())
            .map(|places| {
                let row = places[from..].iter().zip(v);
                row.map(|(&at, &v)| v * self.weight(layout, cells, module, at)).sum()
            })
            .collect()
    }

    fn weight(&self, layout: &Layout, cells: &[F], module: &Module, at: u32) -> F {
        let cell = layout.cell(self.array, 0, module.start + at as usize);
        cell.map_or(F::ZERO, |cell| cells[cell])
    }
}
