//! Patching a base model's projections.

use tch::{TchError, Tensor};

/// Replaces the outputs of projections of a model that it is [put on](crate::models::Model::patch).
pub trait Hook: Send + Sync {
    /// The projections that it serves, such as `transformer.h.0.attn.c_attn`.
    fn projections(&self) -> Vec<String>;

    /// Gives, for each of these projections, what the model goes on with in place of the projection's own output, commonly that
    /// plus a delta.
    ///
    /// `projections` are all that read the same input, at least one of them served. `input` are its rows, float32
    /// [rows, d_in]: the tokens of all sequences of a batch, one sequence after the other. `base` computes what the base model
    /// makes of them in the projection at a place of `projections`, float32 [rows, d_out]: a hook that has something under way
    /// elsewhere calls it meanwhile, one that does not serve a projection returns it, and one that has no use for it never
    /// calls it. Each result must have that shape and type; gradients are off.
    ///
    /// An error ends the forward pass and is returned from it, with the projections' names.
    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>>;
}

/// Computes the own output of the projection at a place.
pub type BaseOutput<'a> = &'a dyn Fn(usize) -> Result<Tensor, TchError>;
