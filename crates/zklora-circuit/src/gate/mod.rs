//! The gates of the statement: [`weight`] does everything that touches weights, [`instance`] brings in what is public.

mod expression;
pub mod instance;
pub(crate) mod poseidon;
pub mod weight;
