//! Activations as int16, row by row, and integer deltas back to floats.

use anyhow::{Context, ensure};
use tch::{Kind, Tensor};
use zklora_proto::limits::MAX_ACTIVATION;

/// Rows of activations in integers. The row scales stay with the base-model user.
#[derive(Debug)]
pub struct Quantised {
    /// Row-major `rows x d_in`, each in `[-(2^15 - 1), 2^15 - 1]`.
    pub values: Vec<i16>,
    /// What one unit of each row is worth.
    scales: Vec<f64>,
}

impl Quantised {
    /// Scales every row of a float32 `[rows, d_in]` so that its largest entry becomes ±(2^15 - 1), and rounds. A row of zeros
    /// stays one. Fails if a value is not finite.
    pub fn new(activations: &Tensor) -> anyhow::Result<Self> {
        let (rows, width) = activations.size2()?;
        let mut x = vec![0f32; (rows * width) as usize];
        let count = x.len();
        activations.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut x, count)?;
        let mut quantised =
            Self { values: Vec::with_capacity(count), scales: Vec::with_capacity(rows as usize) };
        for row in x.chunks_exact(width as usize) {
            // Without their signs, floats have the order of their bits, and what is not finite comes last.
            let largest = f32::from_bits(row.iter().fold(0, |bits, x| bits.max(x.abs().to_bits())));
            ensure!(
                largest.is_finite(),
                "the base model's activations are not finite; are its weights damaged?"
            );
            let scale = f64::from(largest) / f64::from(MAX_ACTIVATION);
            // Dividing zeros by one keeps them zero.
            let divisor = if scale > 0.0 { scale } else { 1.0 };
            let rounded = row.iter().map(|&x| (f64::from(x) / divisor).round_ties_even() as i32 as i16);
            quantised.values.extend(rounded);
            quantised.scales.push(scale);
        }
        Ok(quantised)
    }

    /// The float32 delta `[rows, d_out]` of integer deltas for these activations, some rows in each part, and a module of this
    /// scale.
    pub fn restore(&self, parts: &[&[i64]], module_scale: f64) -> anyhow::Result<Tensor> {
        let (rows, entries) = (self.scales.len(), parts.iter().map(|part| part.len()).sum::<usize>());
        let columns = entries.checked_div(rows).context("no rows")?;
        let mut floats = Vec::with_capacity(entries);
        let deltas = parts.iter().flat_map(|part| part.chunks_exact(columns.max(1)));
        for (row, scale) in deltas.zip(&self.scales) {
            floats.extend(row.iter().map(|&delta| (delta as f64 * scale * module_scale) as f32));
        }
        Ok(Tensor::f_from_slice(&floats)?.f_view([rows as i64, columns as i64])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fill_the_range_and_come_back() {
        let x = Tensor::from_slice(&[1.0f32, -2.0, 0.5, 0.0, 0.0, 0.0]).view([2, 3]);
        let quantised = Quantised::new(&x).unwrap();
        assert_eq!(quantised.values, [16384, -32767, 8192, 0, 0, 0]);
        // With the identity as adapter, the delta is the activation again.
        let deltas: Vec<i64> = quantised.values.iter().map(|&x| x.into()).collect();
        let back = quantised.restore(&[&deltas], 1.0).unwrap();
        let error = (back - x).abs().max().double_value(&[]);
        assert!(error < 2.0 / 32767.0, "{error}");
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error =
                Quantised::new(&Tensor::from_slice(&[1.0, bad]).view([1, 2])).unwrap_err().to_string();
            assert!(error.contains("not finite"), "{error}");
        }
    }
}
