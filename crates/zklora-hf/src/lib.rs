//! Base models and LoRA adapters in Hugging Face layout, without libtorch.
//!
//! [`BaseModel::open`] reads a folder with `config.json` and `model.safetensors` (one file or sharded), checks every
//! tensor the architecture needs, and computes the [`BaseModelDigest`](zklora_proto::BaseModelDigest) by which owner A and user B make sure that they mean
//! the same base model. [`LoraAdapter::open`] reads a PEFT adapter folder and checks each module against the base
//! model's [`Projection`]s.
//!
//! A value of these types that exists is valid. Files are hostile until then: every read is bounded, nothing is
//! allocated from a length that was not compared with the size of the file, and an adapter whose configuration or
//! tensors mean anything but `x·A·B·scaling` is refused, because it would be served and proved as something it is not.
//!
//! The adapter's weights are secret. [`LoraModule`] neither prints them nor leaves them in freed memory.

mod adapter;
mod adapter_config;
mod adapter_fields;
mod adapter_targets;
mod base;
mod config;
mod digest;
mod error;
mod python_regex;
mod quantise;
pub mod read;
mod tensor_file;
mod weights;
mod wrappers;

pub use adapter::{LoraAdapter, LoraModule};
pub use base::BaseModel;
pub use config::{Architecture, Config, Gpt2Config, LlamaConfig, Projection, RopeScaling, Setting};
pub use error::Error;
pub use quantise::{Quantised, quantise};
pub use weights::{HostTensor, Weights};

#[cfg(test)]
mod testing;
