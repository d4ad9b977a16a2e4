//! What a forward pass went through: the values that a proof commits to, or computes its commitments from.
//!
//! All of it is secret where there is an adapter. Tensors are row-major, a row for each token, unless it says otherwise.

use crate::norm::Statistics;

/// A whole pass.
#[derive(Default)]
#[non_exhaustive]
pub struct Trace {
    /// Layer by layer.
    pub layers: Vec<LayerTrace>,
    /// The last norm and the head.
    pub head: HeadTrace,
}

/// One layer.
#[non_exhaustive]
pub struct LayerTrace {
    /// ln_1.
    pub attention_norm: NormTrace,
    /// attn.c_attn and attention.
    pub attention: AttentionTrace,
    /// attn.c_proj.
    pub attention_out: LinearTrace,
    /// ln_2.
    pub mlp_norm: NormTrace,
    /// mlp.c_fc; its outputs are GELU's inputs.
    pub mlp_in: LinearTrace,
    /// mlp.c_proj.
    pub mlp_out: LinearTrace,
}

/// A norm.
#[derive(Default)]
#[non_exhaustive]
pub struct NormTrace {
    /// Of each row.
    pub statistics: Vec<Statistics>,
    /// X, `tokens x d`.
    pub normed: Vec<i64>,
}

/// Attention.
#[non_exhaustive]
pub struct AttentionTrace {
    /// `tokens x d` each; queries and keys as they are multiplied.
    pub query: Vec<i64>,
    /// Keys.
    pub key: Vec<i64>,
    /// Values.
    pub value: Vec<i64>,
    /// What LoRA has at its rank for each of the three, `tokens x rank`; none without an adapter.
    pub ranks: Vec<Vec<i64>>,
    /// C, by head and token.
    pub shifts: Vec<Vec<i64>>,
    /// `C·2^g - score` of each causal cell, by head, then token by token.
    pub distances: Vec<Vec<i64>>,
    /// O, `tokens x d`.
    pub attended: Vec<i64>,
}

/// A linear layer whose outputs are rounded.
#[non_exhaustive]
pub struct LinearTrace {
    /// What LoRA has at its rank, `tokens x rank`; none without an adapter.
    pub ranks: Vec<Vec<i64>>,
    /// The rounded outputs, `tokens x d_out`.
    pub outputs: Vec<i64>,
}

/// The head, with a row for each scored position.
#[derive(Default)]
#[non_exhaustive]
pub struct HeadTrace {
    /// ln_f.
    pub norm: NormTrace,
    /// C of each row.
    pub shifts: Vec<i64>,
}
