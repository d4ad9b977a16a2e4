use zklora_proto::BaseModelDigest;

use crate::{Config, Error, Setting, Weights};

/// Says which base model is meant: two folders have the same digest exactly if they hold the same architecture and the
/// same weights, however the weights are stored (names with or without the prefix, shards, a 16-bit type).
///
/// It is BLAKE3 in key-derivation mode, with the context string `zklora v1 base model`, of the following bytes. Integers
/// and floats are little-endian; a *string* is its length in bytes as a `u32`, then its UTF-8 bytes.
///
/// | bytes | content |
/// |---|---|
/// | string | the architecture: `gpt2` or `llama` |
/// | `u64`, `f64` or string each | its settings, see below |
/// | `u64` | number of tensors |
///
/// The settings of GPT-2 are `n_layer`, `n_head`, `n_embd`, `n_inner` (as used, so 4 · `n_embd` if left out), `n_positions`,
/// `vocab_size` as `u64`, `layer_norm_epsilon` as `f64`, and the string `gelu_new`; whether its head is tied is seen from the tensors. Those of Llama are `num_hidden_layers`,
/// `hidden_size`, `intermediate_size`, `num_attention_heads`, `num_key_value_heads`, `head_dim` (both as used),
/// `max_position_embeddings`, `vocab_size`, and 1 or 0 for whether the head is tied, as `u64`; `rms_norm_eps` and `rope_theta` as `f64`;
/// the string `default`, or `linear` and its factor, or `llama3` and its `factor`, `low_freq_factor`, `high_freq_factor` as `f64`
/// and `original_max_position_embeddings` as `u64`; and the string `silu`.
///
/// A head is tied if `tie_word_embeddings` says so and the file has no other values for it. It is among the tensors, as
/// `lm_head.weight`, only if it is not tied.
///
/// Then, for each tensor of [`Architecture::tensors`](crate::Architecture::tensors) and no other (a file with others is refused, but
/// for buffers whose values are known), in ascending order of the bytes of its name:
///
/// | bytes | content |
/// |---|---|
/// | string | name, without `transformer.` or `model.` |
/// | `u8` | 1, for float32 |
/// | `u8` | number of dimensions |
/// | `u64` each | dimensions |
/// | `f32` each | values in row-major order, widened to float32 if they are stored in 16 bits; none is a NaN or an infinity |
///
///
/// Reads the whole model, a bounded part of it at a time.
pub(crate) fn base_model_digest(config: &Config, weights: &Weights) -> Result<BaseModelDigest, Error> {
    let mut hasher = blake3::Hasher::new_derive_key("zklora v1 base model");
    absorb_string(&mut hasher, config.architecture().name());
    for setting in config.architecture().settings() {
        match setting {
            Setting::Whole(number) => absorb_usize(&mut hasher, number),
            Setting::Real(number) => {
                hasher.update(&number.to_le_bytes());
            }
            Setting::Text(text) => absorb_string(&mut hasher, text),
        }
    }

    absorb_usize(&mut hasher, weights.names().len());
    let mut bytes = Vec::new();
    for name in weights.names() {
        let (file, stored) = weights.locate(name)?;
        let shape = file.shape(stored)?;
        absorb_string(&mut hasher, name);
        // At most two dimensions: Weights::open has compared the shape with the architecture's.
        hasher.update(&[FLOAT32, shape.len() as u8]);
        for &dimension in shape {
            absorb_usize(&mut hasher, dimension);
        }
        file.for_each_chunk(stored, |values| {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        })?;
    }
    Ok(BaseModelDigest::from_bytes(*hasher.finalize().as_bytes()))
}

fn absorb_string(hasher: &mut blake3::Hasher, text: &str) {
    // Only names of the architecture's tensors, far below 2^32 bytes.
    hasher.update(&(text.len() as u32).to_le_bytes());
    hasher.update(text.as_bytes());
}

fn absorb_usize(hasher: &mut blake3::Hasher, value: usize) {
    hasher.update(&(value as u64).to_le_bytes());
}

const FLOAT32: u8 = 1;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::BaseModel;
    use crate::testing::{TestTensor, gpt2_config, gpt2_tensors, write_base};

    #[test]
    fn storage_does_not_matter() {
        let plain = digest(&gpt2_config(), &gpt2_tensors(""));
        assert_eq!(plain, digest(&gpt2_config(), &gpt2_tensors("transformer.")));

        // The values of ln_f.weight are multiples of 1/64, which float16 holds exactly.
        let mut halved = gpt2_tensors("");
        let values: Vec<u8> = halved[2]
            .bytes
            .chunks_exact(4)
            .map(|b| half::f16::from_f32(f32::from_le_bytes(b.try_into().unwrap())))
            .flat_map(half::f16::to_le_bytes)
            .collect();
        halved[2] = TestTensor::raw("ln_f.weight", safetensors::Dtype::F16, &[4], values);
        assert_eq!(plain, digest(&gpt2_config(), &halved));
    }

    #[test]
    fn every_weight_and_setting_matters() {
        let plain = digest(&gpt2_config(), &gpt2_tensors(""));
        for i in 0..gpt2_tensors("").len() {
            let mut changed = gpt2_tensors("");
            changed[i].bytes[0] ^= 1;
            assert_ne!(plain, digest(&gpt2_config(), &changed), "{}", changed[i].name);
        }
        for (field, value) in [("n_head", json!(4)), ("layer_norm_epsilon", json!(1e-6))] {
            let mut config = gpt2_config();
            config[field] = value;
            assert_ne!(plain, digest(&config, &gpt2_tensors("")), "{field}");
        }
    }

    #[test]
    fn encoding_is_as_documented() {
        let mut bytes = Vec::new();
        let string = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.bytes());
        };
        string(&mut bytes, "gpt2");
        for dimension in [2u64, 2, 4, 16, 8, 16] {
            bytes.extend(dimension.to_le_bytes());
        }
        bytes.extend(1e-5f64.to_le_bytes());
        string(&mut bytes, "gelu_new");
        let mut tensors = gpt2_tensors("");
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        bytes.extend((tensors.len() as u64).to_le_bytes());
        for tensor in &tensors {
            string(&mut bytes, &tensor.name);
            bytes.extend([1, tensor.shape.len() as u8]);
            for &dimension in &tensor.shape {
                bytes.extend((dimension as u64).to_le_bytes());
            }
            bytes.extend(&tensor.bytes);
        }
        assert_eq!(
            digest(&gpt2_config(), &tensors).as_bytes(),
            &blake3::derive_key("zklora v1 base model", &bytes)
        );
    }

    fn digest(config: &serde_json::Value, tensors: &[TestTensor]) -> BaseModelDigest {
        let folder = tempfile::tempdir().unwrap();
        write_base(folder.path(), config, tensors);
        BaseModel::open(folder.path()).unwrap().digest()
    }
}
