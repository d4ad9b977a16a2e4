//! The base-model user's side: the base model, run locally, with a contributor's deltas on its projections.
//!
//! [`gpt2`] is the model, with a place for a hook ([`hooks`]) on each projection; [`session`] talks to a contributor and ends
//! with a receipt that both have signed; [`remote`] is the hook that sends a projection's input there, as int16
//! ([`activations`]), and adds the delta that comes back.

pub mod activations;
pub mod error;
pub mod gpt2;
pub mod fetch;
pub mod hooks;
mod link;
pub mod record;
pub mod remote;
pub mod session;
pub mod tokenizer;
