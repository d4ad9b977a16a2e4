//! Proving a batch.

use std::collections::HashSet;

use plonky2::field::types::{Field, PrimeField64};
use plonky2::hash::hash_types::HashOut;
use plonky2::iop::generator::GeneratedValues;
use plonky2::iop::target::Target;
use plonky2::iop::wire::Wire;
use plonky2::iop::witness::{PartitionWitness, WitnessWrite};
use plonky2::plonk::circuit_data::CircuitData;
use plonky2::plonk::config::Hasher;
use plonky2::plonk::proof::ProofWithPublicInputs;
use plonky2::plonk::prover::prove_with_partition_witness;
use plonky2::util::serialization::Write;
use plonky2::util::timing::TimingTree;
use rand::CryptoRng;
use rayon::prelude::*;
use zeroize::Zeroize;
use zklora_proto::{Commitment, ModuleShape};

use crate::circuit::BatchCircuit;
use crate::commitment::{Opening, header};
use crate::fold::{Fold, signed};
use crate::gate::instance::{CIRCUIT_WIRES, Instance, InstanceRows, VALUES};
use crate::gate::poseidon::{self, SBOXES, WIDTH};
use crate::gate::weight::{
    BIAS, CAPACITY, DIGITS, Grid, WEIGHTS, WEIGHTS_PER_WORD, WIRE_ACC_OUT, WIRE_CAPACITY_OUT, WIRE_SBOXES,
    WORDS, wire_digit,
};
use crate::hash::{Blake3Config, PublicInputHash};
use crate::layout::Layout;
use crate::masking::Masking;
use crate::{D, E, F};

/// Why a batch was not proved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProveError {
    /// The witness does not belong to this circuit.
    #[error("the batch has {found}, expected {expected}")]
    Batch {
        /// What was given.
        found: String,
        /// What the circuit is for.
        expected: String,
    },
    /// The deltas are not those of the adapter, so that no proof exists.
    #[error("module {0} of the batch: the recorded deltas are not X·A·B of the committed A and B")]
    FalseStatement(usize),
    /// plonky2 failed.
    #[error("plonky2: {0}")]
    Plonky2(String),
}

/// Proves that every module's deltas are those of the adapter that it opens.
///
/// `openings` and `folds` are in the order of the circuit's shapes. Fails before any work if the statement is false, since a
/// proof of it would only be refused.
pub fn prove(
    circuit: &BatchCircuit,
    openings: &[&Opening],
    folds: &[&Fold],
    beta: E,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, ProveError> {
    let shapes: Vec<_> = circuit.layout.modules.iter().map(|m| m.shape).collect();
    if openings.len() != shapes.len() || folds.len() != shapes.len() {
        return Err(ProveError::Batch {
            found: format!("{} openings and {} folds", openings.len(), folds.len()),
            expected: format!("{} of each", shapes.len()),
        });
    }
    for (index, (opening, fold)) in openings.iter().zip(folds).enumerate() {
        if opening.shape() != shapes[index] || fold.a.len() != shapes[index].d_in() {
            return Err(ProveError::Batch {
                found: format!("{:?} as module {index}", opening.shape()),
                expected: format!("{:?}", shapes[index]),
            });
        }
    }
    let rows: Vec<ModuleRows> = openings
        .par_iter()
        .zip(folds)
        .map(|(opening, fold)| ModuleRows::honest(opening, fold, beta))
        .collect();
    if let Some(index) = rows.iter().zip(folds).position(|(module, fold)| module.sum != fold.s) {
        return Err(ProveError::FalseStatement(index));
    }
    let commitments: Vec<_> = rows.iter().map(ModuleRows::commitment).collect();
    let publics: Vec<_> = commitments.iter().zip(folds.iter().copied()).collect();
    let instance = circuit.layout.instance(&publics, beta);
    prove_rows(circuit, &rows, &instance, Contradictions::Stop, rng)
        .map_err(|e| ProveError::Plonky2(e.to_string()))
}

/// The values of a module's rows of [`crate::gate::weight::WeightGate`], in the order of the rows: salt, A, B.
pub(crate) struct ModuleRows {
    pub(crate) rows: Vec<Row>,
    /// What the accumulator ends with: `Σ_k w_k·⟨a, A[:,k]⟩`.
    pub(crate) sum: E,
}

/// The values of one row that no copy constraint brings from elsewhere.
pub(crate) struct Row {
    /// Of all weights, one after another.
    pub(crate) digits: Vec<u64>,
    /// The inputs of the permutation's S-boxes.
    pub(crate) sboxes: Vec<F>,
    pub(crate) capacity_out: [F; CAPACITY],
    pub(crate) acc_out: E,
}

impl Drop for Row {
    fn drop(&mut self) {
        self.digits.zeroize();
        self.sboxes.iter_mut().chain(&mut self.capacity_out).for_each(|element| element.0.zeroize());
    }
}

impl ModuleRows {
    /// The rows of an honest prover.
    pub(crate) fn honest(opening: &Opening, fold: &Fold, beta: E) -> Self {
        let (shape, grid) = (opening.shape(), Grid::of(opening.shape()));
        let (chunks_of_a, chunks_of_b) =
            (shape.d_in().div_ceil(grid.entries()), shape.d_out().div_ceil(WEIGHTS));
        let betas: Vec<E> = beta.powers().take(WEIGHTS + 1).collect();
        let biased: Vec<[u16; WEIGHTS]> = opening.rows().collect();
        let (of_a, of_b) = biased.split_at(grid.rows_of_a(shape));
        let dot = |weights: &[u16], factors: &[E]| -> E {
            let terms = weights.iter().zip(factors);
            terms.map(|(&w, &p)| p * E::from(signed(i64::from(w) - BIAS as i64))).sum()
        };

        // Rows of B run from the last chunk to the first, so that their accumulators are filled backwards.
        let mut acc_of_b = vec![E::ZERO; of_b.len()];
        let mut w = Vec::with_capacity(shape.rank());
        for k in 0..shape.rank() {
            let mut acc = E::ZERO;
            for row in (k * chunks_of_b..(k + 1) * chunks_of_b).rev() {
                acc = betas[WEIGHTS] * acc + dot(&of_b[row], &betas);
                acc_of_b[row] = acc;
            }
            w.push(acc);
        }
        let mut sum = E::ZERO;
        let mut acc_of_a = Vec::with_capacity(of_a.len());
        for (rows, w) in of_a.chunks_exact(chunks_of_a).zip(w.chunks(grid.ranks)) {
            for (row, factors) in rows.iter().zip(fold.a.chunks(grid.entries())) {
                let columns = row.chunks_exact(grid.entries()).zip(w);
                sum += columns.map(|(column, &w)| w * dot(column, factors)).sum::<E>();
                acc_of_a.push(sum);
            }
        }

        let mut rows = vec![Row::new(&salt_digits(opening), E::ZERO)];
        rows.extend(biased.iter().zip(acc_of_a.into_iter().chain(acc_of_b)).map(|(biased, acc_out)| {
            let digits = |&w: &u16| (0..DIGITS).map(move |digit| u64::from(w >> (3 * digit) & 7));
            Row::new(&biased.iter().flat_map(digits).collect::<Vec<_>>(), acc_out)
        }));
        let mut module = Self { rows, sum };
        module.hash(shape);
        module
    }

    /// The rows of an opening with what they hash to, and without accumulators.
    pub(crate) fn hashed(opening: &Opening) -> Self {
        let mut rows = vec![Row::new(&salt_digits(opening), E::ZERO)];
        let digits = |&w: &u16| (0..DIGITS).map(move |digit| u64::from(w >> (3 * digit) & 7));
        rows.extend(
            opening
                .rows()
                .map(|biased| Row::new(&biased.iter().flat_map(digits).collect::<Vec<_>>(), E::ZERO)),
        );
        let mut module = Self { rows, sum: E::ZERO };
        module.hash(opening.shape());
        module
    }

    /// Fills in what the sponge makes of the digits.
    pub(crate) fn hash(&mut self, shape: ModuleShape) {
        let mut carried = header(shape).map(F::from_canonical_u64);
        for row in &mut self.rows {
            let words: Vec<F> = row.digits.chunks_exact(DIGITS * WEIGHTS_PER_WORD).map(word).collect();
            let state: [F; WIDTH] =
                std::array::from_fn(|i| if i < WORDS { words[i] } else { carried[i - WORDS] });
            row.sboxes.clear();
            let state = poseidon::permute(state, F::from_canonical_u64, |_, input| {
                row.sboxes.push(input);
                input
            });
            carried = std::array::from_fn(|i| state[WORDS + i]);
            row.capacity_out = carried;
        }
    }

    /// What the rows hash to.
    pub(crate) fn commitment(&self) -> Commitment {
        let capacity = self.rows.last().map_or([F::ZERO; CAPACITY], |row| row.capacity_out);
        // Canonical representatives are below the order.
        Commitment::from_elements(capacity.map(|e| e.to_canonical_u64())).unwrap()
    }
}

impl Row {
    fn new(digits: &[u64], acc_out: E) -> Self {
        let (digits, sboxes) = (digits.to_vec(), Vec::with_capacity(SBOXES));
        Self { digits, sboxes, capacity_out: [F::ZERO; CAPACITY], acc_out }
    }
}

/// The number that digits make, the first being the lowest.
fn word(digits: &[u64]) -> F {
    digits
        .iter()
        .rev()
        .fold(F::ZERO, |word, &digit| word * F::from_canonical_u64(8) + F::from_canonical_u64(digit))
}

/// The salt's block as the digits of 40 weights.
fn salt_digits(opening: &Opening) -> Vec<u64> {
    let digits = |word: u64| (0..DIGITS * WEIGHTS_PER_WORD).map(move |digit| word >> (3 * digit) & 7);
    opening.salt().words().iter().copied().flat_map(digits).collect()
}

/// What to do with a computed value that contradicts one that was given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contradictions {
    /// Stop: no proof of this can hold.
    Stop,
    /// Keep the given value and prove all the same, as a cheating prover would.
    #[cfg(test)]
    Keep,
}

/// Proves with these values, honest or not: what is wrong with them shows when the proof is verified.
pub(crate) fn prove_rows(
    circuit: &BatchCircuit,
    modules: &[ModuleRows],
    instance: &Instance,
    contradictions: Contradictions,
    rng: &mut impl CryptoRng,
) -> anyhow::Result<Vec<u8>> {
    let mut witness = fill_rows(circuit, modules, instance, contradictions)?;
    circuit.masking.fill(&mut witness, rng)?;
    let mut bytes = Vec::new();
    bytes
        .write_proof(&prove_witness(&circuit.data, witness)?.proof)
        .map_err(|_| anyhow::anyhow!("the proof does not serialise"))?;
    Ok(bytes)
}

/// Proves a whole witness.
pub(crate) fn prove_witness(
    data: &Data,
    witness: PartitionWitness<'_, F>,
) -> anyhow::Result<ProofWithPublicInputs<F, Blake3Config, D>> {
    let mut timing = TimingTree::default();
    prove_with_partition_witness(&data.prover_only, &data.common, witness, &mut timing)
}

/// The witness of these values, without its masking.
pub(crate) fn fill_rows<'a>(
    circuit: &'a BatchCircuit,
    modules: &[ModuleRows],
    instance: &Instance,
    contradictions: Contradictions,
) -> anyhow::Result<PartitionWitness<'a, F>> {
    let publics = circuit.layout.modules.iter().map(|module| module.public);
    let copied: HashSet<usize> = circuit.layout.powers().chain(publics).collect();
    let mut filler = Filler::new(&circuit.data, &circuit.masking, instance, &copied, contradictions)?;
    filler.set_modules(&circuit.layout, modules)?;
    filler.finish()
}

type Data = CircuitData<F, Blake3Config, D>;

/// Fills in a witness.
pub(crate) struct Filler<'a> {
    data: &'a Data,
    masking: &'a Masking,
    witness: PartitionWitness<'a, F>,
    contradictions: Contradictions,
}

impl<'a> Filler<'a> {
    /// A witness with its public values, which rows of `copied` also have as wires.
    pub(crate) fn new(
        data: &'a Data,
        masking: &'a Masking,
        instance: &Instance,
        copied: &HashSet<usize>,
        contradictions: Contradictions,
    ) -> anyhow::Result<Self> {
        let (prover, common) = (&data.prover_only, &data.common);
        let witness =
            PartitionWitness::new(common.config.num_wires, common.degree(), &prover.representative_map);
        let mut filler = Self { data, masking, witness, contradictions };
        let inputs = instance.public_inputs();
        for (&target, &value) in prover.public_inputs.iter().zip(&inputs) {
            filler.witness.set_target(target, value)?;
        }
        let HashOut { elements } = PublicInputHash::hash_no_pad(&inputs);
        filler.set(masking.public_input_row, 0, elements)?;
        for InstanceRows { rows, values } in &instance.rows {
            for &row in rows {
                filler.set(row, CIRCUIT_WIRES, values.iter().copied())?;
                if copied.contains(&row) {
                    filler.set(row, 0, values.iter().copied().chain([F::ZERO; VALUES]).take(VALUES))?;
                }
            }
        }
        Ok(filler)
    }

    /// Sets the rows of modules.
    pub(crate) fn set_modules(&mut self, layout: &Layout, modules: &[ModuleRows]) -> anyhow::Result<()> {
        for (layout, module) in layout.modules.iter().zip(modules) {
            for (row, values) in layout.weights().zip(&module.rows) {
                let digits = values.digits.iter().map(|&digit| F::from_canonical_u64(digit));
                self.set(row, wire_digit(0, 0), digits)?;
                self.set(row, WIRE_SBOXES, values.sboxes.iter().copied())?;
                self.set(row, WIRE_CAPACITY_OUT, values.capacity_out)?;
                self.set(row, WIRE_ACC_OUT, values.acc_out.0)?;
            }
        }
        Ok(())
    }

    /// The witness of what was set, with what follows from it, and without its masking.
    pub(crate) fn finish(mut self) -> anyhow::Result<PartitionWitness<'a, F>> {
        run_generators(self.data, self.masking, &mut self.witness, self.contradictions)?;
        Ok(self.witness)
    }

    /// Sets wires of a row that stand side by side.
    pub(crate) fn set(
        &mut self,
        row: usize,
        first: usize,
        values: impl IntoIterator<Item = F>,
    ) -> anyhow::Result<()> {
        for (column, value) in (first..).zip(values) {
            let set = self.witness.set_wire(Wire { row, column }, value);
            if self.contradictions == Contradictions::Stop {
                set?;
            }
        }
        Ok(())
    }
}

/// Runs plonky2's generators (constants, and the public-input row, which the masking fills) until all have run.
fn run_generators(
    data: &Data,
    masking: &Masking,
    witness: &mut PartitionWitness<'_, F>,
    contradictions: Contradictions,
) -> anyhow::Result<()> {
    let generators = &data.prover_only.generators;
    let mut pending: Vec<usize> = (0..generators.len()).collect();
    let mut values = GeneratedValues::empty();
    while !pending.is_empty() {
        let mut waiting = Vec::new();
        for &index in &pending {
            if !generators[index].0.run(witness, &mut values) {
                waiting.push(index);
            }
            for (target, value) in values.target_values.drain(..) {
                if matches!(target, Target::Wire(wire) if masking.fills(wire)) {
                    continue;
                }
                let set = witness.set_target(target, value);
                if contradictions == Contradictions::Stop {
                    set?;
                }
            }
        }
        anyhow::ensure!(waiting.len() < pending.len(), "{} generators lack an input", waiting.len());
        pending = waiting;
    }
    Ok(())
}
