//! The base-model user's side: the base model, run locally, with a contributor's deltas on its projections.
//!
//! [`models`] are the models, with a place for a hook ([`hooks`]) on each projection; [`session`] talks to a contributor and ends
//! with a receipt that both have signed; [`remote`] is the hook that sends a projection's input there, as int16
//! ([`activations`]), and adds the delta that comes back. [`dataset`] and [`evaluation`] are what `eval` does with it, [`sampling`]
//! and [`text_stream`] what `generate` does; [`stop`] ends either early. [`record`] is what is kept of a session, [`fetch`] gets its bundle, and [`redact`] makes one without activations
//! of it. [`replay`] runs the model again with what a bundle recorded, and [`reported`] holds against that what somebody says came of it.

pub mod activations;
pub mod dataset;
pub mod error;
pub mod evaluation;
pub mod fetch;
pub mod hooks;
mod link;
pub mod models;
pub mod record;
pub mod redact;
pub mod remote;
pub mod replay;
pub mod reported;
pub mod sampling;
pub mod session;
mod sources;
pub mod stop;
pub mod text_stream;
pub mod tokenizer;
mod tokenizer_files;
