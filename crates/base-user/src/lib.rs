//! The base-model user's side: the base model, run locally, with hooks on its projections.

pub mod error;
pub mod gpt2;
pub mod hooks;
pub mod tokenizer;
