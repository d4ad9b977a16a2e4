//! GPT-2 with a LoRA adapter in exact integers: the model whose loss a sealed evaluation proves.
//!
//! An [`ExactModel`] is made from a base model's float weights and a [`Plan`] of public constants, which anyone makes by
//! [`Plan::calibrate`]; an [`ExactAdapter`] is the committed integer matrices on it. [`ExactModel::losses`] then gives a text's losses,
//! the same to the last bit on every machine: every rounding has one right answer, and every value that leaves its declared range
//! is a refusal, never clipped. docs/exact-model.md is the specification.

mod adapter;
mod bounds;
mod calibrate;
mod error;
mod forward;
mod matrix;
mod model;
mod norm;
mod parts;
mod plan;
mod profile;
mod softmax;
mod tables;
mod trace;

pub use adapter::{ExactAdapter, Module};
pub use error::{BuildError, OutOfRange, Refusal};
pub use forward::{LOSS_BITS, Losses};
pub use model::ExactModel;
pub use norm::Statistics;
pub use parts::{ExponentialPart, LinearPart, Projection, RankPart};
pub use plan::{Hot, Plan};
pub use profile::Profile;
pub use trace::{AttentionTrace, HeadTrace, LayerTrace, LinearTrace, NormTrace, Trace};
