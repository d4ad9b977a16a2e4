//! Committed tensors and public numbers.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;

use super::{RelationError, bounded};
use crate::claims::{Functional, Piece};
use crate::field::{E, bits_of, eq_table, signed};
use crate::layout::{Layout, Tensor};
use crate::scene::{Scene, Sum};

/// A tensor is these integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// The tensor.
    pub tensor: Tensor,
    /// Row-major.
    pub values: Arc<[i64]>,
}

impl Fixed {
    pub(crate) fn converse(&self, scene: &mut Scene<'_>) {
        let row = scene.run.challenges("fixed row", bits_of(self.tensor.rows));
        let column = scene.run.challenges("fixed column", bits_of(self.tensor.columns));
        let value = scene.tensor(&self.tensor, &row, &column, E::ONE);
        let expected = scene.run.public(E::ZERO, || {
            let (row, column) = (eq_table(&row), eq_table(&column));
            let of_row = |values: &[i64]| values.iter().zip(&column).map(|(&x, &e)| e * signed(x)).sum::<E>();
            self.values.chunks(self.tensor.columns).zip(&row).map(|(values, &e)| e * of_row(values)).sum()
        });
        scene.check(Sum::of(-expected).said(E::ONE, value));
    }
}

/// Entries of a tensor, each times an integer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighed {
    /// The tensor.
    pub tensor: Tensor,
    /// Row, column and weight.
    pub entries: Vec<(usize, usize, i64)>,
}

/// `Σ_terms Σ_entries weight·entry = result`, a number that is public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// What the relation is called in errors.
    pub name: String,
    /// What is added up.
    pub terms: Vec<Weighed>,
    /// Which of the public results it is.
    pub result: usize,
}

impl Total {
    /// Whether its sum cannot wrap around, and all entries are there.
    pub fn check(&self) -> Result<(), RelationError> {
        let inside = |term: &Weighed| {
            term.entries
                .iter()
                .all(|&(row, column, _)| row < term.tensor.rows && column < term.tensor.columns)
        };
        if !self.terms.iter().all(inside) {
            return Err(RelationError::Shape {
                name: self.name.clone(),
                what: "an entry is outside its tensor",
            });
        }
        let magnitude = |term: &Weighed| {
            let sum: u128 = term.entries.iter().map(|(_, _, w)| u128::from(w.unsigned_abs())).sum();
            sum.saturating_mul(term.tensor.most_of_all())
        };
        Ok(bounded(&self.name, "the sum", self.terms.iter().map(magnitude).fold(0, u128::saturating_add))?)
    }

    /// Everything that decides what is shown, for a digest; the tensors are hashed before.
    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        hash(&(self.result as u64).to_le_bytes());
        for term in &self.terms {
            hash(&(term.entries.len() as u64).to_le_bytes());
            for &(row, column, weight) in &term.entries {
                for x in [row as i64, column as i64, weight] {
                    hash(&x.to_le_bytes());
                }
            }
        }
    }

    pub(crate) fn converse(&self, scene: &mut Scene<'_>, results: &[i64]) {
        let layout = scene.layout;
        let (functional, offset) = scene.run.public(Default::default(), || self.functional(layout));
        let value = scene.claim(|| functional);
        let total = signed(results.get(self.result).copied().unwrap_or(0));
        scene.check(Sum::of(offset - total).said(E::ONE, value));
    }

    /// The sum as a functional of the cells, and what is to be added to it.
    fn functional(&self, layout: &Layout) -> (Functional, E) {
        let (mut all, mut offset) = (Functional::default(), E::ZERO);
        for Weighed { tensor, entries } in &self.terms {
            for &(row, column, weight) in entries {
                offset -= signed(weight) * signed(tensor.format(column).0);
                if let Some((cell, factor)) = layout.high(tensor, row, column) {
                    let factor = E::from(signed(weight) * factor);
                    all.0.push(Piece::Block { offset: cell, point: Vec::new(), factor });
                }
                for (factor, &(id, _)) in tensor.factors().zip(&tensor.limbs) {
                    let Some(offset) = layout.cell(id, row, column) else { continue };
                    let factor = E::from(signed(weight) * factor);
                    all.0.push(Piece::Block { offset, point: Vec::new(), factor });
                }
            }
        }
        (all, offset)
    }
}
