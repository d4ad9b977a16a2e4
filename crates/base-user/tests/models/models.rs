//! What the model says when it is used wrongly or a hook misbehaves. Needs no fixtures.

use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView, serialize};
use tch::Tensor;
use zklora_base_user::error::ModelError;
use zklora_base_user::hooks::{BaseOutput, Hook};
use zklora_base_user::models::{Model, Past};
use zklora_hf::{BaseModel, Config};

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
    assert!(matches!(model.logits(&[]), Err(ModelError::Length { found: 0, .. })));
}

#[test]
fn a_batch_gives_what_its_sequences_give() {
    let model = model();
    for sequences in [[&[1i64, 2, 3][..], &[4, 5, 6]], [&[1, 2, 3, 4, 5], &[7, 8]]] {
        let together = model.token_losses(&sequences).unwrap();
        for (ids, losses) in sequences.iter().zip(together) {
            let alone = &model.token_losses(&[ids]).unwrap()[0];
            assert_eq!(losses.len(), ids.len() - 1);
            assert!(losses.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-5), "{losses:?} {alone:?}");
        }
    }
}

#[test]
fn later_tokens_do_not_change_earlier_logits() {
    let model = model();
    let one = model.logits(&[1, 2, 3]).unwrap();
    let other = model.logits(&[1, 2, 9]).unwrap();
    assert!(one.narrow(0, 0, 2).allclose(&other.narrow(0, 0, 2), 1e-5, 1e-6, false));
    assert!(!one.get(2).allclose(&other.get(2), 1e-5, 1e-6, false));
}

#[test]
fn going_on_with_a_past_gives_what_the_whole_gives() {
    let model = model();
    let ids = [1i64, 2, 3, 9, 4, 5, 6];
    let whole = model.logits(&ids).unwrap();
    // All at once, token by token, and in pieces.
    for pieces in [&[7][..], &[1; 7], &[3, 1, 3], &[2, 5]] {
        let mut past = Past::new(ids.len());
        for &piece in pieces {
            let begin = past.tokens();
            let next = model.next(&mut past, &ids[begin..begin + piece]).unwrap();
            let expected = Vec::<f32>::try_from(whole.get(past.tokens() as i64 - 1)).unwrap();
            assert!(next.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{pieces:?}");
        }
    }
    let mut past = Past::new(8);
    model.next(&mut past, &[1; 8]).unwrap();
    assert!(matches!(model.next(&mut past, &[1]), Err(ModelError::Length { found: 9, limit: 8 })));
}

#[test]
fn an_unknown_projection_is_named_with_examples() {
    let hook = Arc::new(Failing("transformer.h.7.attn.c_attn"));
    let message = model().patch(hook).unwrap_err().to_string();
    assert!(message.contains("no projection \"transformer.h.7.attn.c_attn\""), "{message}");
    assert!(message.contains("transformer.h.0.attn.c_attn, transformer.h.0.attn.c_proj"), "{message}");
}

#[test]
fn a_hook_sees_the_rows_of_all_sequences_and_may_fail() {
    let mut model = model();
    model.patch(Arc::new(Failing("transformer.h.1.mlp.c_proj"))).unwrap();
    let message = model.token_losses(&[&[1, 2, 3, 4], &[4, 5]]).unwrap_err().to_string();
    assert_eq!(message, "the hook on transformer.h.1.mlp.c_proj failed: input [6, 16], output [6, 4]");

    model.patch(Arc::new(Cutting)).unwrap();
    let message = model.loss(&[1, 2, 3]).unwrap_err().to_string();
    assert!(message.contains("returned Float [2, 4]"), "{message}");
    assert!(message.contains("expected Float [3, 4]"), "{message}");
}

struct Failing(&'static str);

impl Hook for Failing {
    fn projections(&self) -> Vec<String> {
        vec![self.0.to_owned()]
    }

    fn apply(&self, _: &[&str], input: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Vec<Tensor>> {
        anyhow::bail!("input {:?}, output {:?}", input.size(), base(0)?.size())
    }
}

struct Cutting;

impl Hook for Cutting {
    fn projections(&self) -> Vec<String> {
        vec!["transformer.h.1.mlp.c_proj".to_owned()]
    }

    fn apply(&self, _: &[&str], _: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Vec<Tensor>> {
        let output = base(0)?;
        Ok(vec![output.narrow(0, 1, output.size()[0] - 1)])
    }
}

/// A GPT-2 of 2 layers of width 4, context 8 and 16 tokens, with fixed weights.
fn model() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 4, "n_positions": 8, "vocab_size": 16
    });
    let config_path = folder.path().join("config.json");
    std::fs::write(&config_path, config.to_string()).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Config::open(&config_path)
        .unwrap()
        .architecture()
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
    Model::load(&BaseModel::open(folder.path()).unwrap()).unwrap()
}
