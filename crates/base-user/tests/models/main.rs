//! Models and adapters against what transformers and PEFT compute.

mod adapter_kinds;
mod expected;
mod goldens;
mod local_lora;
mod models;
