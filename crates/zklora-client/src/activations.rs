//! Activations as int16, row by row, and integer deltas back to floats.

use zklora_proto::limits::MAX_ACTIVATION;

/// Rows of activations in integers. The row scales stay with the client.
#[derive(Debug)]
pub struct Quantised {
    /// Row-major `rows x d_in`, each in `[-(2^15 - 1), 2^15 - 1]`.
    pub values: Vec<i16>,
    /// What one unit of each row is worth.
    scales: Vec<f64>,
}

/// An activation is infinite or no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the base model's activations are not finite; are its weights damaged?")]
pub struct NotFinite;

impl Quantised {
    /// Scales every row of row-major `rows x d_in` activations so that its largest entry becomes ±(2^15 - 1), and rounds. A row of zeros
    /// stays one. Fails if a value is not finite.
    ///
    /// # Panics
    ///
    /// If d_in is 0 or there are not whole rows of it.
    pub fn new(activations: &[f32], d_in: usize) -> Result<Self, NotFinite> {
        assert!(
            activations.len().is_multiple_of(d_in),
            "{} activations in rows of {d_in}",
            activations.len()
        );
        let mut quantised = Self {
            values: Vec::with_capacity(activations.len()),
            scales: Vec::with_capacity(activations.len() / d_in),
        };
        for row in activations.chunks_exact(d_in) {
            // Without their signs, floats have the order of their bits, and what is not finite comes last.
            let largest = f32::from_bits(row.iter().fold(0, |bits, x| bits.max(x.abs().to_bits())));
            if !largest.is_finite() {
                return Err(NotFinite);
            }
            let scale = f64::from(largest) / f64::from(MAX_ACTIVATION);
            // Dividing zeros by one keeps them zero.
            let divisor = if scale > 0.0 { scale } else { 1.0 };
            let rounded = row.iter().map(|&x| (f64::from(x) / divisor).round_ties_even() as i32 as i16);
            quantised.values.extend(rounded);
            quantised.scales.push(scale);
        }
        Ok(quantised)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// The float32 deltas, row-major `rows x d_out`, of integer deltas for these activations, some rows in each part, and a module of this
    /// scale.
    pub fn restore(&self, parts: &[&[i64]], module_scale: f64) -> Vec<f32> {
        let entries = parts.iter().map(|part| part.len()).sum::<usize>();
        let d_out = entries.checked_div(self.rows()).unwrap_or(0).max(1);
        let mut floats = Vec::with_capacity(entries);
        let deltas = parts.iter().flat_map(|part| part.chunks_exact(d_out));
        for (row, scale) in deltas.zip(&self.scales) {
            floats.extend(row.iter().map(|&delta| (delta as f64 * scale * module_scale) as f32));
        }
        floats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fill_the_range_and_come_back() {
        let x = [1.0f32, -2.0, 0.5, 0.0, 0.0, 0.0];
        let quantised = Quantised::new(&x, 3).unwrap();
        assert_eq!((quantised.values.as_slice(), quantised.rows()), (&[16384, -32767, 8192, 0, 0, 0][..], 2));
        // With the identity as adapter, the delta is the activation again.
        let deltas: Vec<i64> = quantised.values.iter().map(|&x| x.into()).collect();
        let back = quantised.restore(&[&deltas], 1.0);
        assert!(back.iter().zip(x).all(|(back, x)| (back - x).abs() < 2.0 / 32767.0), "{back:?}");
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(Quantised::new(&[1.0, bad], 2).unwrap_err(), NotFinite);
        }
    }
}
