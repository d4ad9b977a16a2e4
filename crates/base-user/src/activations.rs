//! Activations as int16, row by row, and integer deltas back to floats.

use anyhow::{Context, ensure};
use tch::{Kind, Tensor};
use zklora_proto::limits::MAX_ACTIVATION;

/// Rows of activations in integers. The row scales stay with the base-model user.
#[derive(Debug)]
pub struct Quantised {
    /// Row-major `rows x d_in`, each in `[-(2^15 - 1), 2^15 - 1]`.
    pub values: Vec<i16>,
    /// What one unit of each row is worth: float64 `[rows, 1]`.
    scales: Tensor,
}

impl Quantised {
    /// Scales every row of a float `[rows, d_in]` so that its largest entry becomes ±(2^15 - 1), and rounds. A row of zeros
    /// stays one. Fails if a value is not finite.
    pub fn new(activations: &Tensor) -> anyhow::Result<Self> {
        let x = activations.f_to_kind(Kind::Double)?;
        let largest = x.f_abs()?.f_amax([1i64].as_slice(), true)?;
        ensure!(
            largest.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1,
            "the base model's activations are not finite; are its weights damaged?"
        );
        let scales = largest.f_div_scalar(f64::from(MAX_ACTIVATION))?;
        // Rows of zeros have scale zero; dividing them by one keeps them zero.
        let divisors = scales.f_where_self(&scales.f_gt(0.0)?, &scales.f_ones_like()?)?;
        let rounded = x.f_div(&divisors)?.f_round()?.f_to_kind(Kind::Int16)?.f_contiguous()?;
        let mut values = vec![0i16; rounded.numel()];
        let count = values.len();
        rounded.f_copy_data(&mut values, count)?;
        Ok(Self { values, scales })
    }

    /// The float32 delta `[rows, d_out]` of integer deltas for these activations and a module of this scale.
    pub fn restore(&self, deltas: &[i64], module_scale: f64) -> anyhow::Result<Tensor> {
        let rows = self.scales.size()[0];
        let columns = (deltas.len() as i64).checked_div(rows).context("no rows")?;
        let deltas = Tensor::f_from_slice(deltas)?.f_view([rows, columns])?.f_to_kind(Kind::Double)?;
        Ok(deltas.f_mul(&self.scales)?.f_mul_scalar(module_scale)?.f_to_kind(Kind::Float)?)
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
        let back = quantised.restore(&deltas, 1.0).unwrap();
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
