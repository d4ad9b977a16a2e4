//! The Poseidon permutation over any ring that holds the field, with the inputs of its S-boxes given from outside.
//!
//! As in plonky2's own Poseidon gate: an S-box `x^7` has degree 7, so that every input of one but those of the first round is a
//! wire of its own. Parameters, and the fast form of the partial rounds, are plonky2's; the form is from appendix B of
//! L. Grassi, D. Khovratovich, C. Rechberger, A. Roy, M. Schofnegger, "Poseidon" (eprint 2019/458).

use std::array::from_fn;
use std::ops::{Add, Mul};

use plonky2::hash::poseidon::{
    ALL_ROUND_CONSTANTS, HALF_N_FULL_ROUNDS, N_PARTIAL_ROUNDS, Poseidon, SPONGE_WIDTH,
};

use crate::F;

/// Elements of the state.
pub const WIDTH: usize = SPONGE_WIDTH;
/// S-boxes whose input is a wire: all but those of the first round.
pub const SBOXES: usize = (2 * HALF_N_FULL_ROUNDS - 1) * WIDTH + N_PARTIAL_ROUNDS;

/// The permutation. `constant` embeds a number below p. `sbox(i, x)` is told what the input of S-box i should be, and says
/// what stands for it from there on.
#[inline(always)]
pub fn permute<T>(
    mut state: [T; WIDTH],
    constant: impl Fn(u64) -> T,
    mut sbox: impl FnMut(usize, T) -> T,
) -> [T; WIDTH]
where
    T: Copy + Add<Output = T> + Mul<Output = T>,
{
    let power = |x: T| {
        let square = x * x;
        let fourth = square * square;
        fourth * square * x
    };
    let circulant: [T; WIDTH] = from_fn(|i| constant(F::MDS_MATRIX_CIRC[i]));
    let diagonal: [T; WIDTH] = from_fn(|i| constant(F::MDS_MATRIX_DIAG[i]));
    let mix = |state: &[T; WIDTH]| {
        from_fn(|row| {
            let diagonal = state[row] * diagonal[row];
            circulant.iter().enumerate().fold(diagonal, |sum, (i, &c)| sum + state[(row + i) % WIDTH] * c)
        })
    };
    let mut slot = 0;
    for round in 0..HALF_N_FULL_ROUNDS {
        for (i, element) in state.iter_mut().enumerate() {
            *element = *element + constant(ALL_ROUND_CONSTANTS[round * WIDTH + i]);
            if round > 0 {
                *element = sbox(slot, *element);
                slot += 1;
            }
            *element = power(*element);
        }
        state = mix(&state);
    }

    for (i, element) in state.iter_mut().enumerate() {
        *element = *element + constant(F::FAST_PARTIAL_FIRST_ROUND_CONSTANT[i]);
    }
    let matrix = &F::FAST_PARTIAL_ROUND_INITIAL_MATRIX;
    state = from_fn(|column| match column {
        0 => state[0],
        _ => (2..WIDTH).fold(state[1] * constant(matrix[0][column - 1]), |sum, row| {
            sum + state[row] * constant(matrix[row - 1][column - 1])
        }),
    });
    for round in 0..N_PARTIAL_ROUNDS {
        let mut first = power(sbox(slot, state[0]));
        slot += 1;
        if round + 1 < N_PARTIAL_ROUNDS {
            first = first + constant(F::FAST_PARTIAL_ROUND_CONSTANTS[round]);
        }
        let corner = first * constant(F::MDS_MATRIX_CIRC[0] + F::MDS_MATRIX_DIAG[0]);
        let (row, column) = (&F::FAST_PARTIAL_ROUND_W_HATS[round], &F::FAST_PARTIAL_ROUND_VS[round]);
        state[0] = (1..WIDTH).fold(corner, |sum, i| sum + state[i] * constant(row[i - 1]));
        for i in 1..WIDTH {
            state[i] = state[i] + first * constant(column[i - 1]);
        }
    }

    for round in HALF_N_FULL_ROUNDS + N_PARTIAL_ROUNDS..2 * HALF_N_FULL_ROUNDS + N_PARTIAL_ROUNDS {
        for (i, element) in state.iter_mut().enumerate() {
            let input = *element + constant(ALL_ROUND_CONSTANTS[round * WIDTH + i]);
            *element = power(sbox(slot, input));
            slot += 1;
        }
        state = mix(&state);
    }
    debug_assert_eq!(slot, SBOXES);
    state
}

#[cfg(test)]
mod tests {
    use plonky2::field::types::{Field, Sample};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn is_plonky2s_permutation() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..10 {
            let state: [F; WIDTH] = from_fn(|_| F::sample(&mut rng));
            let mut slots = Vec::new();
            let permuted = permute(state, F::from_canonical_u64, |slot, x| {
                assert_eq!(slot, slots.len());
                slots.push(x);
                x
            });
            assert_eq!(permuted, F::poseidon(state));
            assert_eq!(slots.len(), SBOXES);
        }
    }
}
