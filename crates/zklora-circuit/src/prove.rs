//! Proving a batch.

use plonky2::field::types::Field;
use plonky2::iop::generator::GeneratedValues;
use plonky2::iop::target::Target;
use plonky2::iop::wire::Wire;
use plonky2::iop::witness::{PartitionWitness, WitnessWrite};
use plonky2::plonk::proof::ProofWithPublicInputs;
use plonky2::plonk::prover::prove_with_partition_witness;
use plonky2::util::serialization::Write;
use plonky2::util::timing::TimingTree;
use rand::CryptoRng;
use zeroize::Zeroize;

use crate::circuit::{BatchCircuit, ModuleLayout};
use crate::commitment::{Opening, pack};
use crate::fold::{Fold, signed};
use crate::gate::{BIAS, DIGITS, WEIGHTS, WIRE_ACC_IN, WIRE_ACC_OUT, WIRE_WORDS, wire_digit};
use crate::hash::Blake3Config;
use crate::{D, E, F};

/// Why a batch was not proved.
#[derive(Debug, thiserror::Error)]
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
    let mut rows = Vec::with_capacity(shapes.len());
    for (index, (opening, fold)) in openings.iter().zip(folds).enumerate() {
        if opening.shape() != shapes[index] || fold.a.len() != shapes[index].d_in() {
            return Err(ProveError::Batch {
                found: format!("{:?} as module {index}", opening.shape()),
                expected: format!("{:?}", shapes[index]),
            });
        }
        let module = ModuleRows::honest(opening, fold, beta);
        if module.sum != fold.s {
            return Err(ProveError::FalseStatement(index));
        }
        rows.push(module);
    }
    let salts: Vec<_> = openings.iter().map(|o| *o.salt().elements()).collect();
    let publics: Vec<_> = openings.iter().zip(folds).map(|(o, f)| (o.commitment().elements(), *f)).collect();
    prove_rows(circuit, &rows, &salts, &publics, beta, Contradictions::Stop, rng)
        .map_err(|e| ProveError::Plonky2(e.to_string()))
}

/// The values of a module's rows of [`crate::gate::WeightGate`], in the order of the rows.
pub(crate) struct ModuleRows {
    pub(crate) rows: Vec<Row>,
    /// What the accumulator ends with: `Σ_k w_k·⟨a, A[:,k]⟩`.
    pub(crate) sum: E,
}

/// The values of one row that no copy constraint brings from elsewhere.
pub(crate) struct Row {
    pub(crate) words: Vec<u64>,
    pub(crate) digits: Vec<u64>,
    pub(crate) acc_out: E,
}

impl Drop for Row {
    fn drop(&mut self) {
        self.words.zeroize();
        self.digits.zeroize();
    }
}

impl ModuleRows {
    /// The rows of an honest prover.
    pub(crate) fn honest(opening: &Opening, fold: &Fold, beta: E) -> Self {
        let shape = opening.shape();
        let (chunks_of_a, chunks_of_b) = (shape.d_in().div_ceil(WEIGHTS), shape.d_out().div_ceil(WEIGHTS));
        let betas: Vec<E> = beta.powers().take(WEIGHTS + 1).collect();
        let biased: Vec<[u16; WEIGHTS]> = opening.rows().collect();
        let (of_a, of_b) = biased.split_at(shape.rank() * chunks_of_a);
        let dot = |row: &[u16; WEIGHTS], factors: &[E]| -> E {
            let terms = row.iter().zip(factors);
            terms.map(|(&w, &p)| p * E::from(signed(i64::from(w) - BIAS as i64))).sum()
        };

        // Rows of B run from the last chunk to the first, so that their accumulators are filled backwards.
        let mut acc_of_b = vec![E::ZERO; of_b.len()];
        let mut w = Vec::with_capacity(shape.rank());
        for k in 0..shape.rank() {
            let mut acc = E::ZERO;
            for chunk in (0..chunks_of_b).rev() {
                let row = k * chunks_of_b + chunk;
                let width = WEIGHTS.min(shape.d_out() - chunk * WEIGHTS);
                acc = betas[WEIGHTS] * acc + dot(&of_b[row], &betas[..width]);
                acc_of_b[row] = acc;
            }
            w.push(acc);
        }
        let mut sum = E::ZERO;
        let mut acc_of_a = Vec::with_capacity(of_a.len());
        for (k, rows) in of_a.chunks_exact(chunks_of_a).enumerate() {
            for (row, factors) in rows.iter().zip(fold.a.chunks(WEIGHTS)) {
                sum += w[k] * dot(row, factors);
                acc_of_a.push(sum);
            }
        }
        let rows = biased
            .iter()
            .zip(acc_of_a.into_iter().chain(acc_of_b))
            .map(|(biased, acc_out)| Row {
                words: pack(biased).collect(),
                digits: biased
                    .iter()
                    .flat_map(|&w| (0..DIGITS).map(move |digit| u64::from(w >> (3 * digit) & 7)))
                    .collect(),
                acc_out,
            })
            .collect();
        Self { rows, sum }
    }
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
    salts: &[[u64; 4]],
    publics: &[([u64; 4], &Fold)],
    beta: E,
    contradictions: Contradictions,
    rng: &mut impl CryptoRng,
) -> anyhow::Result<Vec<u8>> {
    let mut witness = fill_rows(circuit, modules, salts, publics, beta, contradictions)?;
    circuit.layout.masking.fill(&mut witness, rng)?;
    let mut bytes = Vec::new();
    bytes
        .write_proof(&prove_witness(circuit, witness)?.proof)
        .map_err(|_| anyhow::anyhow!("the proof does not serialise"))?;
    Ok(bytes)
}

/// Proves a whole witness.
pub(crate) fn prove_witness(
    circuit: &BatchCircuit,
    witness: PartitionWitness<'_, F>,
) -> anyhow::Result<ProofWithPublicInputs<F, Blake3Config, D>> {
    let mut timing = TimingTree::default();
    prove_with_partition_witness(&circuit.data.prover_only, &circuit.data.common, witness, &mut timing)
}

/// The witness of these values, without its masking.
pub(crate) fn fill_rows<'a>(
    circuit: &'a BatchCircuit,
    modules: &[ModuleRows],
    salts: &[[u64; 4]],
    publics: &[([u64; 4], &Fold)],
    beta: E,
    contradictions: Contradictions,
) -> anyhow::Result<PartitionWitness<'a, F>> {
    let (prover, common) = (&circuit.data.prover_only, &circuit.data.common);
    let mut witness =
        PartitionWitness::new(common.config.num_wires, common.degree(), &prover.representative_map);
    for (target, power) in circuit.layout.betas.iter().zip(beta.powers().skip(1)) {
        set_pair(&mut witness, *target, power)?;
    }
    for (index, layout) in circuit.layout.modules.iter().enumerate() {
        let (commitment, fold) = &publics[index];
        set_words(&mut witness, &layout.commitment, commitment)?;
        set_words(&mut witness, &layout.salt, &salts[index])?;
        for (target, value) in layout.a.iter().zip(&fold.a) {
            set_pair(&mut witness, *target, *value)?;
        }
        set_rows(&mut witness, layout, &modules[index])?;
        set_pair(&mut witness, layout.s, fold.s)?;
    }
    run_generators(circuit, &mut witness, contradictions)?;
    Ok(witness)
}

fn set_rows(
    witness: &mut PartitionWitness<'_, F>,
    layout: &ModuleLayout,
    module: &ModuleRows,
) -> anyhow::Result<()> {
    debug_assert_eq!(WIRE_ACC_IN + 2, WIRE_ACC_OUT);
    for (row, values) in (layout.first_row..).zip(&module.rows) {
        let mut set = |column, value| witness.set_wire(Wire { row, column }, value);
        for (word, &value) in values.words.iter().enumerate() {
            set(WIRE_WORDS + word, F::from_noncanonical_u64(value))?;
        }
        for (i, &value) in values.digits.iter().enumerate() {
            set(wire_digit(i / DIGITS, i % DIGITS), F::from_noncanonical_u64(value))?;
        }
        for (part, value) in values.acc_out.0.into_iter().enumerate() {
            set(WIRE_ACC_OUT + part, value)?;
        }
    }
    Ok(())
}

fn set_pair(witness: &mut PartitionWitness<'_, F>, target: [Target; 2], value: E) -> anyhow::Result<()> {
    for (target, value) in target.into_iter().zip(value.0) {
        witness.set_target(target, value)?;
    }
    Ok(())
}

fn set_words(
    witness: &mut PartitionWitness<'_, F>,
    targets: &[Target; 4],
    values: &[u64; 4],
) -> anyhow::Result<()> {
    for (&target, &value) in targets.iter().zip(values) {
        witness.set_target(target, F::from_canonical_u64(value))?;
    }
    Ok(())
}

/// Runs plonky2's generators (Poseidon rows, constants) until all have run. They were added in an order that a single pass
/// nearly always satisfies, so that plonky2's queue of watchers would only cost.
fn run_generators(
    circuit: &BatchCircuit,
    witness: &mut PartitionWitness<'_, F>,
    contradictions: Contradictions,
) -> anyhow::Result<()> {
    let generators = &circuit.data.prover_only.generators;
    let mut pending: Vec<usize> = (0..generators.len()).collect();
    let mut values = GeneratedValues::empty();
    while !pending.is_empty() {
        let mut waiting = Vec::new();
        for &index in &pending {
            if !generators[index].0.run(witness, &mut values) {
                waiting.push(index);
            }
            for (target, value) in values.target_values.drain(..) {
                if matches!(target, Target::Wire(wire) if circuit.layout.masking.fills(wire)) {
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
