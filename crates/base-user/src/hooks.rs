//! Patching a base model's projections.

use tch::Tensor;

/// Replaces the output of a projection that it is [patched](crate::gpt2::Gpt2::patch) onto.
pub trait ProjectionHook: Send + Sync {
    /// Gives what the model goes on with instead of `base_output`, commonly `base_output` plus a delta.
    ///
    /// `projection` is the projection's name (one hook may serve several), `input` its input rows, float32
    /// [rows, d_in], and `base_output` what the base model makes of them, float32 [rows, d_out]. Rows are the tokens of
    /// all sequences of a batch, one sequence after the other. The result must have the shape and type of
    /// `base_output`; gradients are off.
    ///
    /// An error ends the forward pass and is returned from it, with the projection's name.
    fn apply(&self, projection: &str, input: &Tensor, base_output: Tensor) -> anyhow::Result<Tensor>;
}
