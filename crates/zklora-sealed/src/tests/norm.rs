//! Norms.

use p3_field::PrimeCharacteristicRing;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::talk;
use crate::field::{E, F};
use crate::layout::Tensor;
use crate::relation::norm::{Norm, Residual};
use crate::system::{Builder, System};
use crate::witness::{OutOfRange, Witness};

struct Case {
    system: System,
    norm: Norm,
    written: Vec<(Tensor, Vec<i64>)>,
    h: Vec<i64>,
}

fn case(rows: usize, d: usize, spread: i64, seed: u64) -> Case {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut list =
        |most: i64| -> Vec<i64> { (0..rows * d).map(|_| rng.random_range(-most..=most)).collect() };
    let mut builder = Builder::default();
    let public = list(spread);
    let written: Vec<(Tensor, Vec<i64>)> =
        (0..2).map(|_| (builder.signed(rows, d, 16), list(spread.min(32767)))).collect();
    let mut h = public.clone();
    for (_, values) in &written {
        h.iter_mut().zip(values).for_each(|(h, v)| *h += v);
    }
    let residual = Residual {
        public: public.into(),
        written: written.iter().map(|(tensor, _)| tensor.clone()).collect(),
        rows,
        positions: None,
        columns: d,
    };
    let norm = builder.norm("norm", residual, 5).unwrap();
    Case { system: builder.build().unwrap(), norm, written, h }
}

impl Case {
    fn witness(&self) -> Result<Witness, OutOfRange> {
        let mut witness = self.system.witness(&[]);
        for (tensor, values) in &self.written {
            witness.set(self.system.layout(), tensor, values)?;
        }
        self.norm.fill(&mut witness, self.system.layout(), &self.norm.values(&self.h)?)?;
        Ok(witness)
    }
}

#[test]
fn every_statistic_is_pinned() {
    for (index, (rows, d, spread)) in
        [(5, 12, 4000), (1, 1, 900), (8, 16, 30000), (3, 768, 1000)].into_iter().enumerate()
    {
        let case = case(rows, d, spread, index as u64);
        let Ok(mut witness) = case.witness() else { panic!("{index}") };
        assert_eq!(talk(&case.system, &|_| E::ZERO, &mut witness, &[]), (None, true), "{index}");
        // All arrays but the multiplicities, which are the last.
        let arrays: Vec<_> = case.system.layout().arrays().map(|(id, array)| (id, array.columns)).collect();
        for &(id, columns) in arrays.iter().filter(|(_, columns)| *columns != crate::lookup::TABLE) {
            let cell = case.system.layout().cell(id, rows / 2, columns / 3).unwrap();
            let honest = witness.cells[cell];
            for by in [F::ONE, -F::ONE] {
                witness.cells[cell] = honest + by;
                let (violated, holds) = talk(&case.system, &|_| E::ZERO, &mut witness, &[]);
                assert!(violated.is_some() && !holds, "{index}: {id:?}");
            }
            witness.cells[cell] = honest;
        }
    }
}

#[test]
fn a_row_with_too_much_spread_has_no_norm() {
    assert!(case(1, 768, 1 << 21, 1).witness().is_err());
    assert!(case(2, 8, 1000, 1).witness().is_ok());
}

/// Another inverse than the nearest one, with all statistics that follow from it: some has no place, or an identity is false.
#[test]
fn a_norm_has_one_inverse() {
    let case = case(4, 12, 4000, 9);
    let witness = |choose: &dyn Fn(i64, i64) -> (i64, i64)| -> Result<Witness, OutOfRange> {
        let mut witness = case.witness()?;
        case.norm.fill(&mut witness, case.system.layout(), &case.norm.values_with(&case.h, choose)?)?;
        Ok(witness)
    };
    let accepted = |choose: &dyn Fn(i64, i64) -> (i64, i64)| {
        witness(choose).is_ok_and(|mut witness| {
            let found = talk(&case.system, &|_| E::ZERO, &mut witness, &[]);
            assert_eq!(found.0.is_none(), found.1);
            found.1
        })
    };
    assert!(accepted(&|root, scale| (root, scale)));
    let roots: [&dyn Fn(i64) -> i64; 8] =
        [&|r| r + 1, &|r| r - 1, &|r| r + 2, &|r| r - 2, &|r| 2 * r, &|r| r / 2, &|r| r + (1 << 20), &|r| {
            r + 777
        }];
    for (index, root) in roots.into_iter().enumerate() {
        assert!(!accepted(&|r, _| (root(r), (root(r) + 1) >> 1)), "{index}");
    }
    for by in [1, -1, 2, 1 << 16] {
        assert!(!accepted(&|root, scale| (root, scale + by)), "{by}");
    }
}
