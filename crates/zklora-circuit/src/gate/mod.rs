//! The gates of the statement: [`weight`] does everything that touches weights, [`instance`] brings in what is public.

mod expression;
pub mod instance;
pub mod pads;
pub(crate) mod poseidon;
pub mod product;
pub mod weight;
