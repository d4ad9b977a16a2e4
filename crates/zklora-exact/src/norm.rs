//! Layer norm in integers.

use crate::error::OutOfRange;
use crate::profile::NORM_PRODUCT;

/// What a norm found in one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// μ, the mean, rounded down after adding half a unit.
    pub mean: i64,
    /// V, the sum of squares of what is left, and of epsilon's share.
    pub spread: i64,
    /// r, the integer nearest to `√(d·4^a / V)`.
    pub inverse: i64,
}

impl Statistics {
    /// Of a row of the residual stream, in which `epsilon` is what the norm's epsilon adds to V.
    ///
    /// `μ = ⌊(Σh + ⌊d/2⌋) / d⌋`, `V = Σ(h - μ)² + epsilon`, `r = ⌊(R + 1) / 2⌋` with `R = ⌊√(4·d·4^a / V)⌋`.
    pub(crate) fn of(row: &[i64], epsilon: i64) -> Result<Self, OutOfRange> {
        let d = row.len() as i64;
        let mean = (row.iter().sum::<i64>() + d / 2).div_euclid(d);
        signed(mean, 16, "the mean of a norm")?;
        let squares = row.iter().map(|&h| i128::from(h - mean).pow(2)).sum::<i128>() + i128::from(epsilon);
        if squares >= 1 << 48 {
            return Err(OutOfRange::new("the spread of a norm", squares, 1i128, (1i128 << 48) - 1));
        }
        let spread = squares as i64;
        // d is at most 2^14: below 2^65.
        let root = ((u128::from(d as u64) << (2 * NORM_PRODUCT + 2)) / spread as u128).isqrt();
        let inverse = i128::try_from(root.div_ceil(2)).unwrap_or(i128::MAX);
        if !(1 << 6..1 << 24).contains(&inverse) {
            return Err(OutOfRange::new("the inverse of a norm's spread", inverse, 1 << 6, (1 << 24) - 1));
        }
        Ok(Self { mean, spread, inverse: inverse as i64 })
    }

    /// The row, normalised: `rnd(r·(h - μ), a - bits)`, signed 16 bits.
    pub(crate) fn apply(&self, row: &[i64], bits: u32) -> Result<Vec<i64>, OutOfRange> {
        row.iter()
            .map(|&h| {
                // Below 2^24 times below 2^28.
                let x = round(self.inverse * (h - self.mean), NORM_PRODUCT - bits);
                signed(x, 16, "a normalised activation").map(|()| x)
            })
            .collect()
    }
}

/// `⌊x / 2^bits + 1/2⌋`.
pub(crate) fn round(x: i64, bits: u32) -> i64 {
    if bits == 0 { x } else { (x + (1 << (bits - 1))) >> bits }
}

/// Whether a value fits so many bits, a sign among them.
pub(crate) fn signed(x: i64, bits: u32, what: &'static str) -> Result<(), OutOfRange> {
    let half = 1i64 << (bits - 1);
    if (-half..half).contains(&x) { Ok(()) } else { Err(OutOfRange::new(what, x, -half, half - 1)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_inverse_is_the_nearest_integer(row in prop::collection::vec(-100_000i64..100_000, 1..200), epsilon in 1i64..100) {
            let Ok(found) = Statistics::of(&row, epsilon) else { return Ok(()) };
            let d = row.len() as i128;
            // (2r - 1)² ≤ 4·d·4^a / V < (2r + 1)².
            let (bound, spread) = (d << (2 * NORM_PRODUCT + 2), i128::from(found.spread));
            let twice = 2 * i128::from(found.inverse);
            prop_assert!((twice - 1).pow(2) * spread <= bound && bound < (twice + 1).pow(2) * spread);
            let sum: i128 = row.iter().map(|&h| i128::from(h)).sum();
            let rest = sum + d / 2 - d * i128::from(found.mean);
            prop_assert!((0..d).contains(&rest));
        }
    }

    #[test]
    fn what_leaves_its_range_is_refused() {
        assert!(Statistics::of(&[1 << 30, -(1 << 30)], 1).is_err());
        assert!(Statistics::of(&[1 << 20; 4], 1).unwrap_err().to_string().contains("mean"));
        let flat = Statistics::of(&[5; 8], 1).unwrap_err();
        assert!(flat.to_string().contains("inverse"), "{flat}");
        assert_eq!((round(3, 1), round(-3, 1), round(-1, 1), round(7, 0)), (2, -1, 0, 7));
    }
}
