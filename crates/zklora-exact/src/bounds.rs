//! How large every sum of the model could be, from declared ranges alone. A model in which one could reach 2^62 is not built: in a
//! field of 2^64 elements an identity of such sums would be one of integers no more.

use crate::error::BuildError;

/// Both sides of a proved identity stay below this power of two.
pub(crate) const LIMIT: u32 = 62;

/// Refuses a sum that could reach 2^limit.
pub(crate) fn below(place: &str, what: &'static str, bound: u128, limit: u32) -> Result<u128, BuildError> {
    if bound >> limit > 0 {
        let bits = (bound as f64).log2();
        return Err(BuildError::Bound { place: place.into(), what, bits, limit });
    }
    Ok(bound)
}

/// Refuses a sum that could reach 2^62.
pub(crate) fn bounded(place: &str, what: &'static str, bound: u128) -> Result<u128, BuildError> {
    below(place, what, bound, LIMIT)
}

/// The largest magnitude.
pub(crate) fn largest(values: &[i64]) -> u128 {
    values.iter().map(|v| u128::from(v.unsigned_abs())).max().unwrap_or(0)
}
