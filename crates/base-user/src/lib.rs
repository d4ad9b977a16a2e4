//! The base-model user's side: the base model, run locally, with a contributor's deltas on its projections.
//!
//! [`models`] are the models, with a place for a hook ([`hooks`]) on each projection. Sessions are those of `zklora-client`; [`remote`] is the
//! hook that sends a projection's input there, as int16 ([`activations`]), and adds the delta that comes back. [`dataset`] and
//! [`evaluation`] are what `eval` does with it, [`sampling`] and [`text_stream`] what `generate` does; [`stop`] ends either early. [`replay`] runs the
//! model again with what a bundle recorded, and [`reported`] holds against that what somebody says came of it.

pub mod activations;
pub mod dataset;
pub mod error;
pub mod evaluation;
mod generation_config;
pub mod hooks;
pub mod models;
pub mod remote;
pub mod replay;
pub mod reported;
pub mod sampling;
mod sources;
pub mod stop;
pub mod text_stream;
pub mod tokenizer;
mod tokenizer_files;
