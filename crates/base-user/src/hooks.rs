//! Patching a base model's projections.

use tch::{TchError, Tensor};

/// Replaces the output of a projection that it is [patched](crate::gpt2::Gpt2::patch) onto.
pub trait ProjectionHook: Send + Sync {
    /// Gives what the model goes on with in place of the projection's own output, commonly that plus a delta.
    ///
    /// `projection` is the projection's name (one hook may serve several), `input` its input rows, float32 [rows, d_in]. Rows
    /// are the tokens of all sequences of a batch, one sequence after the other. `base` computes what the base model makes of
    /// them, float32 [rows, d_out]: a hook that has something under way elsewhere calls it meanwhile, and one that has no use
    /// for it never. The result must have that shape and type; gradients are off.
    ///
    /// An error ends the forward pass and is returned from it, with the projection's name.
    fn apply(&self, projection: &str, input: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Tensor>;
}

/// Computes a projection's own output.
pub type BaseOutput<'a> = &'a dyn Fn() -> Result<Tensor, TchError>;
