//! What the model says when it is used wrongly or a hook misbehaves. Needs no fixtures.

use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView, serialize};
use tch::{Kind, Tensor};
use zklora_base_user::error::ModelError;
use zklora_base_user::gpt2::Gpt2;
use zklora_base_user::hooks::{BaseOutput, ProjectionHook};
use zklora_hf::{BaseModel, Gpt2Config};

#[test]
fn lengths_and_ids_are_checked_in_words() {
    let model = model();
    for (ids, why) in [
        (vec![], "needs at least 2 tokens, one to predict from and one to predict; this text has 0"),
        (vec![1], "this text has 1"),
        (vec![1; 9], "takes 1 to 8 tokens at once, this text has 9"),
        (vec![1, 16], "token id 16 is outside of the base model's vocabulary, 0 to 15"),
        (vec![-1, 1], "token id -1 is outside"),
    ] {
        let message = model.loss(&ids).unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
    for wrong in [Tensor::from_slice(&[1i64, 2]), Tensor::zeros([1, 2], (Kind::Float, tch::Device::Cpu))] {
        let message = model.forward(&wrong).unwrap_err().to_string();
        assert!(message.contains("int64 tensor [sequences, tokens]"), "{message}");
    }
    assert!(matches!(
        model.forward(&Tensor::zeros([1, 0], (Kind::Int64, tch::Device::Cpu))),
        Err(ModelError::Length { found: 0, .. })
    ));
}

#[test]
fn a_batch_gives_what_its_sequences_give() {
    let model = model();
    let [first, second] = [[1i64, 2, 3], [4, 5, 6]];
    let batch = model.forward(&Tensor::from_slice2(&[first, second])).unwrap();
    assert_eq!(batch.size(), [2, 3, 16]);
    for (row, ids) in [first, second].iter().enumerate() {
        let alone = model.forward(&Tensor::from_slice2(&[ids])).unwrap();
        assert!(batch.get(row as i64).allclose(&alone.get(0), 1e-5, 1e-6, false));
    }
}

#[test]
fn later_tokens_do_not_change_earlier_logits() {
    let model = model();
    let one = model.forward(&Tensor::from_slice2(&[[1i64, 2, 3]])).unwrap();
    let other = model.forward(&Tensor::from_slice2(&[[1i64, 2, 9]])).unwrap();
    assert!(one.narrow(1, 0, 2).allclose(&other.narrow(1, 0, 2), 1e-5, 1e-6, false));
    assert!(!one.get(0).get(2).allclose(&other.get(0).get(2), 1e-5, 1e-6, false));
}

#[test]
fn an_unknown_projection_is_named_with_examples() {
    let message = model().patch("transformer.h.7.attn.c_attn", Arc::new(Failing)).unwrap_err().to_string();
    assert!(message.contains("no projection \"transformer.h.7.attn.c_attn\""), "{message}");
    assert!(message.contains("transformer.h.0.attn.c_attn, transformer.h.0.attn.c_proj"), "{message}");
}

#[test]
fn a_hook_sees_rows_and_may_fail() {
    let mut model = model();
    model.patch("transformer.h.1.mlp.c_proj", Arc::new(Failing)).unwrap();
    let message = model.forward(&Tensor::from_slice2(&[[1i64, 2, 3], [4, 5, 6]])).unwrap_err().to_string();
    assert_eq!(message, "the hook on transformer.h.1.mlp.c_proj failed: input [6, 16], output [6, 4]");

    model.patch("transformer.h.1.mlp.c_proj", Arc::new(Cutting)).unwrap();
    let message = model.loss(&[1, 2, 3]).unwrap_err().to_string();
    assert!(message.contains("returned Float [2, 4]"), "{message}");
    assert!(message.contains("expected Float [3, 4]"), "{message}");
}

struct Failing;

impl ProjectionHook for Failing {
    fn apply(&self, _: &str, input: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Tensor> {
        anyhow::bail!("input {:?}, output {:?}", input.size(), base()?.size())
    }
}

struct Cutting;

impl ProjectionHook for Cutting {
    fn apply(&self, _: &str, _: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Tensor> {
        let output = base()?;
        Ok(output.narrow(0, 1, output.size()[0] - 1))
    }
}

/// A GPT-2 of 2 layers of width 4, context 8 and 16 tokens, with fixed weights.
fn model() -> Gpt2 {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 4, "n_positions": 8, "vocab_size": 16
    });
    let config_path = folder.path().join("config.json");
    std::fs::write(&config_path, config.to_string()).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Gpt2Config::open(&config_path)
        .unwrap()
        .tensors()
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let values = (0..shape.iter().product()).map(|j: usize| ((i * 31 + j * 17) as f32).sin());
            (name, shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    Gpt2::load(&BaseModel::open(folder.path()).unwrap()).unwrap()
}
