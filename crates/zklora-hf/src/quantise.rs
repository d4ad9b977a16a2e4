//! From float weights to the integers that are committed to, once, when the state is made.

use crate::LoraModule;
use zeroize::Zeroizing;

/// The largest magnitude of a quantised weight. The range `[-2^11, 2^11)` has one value more, which is not used, so that
/// every weight has its negative.
const MAX_WEIGHT: f64 = 2047.0;

/// A module in integers: `scale · A' · B'` approximates `scaling · A · B`.
pub struct Quantised {
    /// A', row-major `d_in x rank`.
    pub a: Zeroizing<Vec<i16>>,
    /// B', row-major `rank x d_out`.
    pub b: Zeroizing<Vec<i16>>,
    /// What one unit of an integer delta is worth, for activations in units of 1.
    pub scale: f64,
}

/// Quantises a module.
///
/// A and B may be rescaled against each other in every rank: `A[:,k]·t` and `B[k,:]/t` give the same product. The public
/// scale must be the same for all ranks, so it is set by the rank with the largest product of maxima, which then fills the
/// whole range on both sides; every other rank splits its slack evenly between A and B. The error of a weight is at most half a
/// unit of its rank.
pub fn quantise(module: &LoraModule) -> Quantised {
    let (rank, d_out) = (module.rank, module.d_out);
    let largest =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0f64, |max, w| max.max(f64::from(w.abs())));
    let maxima: Vec<(f64, f64)> = (0..rank)
        .map(|k| {
            let a = largest(&mut module.a.iter().skip(k).step_by(rank).copied());
            let b = largest(&mut module.b[k * d_out..(k + 1) * d_out].iter().copied());
            (a, b)
        })
        .collect();
    let product = maxima.iter().fold(0f64, |max, (a, b)| max.max(a * b));
    let mut a = Zeroizing::new(vec![0i16; module.a.len()]);
    let mut b = Zeroizing::new(vec![0i16; module.b.len()]);
    if product == 0.0 {
        // An untrained adapter: B is zero, and so is every delta.
        return Quantised { a, b, scale: module.scaling };
    }
    for (k, &(max_a, max_b)) in maxima.iter().enumerate() {
        if max_a * max_b == 0.0 {
            continue;
        }
        let slack = (product / (max_a * max_b)).sqrt();
        let (unit_a, unit_b) = (max_a * slack / MAX_WEIGHT, max_b * slack / MAX_WEIGHT);
        for (target, &w) in a.iter_mut().zip(&module.a).skip(k).step_by(rank) {
            *target = (f64::from(w) / unit_a).round() as i16;
        }
        let row = k * d_out..(k + 1) * d_out;
        for (target, &w) in b[row.clone()].iter_mut().zip(&module.b[row]) {
            *target = (f64::from(w) / unit_b).round() as i16;
        }
    }
    Quantised { a, b, scale: product / (MAX_WEIGHT * MAX_WEIGHT) * module.scaling }
}
