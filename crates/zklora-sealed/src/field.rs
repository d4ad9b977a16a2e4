//! The field, its extension, and multilinear extensions.
//!
//! A function on `{0, 1}^n` is written as a list of 2^n values, the first coordinate being the highest bit of the index. Its
//! multilinear extension at z is `Σ_x eq(z, x)·f(x)` with `eq(z, x) = Π_i (z_i·x_i + (1 - z_i)·(1 - x_i))`.

use p3_field::extension::BinomialExtensionField;
use p3_field::{BasedVectorSpace, PrimeCharacteristicRing, PrimeField64};
use p3_goldilocks::Goldilocks;

/// The base field: integers modulo p = 2^64 - 2^32 + 1.
pub type F = Goldilocks;
/// Its quadratic extension `F[φ]/(φ² - 7)`, where challenges and messages live.
pub type E = BinomialExtensionField<F, 2>;

/// p.
pub const ORDER: u64 = F::ORDER_U64;

/// The element of an integer.
pub fn signed(x: i64) -> F {
    let magnitude = F::from_u64(x.unsigned_abs());
    if x < 0 { -magnitude } else { magnitude }
}

/// An element of the extension as its two canonical coordinates.
pub fn coordinates(x: E) -> [u64; 2] {
    let parts: &[F] = x.as_basis_coefficients_slice();
    [parts[0].as_canonical_u64(), parts[1].as_canonical_u64()]
}

/// The element of the extension with these coordinates; `None` unless both are canonical.
pub fn from_coordinates(parts: [u64; 2]) -> Option<E> {
    parts.iter().all(|&x| x < ORDER).then(|| extension(F::from_u64(parts[0]), F::from_u64(parts[1])))
}

/// `a + b·φ`.
pub fn extension(a: F, b: F) -> E {
    E::from_basis_coefficients_fn(|i| if i == 0 { a } else { b })
}

/// `eq(z, x)` for every x of `{0, 1}^n`.
pub fn eq_table(point: &[E]) -> Vec<E> {
    let mut table = Vec::with_capacity(1 << point.len());
    table.push(E::ONE);
    for &z in point {
        // From the back, so that no value is overwritten before it is read.
        table.resize(2 * table.len(), E::ZERO);
        for i in (0..table.len() / 2).rev() {
            let high = table[i] * z;
            table[2 * i] = table[i] - high;
            table[2 * i + 1] = high;
        }
    }
    table
}

/// `eq(z, x)` for the x whose bits are those of an index.
pub fn eq_at(point: &[E], index: usize) -> E {
    let bits = point.len();
    point
        .iter()
        .enumerate()
        .map(|(i, &z)| if index >> (bits - 1 - i) & 1 == 1 { z } else { E::ONE - z })
        .product()
}

/// `eq(y, z)`, both points of the extension.
pub fn eq(y: &[E], z: &[E]) -> E {
    y.iter().zip(z).map(|(&y, &z)| E::ONE - y - z + (y * z).double()).product()
}

/// `Σ_{x < count} eq(z, x)`: the extension of "is below count". For `count ≤ 2^n`.
pub fn below(point: &[E], count: usize) -> E {
    let bits = point.len();
    if count >> bits != 0 {
        return E::ONE;
    }
    let (mut sum, mut prefix) = (E::ZERO, E::ONE);
    for (i, &z) in point.iter().enumerate() {
        if count >> (bits - 1 - i) & 1 == 1 {
            sum += prefix * (E::ONE - z);
            prefix *= z;
        } else {
            prefix *= E::ONE - z;
        }
    }
    sum
}

/// `⌈log2(count)⌉`: how many coordinates an index below count has.
pub fn bits_of(count: usize) -> usize {
    count.next_power_of_two().trailing_zeros() as usize
}

/// Overwrites secrets.
pub fn wipe<T: Copy + Default>(values: &mut [T]) {
    values.fill(T::default());
    std::hint::black_box(values);
}

/// A list of secrets, overwritten when it is dropped and when it grows.
#[derive(Default)]
pub struct Secret<T: Copy + Default>(Vec<T>);

impl<T: Copy + Default> Secret<T> {
    /// Adds one more.
    pub fn push(&mut self, value: T) {
        if self.0.len() == self.0.capacity() {
            let mut larger = Vec::with_capacity(2 * self.0.len() + 64);
            larger.extend_from_slice(&self.0);
            wipe(&mut self.0);
            self.0 = larger;
        }
        self.0.push(value);
    }
}

impl<T: Copy + Default> From<Vec<T>> for Secret<T> {
    fn from(list: Vec<T>) -> Self {
        Self(list)
    }
}

impl<T: Copy + Default> std::ops::Deref for Secret<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Copy + Default> std::ops::DerefMut for Secret<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Copy + Default> Drop for Secret<T> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(n: usize) -> Vec<E> {
        (0..n as u64).map(|i| extension(F::from_u64(3 + i * i), F::from_u64(7 * i + 1))).collect()
    }

    #[test]
    fn tables_and_single_values_agree() {
        let z = point(5);
        let table = eq_table(&z);
        for (index, &value) in table.iter().enumerate() {
            assert_eq!(value, eq_at(&z, index));
            let bits: Vec<E> = (0..5).map(|i| E::from_u64((index >> (4 - i) & 1) as u64)).collect();
            assert_eq!(value, eq(&z, &bits));
        }
        for count in 0..=32 {
            assert_eq!(below(&z, count), table[..count].iter().copied().sum::<E>(), "{count}");
        }
    }

    #[test]
    fn integers_and_coordinates() {
        assert_eq!(signed(-3) + F::from_u64(3), F::ZERO);
        let x = extension(F::from_u64(5), signed(-1));
        assert_eq!(coordinates(x), [5, ORDER - 1]);
        assert_eq!(from_coordinates(coordinates(x)), Some(x));
        assert_eq!(from_coordinates([0, ORDER]), None);
        assert_eq!([1, 2, 3, 64, 65].map(bits_of), [0, 1, 2, 6, 7]);
    }
}
