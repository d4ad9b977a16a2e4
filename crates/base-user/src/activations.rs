//! Tensors of activations as int16, and integer deltas back to tensors.

use anyhow::Context;
use tch::{Kind, Tensor};
use zklora_client::Quantised;

/// The rows of a `[rows, d_in]`. Fails if a value is not finite.
pub fn quantised(activations: &Tensor) -> anyhow::Result<Quantised> {
    let (rows, width) = activations.size2()?;
    let mut x = vec![0f32; (rows * width) as usize];
    let count = x.len();
    activations.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut x, count)?;
    Ok(Quantised::new(&x, width as usize)?)
}

/// The float32 delta `[rows, d_out]` of integer deltas for these activations, some rows in each part, and a module of this scale.
pub fn restored(activations: &Quantised, parts: &[&[i64]], module_scale: f64) -> anyhow::Result<Tensor> {
    let floats = activations.restore(parts, module_scale);
    let d_out = floats.len().checked_div(activations.rows()).context("no rows")?;
    Ok(Tensor::f_from_slice(&floats)?.f_view([activations.rows() as i64, d_out as i64])?)
}
