//! Tests of whole proofs.

mod model;
mod norm;
mod single;

use p3_field::PrimeCharacteristicRing;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::commitment::uniform;
use crate::conversation::{Conversation, Operand};
use crate::fiat_shamir::FiatShamir;
use crate::field::{E, extension};
use crate::scene::Scene;
use crate::system::System;
use crate::witness::Witness;

/// The conversation alone, with pads in the clear: the first false check, and whether the form holds of the pads.
pub(crate) fn talk(
    system: &System,
    weights_at: &dyn Fn(E) -> E,
    witness: &mut Witness,
    results: &[i64],
) -> (Option<usize>, bool) {
    system.lookups().count(system.layout(), &mut witness.cells);
    let shape = system.shape();
    let mut rng = StdRng::seed_from_u64(9);
    let pads: Vec<E> = (0..shape.messages).map(|_| extension(uniform(&mut rng), uniform(&mut rng))).collect();
    let mut fs = FiatShamir::new();
    fs.absorb("statement", b"test");
    let mut prover = Scene::new(Conversation::prover(fs.clone(), &pads), system.layout(), Some(witness));
    let end = system.converse(&mut prover, results);
    let table = crate::field::eq_table(&end.point);
    let opened: E = witness.cells.iter().zip(&table).map(|(&x, &e)| e * x).sum();
    end.check(&mut prover.run, opened);
    let weights = weights_at(end.beta);
    let violated = prover.run.violated(weights);
    let rho = prover.run.challenge("rho");
    let form = prover.run.form(rho);
    assert_eq!(prover.run.shape(), shape);

    let (ciphertexts, transcript) = prover.run.end();
    let mut verifier = Scene::new(Conversation::verifier(fs, &ciphertexts), system.layout(), None);
    let end = system.converse(&mut verifier, results);
    end.check(&mut verifier.run, opened);
    let of_verifier = {
        let rho = verifier.run.challenge("rho");
        verifier.run.form(rho)
    };
    assert_eq!(of_verifier, form);
    assert_eq!(verifier.run.end().1, transcript);
    let of = |operand| match operand {
        Operand::Pad(i) => pads[i],
        Operand::Weights => weights,
        Operand::One => E::ONE,
    };
    let linear: E = form.lambda.iter().zip(&pads).map(|(&l, &p)| l * p).sum();
    let quadratic: E = form.kappa.iter().zip(&shape.products).map(|(&k, &(x, y))| k * of(x) * of(y)).sum();
    (violated, linear + quadratic == form.target)
}

/// The first check that a prover's conversation violates.
pub(crate) fn violated(
    system: &System,
    pads: &[E],
    weights_at: &dyn Fn(E) -> E,
    witness: &mut Witness,
    results: &[i64],
) -> Option<usize> {
    system.lookups().count(system.layout(), &mut witness.cells);
    let mut scene = Scene::new(Conversation::prover(FiatShamir::new(), pads), system.layout(), Some(witness));
    let end = system.converse(&mut scene, results);
    let table = crate::field::eq_table(&end.point);
    let opened: E = witness.cells.iter().zip(&table).map(|(&x, &e)| e * x).sum();
    end.check(&mut scene.run, opened);
    scene.run.violated(weights_at(end.beta))
}
