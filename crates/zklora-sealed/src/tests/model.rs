//! A whole model: `gpt2-tiny` with `lora-es` on a text.

use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::StdRng;
use zklora_circuit::commitment::{Opening, Salt};
use zklora_exact::{ExactAdapter, ExactModel, Module, Plan, Profile};
use zklora_hf::{BaseModel, LoraAdapter, quantise};
use zklora_proto::{Commitment, ModuleShape};

use super::{talk, violated};
use crate::field::{E, F, signed};
use crate::layout::Cells;
use crate::model::{SealedAdapter, SealedModel};
use crate::proof::{Prover, Statement, Verifier};
use crate::relation::head::LOW_BITS;
use p3_field::PrimeCharacteristicRing;

/// Modules of an adapter, in a manifest's order.
pub(crate) struct Weights {
    names: Vec<String>,
    scales: Vec<f64>,
    openings: Vec<Opening>,
}

impl Weights {
    pub(crate) fn of(lora: &LoraAdapter, rng: &mut StdRng) -> Self {
        let (mut names, mut scales, mut openings) = (Vec::new(), Vec::new(), Vec::new());
        for module in &lora.modules {
            let quantised = quantise(module);
            let columns = quantised.b.len() / module.rank;
            let shape = ModuleShape::new(quantised.a.len() / module.rank, module.rank, columns).unwrap();
            names.push(module.name.clone());
            scales.push(quantised.scale);
            openings.push(
                Opening::new(shape, quantised.a.to_vec(), quantised.b.to_vec(), Salt::random(rng)).unwrap(),
            );
        }
        Self { names, scales, openings }
    }

    /// The adapter of a prover, or of a verifier, who has no weights.
    fn exact(&self, model: &ExactModel, known: bool) -> ExactAdapter {
        let zeros: Vec<(Vec<i16>, Vec<i16>)> =
            self.openings.iter().map(|o| (vec![0; o.a().len()], vec![0; o.b().len()])).collect();
        let modules: Vec<Module<'_>> = (0..self.names.len())
            .map(|i| {
                let opening = &self.openings[i];
                let (a, b) =
                    if known { (opening.a(), opening.b()) } else { (&zeros[i].0[..], &zeros[i].1[..]) };
                Module { name: &self.names[i], a, b, rank: opening.shape().rank(), scale: self.scales[i] }
            })
            .collect();
        ExactAdapter::new(model, &modules).unwrap()
    }

    fn sealed<'a>(&'a self, exact: &'a ExactAdapter) -> SealedAdapter<'a> {
        let modules = self.names.iter().map(String::as_str).zip(self.openings.iter().map(Opening::shape));
        SealedAdapter { exact, modules: modules.collect() }
    }

    fn commitments(&self) -> Vec<Commitment> {
        self.openings.iter().map(Opening::commitment).collect()
    }

    fn weights_at(&self, beta: E) -> E {
        let weights = self.openings.iter().flat_map(|opening| opening.hashed_weights());
        weights.zip(beta.powers()).map(|(w, power)| power * signed(w.into())).sum()
    }
}

struct Fixture {
    model: ExactModel,
    lora: LoraAdapter,
    tokens: Vec<u32>,
}

fn fixture(tokens: usize) -> Fixture {
    let fixtures: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let base = BaseModel::open(fixtures.join("gpt2-tiny")).unwrap();
    let lora = LoraAdapter::open(fixtures.join("lora-es"), &base.projections()).unwrap();
    let goldens: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixtures.join("goldens.json")).unwrap()).unwrap();
    let texts: Vec<Vec<u32>> = goldens["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| serde_json::from_value(text["token_ids"].clone()).unwrap())
        .collect();
    let plan = Plan::calibrate(&base, Profile::Faithful, &texts).unwrap();
    let model = ExactModel::new(&base, plan).unwrap();
    let tokens = texts.iter().flatten().copied().take(tokens).collect();
    Fixture { model, lora, tokens }
}

/// Cells of every array, one each, changed by one.
#[test]
fn every_array_of_a_model_is_pinned() {
    let Fixture { model, lora, tokens } = fixture(5);
    let mut rng = StdRng::seed_from_u64(1);
    let weights = Weights::of(&lora, &mut rng);
    let exact = weights.exact(&model, true);
    let scored = [1, 3, 4];
    let sealed = SealedModel::new(&model, &tokens, &scored, Some(&weights.sealed(&exact))).unwrap();
    let openings: Vec<&Opening> = weights.openings.iter().collect();
    let (mut witness, loss) = sealed.witness(Some(&exact), &openings).unwrap();
    let results = SealedModel::results(loss).unwrap();
    let weights_at = |beta| weights.weights_at(beta);
    let system = sealed.system();
    assert_eq!(talk(system, &weights_at, &mut witness, &results), (None, true));
    assert!(!talk(system, &weights_at, &mut witness, &SealedModel::results(loss + 1).unwrap()).1);
    let arrays: Vec<_> = system.layout().arrays().map(|(id, array)| (id, array.clone())).collect();
    let pads = vec![E::ONE; system.shape().messages];
    assert_eq!(violated(system, &pads, &weights_at, &mut witness, &results), None);
    let of_model = arrays.iter().filter(|(_, array)| array.columns != crate::lookup::TABLE);
    let mut refused = 0;
    for (id, array) in of_model {
        let (row, column) = (array.rows - 1, array.columns / 2);
        let cell = system.layout().cell(*id, row, column).unwrap();
        let honest = witness.cells[cell];
        witness.cells[cell] += if honest == F::ZERO { F::ONE } else { -F::ONE };
        let violated = violated(system, &pads, &weights_at, &mut witness, &results);
        assert!(violated.is_some(), "{id:?}: {array:?}");
        witness.cells[cell] = honest;
        refused += 1;
    }
    assert!(refused > 100, "{refused}");
    assert!(arrays.iter().any(|(_, array)| array.cells == Cells::Free));
}

#[test]
fn a_sealed_loss_is_the_exact_models_and_no_other() {
    let Fixture { model, lora, tokens } = fixture(12);
    let mut rng = StdRng::seed_from_u64(2);
    let weights = Weights::of(&lora, &mut rng);
    let scored: Vec<usize> = (1..tokens.len()).collect();
    let exact = weights.exact(&model, true);
    let (bytes, loss) = {
        let sealed = SealedModel::new(&model, &tokens, &scored, Some(&weights.sealed(&exact))).unwrap();
        let openings: Vec<&Opening> = weights.openings.iter().collect();
        let (witness, loss) = sealed.witness(Some(&exact), &openings).unwrap();
        let (results, commitments) = (SealedModel::results(loss).unwrap(), weights.commitments());
        let statement = Statement { context: b"request", commitments: &commitments, results: &results };
        let prover = Prover::new(sealed.system()).unwrap();
        (prover.prove(statement, witness, &openings, &mut rng).unwrap().to_bytes(), loss)
    };
    assert_eq!(loss, SealedModel::rounded(&model.losses(&tokens, Some(&exact)).unwrap()));
    assert_ne!(loss, SealedModel::rounded(&model.losses(&tokens, None).unwrap()));

    // The verifier has shapes, scales and commitments.
    let blind = weights.exact(&model, false);
    let accepted = |tokens: &[u32], scored: &[usize], loss: i64, commitments: &[Commitment]| {
        let sealed = SealedModel::new(&model, tokens, scored, Some(&weights.sealed(&blind))).unwrap();
        let verifier = Verifier::new(sealed.system()).unwrap();
        let results = SealedModel::results(loss).unwrap();
        let statement = Statement { context: b"request", commitments, results: &results };
        verifier.verify(statement, &bytes).is_ok()
    };
    let commitments = weights.commitments();
    assert!(accepted(&tokens, &scored, loss, &commitments));
    assert!(!accepted(&tokens, &scored, loss - 1, &commitments), "another loss");
    let mut text = tokens.clone();
    text[4] ^= 1;
    assert!(!accepted(&text, &scored, loss, &commitments), "another text");
    assert!(!accepted(&tokens, &scored[1..], loss, &commitments), "fewer positions");
    let mut swapped = commitments.clone();
    let last = swapped.len() - 1;
    swapped.swap(0, last);
    assert!(!accepted(&tokens, &scored, loss, &swapped), "modules swapped");
    let other = Weights::of(&lora, &mut rng).commitments();
    assert!(!accepted(&tokens, &scored, loss, &other), "another salt");
}

#[test]
fn what_a_verifier_is_told_is_checked_before_anything_is_made_of_it() {
    let Fixture { model, lora, tokens } = fixture(6);
    let weights = Weights::of(&lora, &mut StdRng::seed_from_u64(3));
    let exact = weights.exact(&model, false);
    let made = |scored: &[usize], sealed: &SealedAdapter<'_>| {
        SealedModel::new(&model, &tokens, scored, Some(sealed)).err().map(|error| error.to_string())
    };
    let all = || weights.sealed(&exact);
    assert_eq!(made(&[1, 5], &all()), None);
    for scored in [&[][..], &[0], &[6], &[2, 2], &[3, 1]] {
        assert!(made(scored, &all()).unwrap().contains("scored positions"), "{scored:?}");
    }
    // A module left out, twice, of another name, or of another shape: a loss with it would be of another adapter.
    let refused = |edit: &dyn Fn(&mut SealedAdapter<'_>)| {
        let mut sealed = all();
        edit(&mut sealed);
        made(&[1], &sealed).is_some()
    };
    assert!(refused(&|sealed| sealed.modules.truncate(1)));
    assert!(refused(&|sealed| sealed.modules.clear()));
    assert!(refused(&|sealed| sealed.modules[1] = sealed.modules[0]));
    assert!(refused(&|sealed| sealed.modules.push(("transformer.h.9.mlp.c_fc", sealed.modules[0].1))));
    assert!(refused(&|sealed| sealed.modules[0].1 = ModuleShape::new(128, 4, 384).unwrap()));
    assert!(refused(&|sealed| sealed.modules[0].1 = ModuleShape::new(127, 8, 384).unwrap()));
    // Losses that are one modulo 2^64 or p.
    assert_eq!(SealedModel::results(1 << 43), None);
    assert_eq!(SealedModel::results(i64::MIN), None);
}

/// Another shift than a row's own, with the distances, indices, entries and the loss that follow from it: no witness, or a false identity.
#[test]
fn a_row_has_one_shift() {
    let Fixture { model, lora, tokens } = fixture(6);
    let mut rng = StdRng::seed_from_u64(4);
    let weights = Weights::of(&lora, &mut rng);
    let exact = weights.exact(&model, true);
    let scored = [2, 5];
    let sealed = SealedModel::new(&model, &tokens, &scored, Some(&weights.sealed(&exact))).unwrap();
    let openings: Vec<&Opening> = weights.openings.iter().collect();
    let pads = vec![E::ONE; sealed.system().shape().messages];
    let (low_bits, unit) = (model.score_bits().unwrap(), 1i64 << LOW_BITS);
    let accepted = |of_head: i64, of_attention: i64| {
        let (mut losses, mut trace) = model.trace(&tokens, &scored, Some(&exact)).unwrap();
        trace.head.shifts[1] += of_head;
        losses.units[1] += of_head * unit;
        let attention = &mut trace.layers[1].attention;
        attention.shifts[0][2] += of_attention;
        // The cells (2, 0), (2, 1), (2, 2).
        attention.distances[0][3..6].iter_mut().for_each(|d| *d += of_attention << low_bits);
        let Ok((mut witness, loss)) = sealed.witness_of(&losses, &trace, &openings) else { return false };
        let results = SealedModel::results(loss).unwrap();
        violated(sealed.system(), &pads, &|beta| weights.weights_at(beta), &mut witness, &results).is_none()
    };
    assert!(accepted(0, 0));
    for by in [1, -1, 2, -2, 512, -512] {
        assert!(!accepted(by, 0), "head {by}");
        assert!(!accepted(0, by), "attention {by}");
    }
}

#[test]
fn a_text_out_of_range_is_refused_without_saying_where() {
    let Fixture { model, mut lora, tokens } = fixture(6);
    lora.modules[0].scaling *= 1000.0;
    let weights = Weights::of(&lora, &mut StdRng::seed_from_u64(5));
    let exact = weights.exact(&model, true);
    assert!(model.losses(&tokens, Some(&exact)).unwrap_err().to_string().contains("h.0"));
    let sealed = SealedModel::new(&model, &tokens, &[5], Some(&weights.sealed(&exact))).unwrap();
    let openings: Vec<&Opening> = weights.openings.iter().collect();
    let refusal = sealed.witness(Some(&exact), &openings).err().unwrap();
    assert_eq!(refusal.to_string(), "a value is out of range");
}
