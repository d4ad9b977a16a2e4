//! GPT-2: transformers' `GPT2LMHeadModel`.

use tch::Tensor;
use zklora_hf::{Gpt2Config, Weights};

use super::Network;
use super::parts::{Linear, Pass, Projections, tensor};
use crate::error::ModelError;

pub(super) struct Gpt2 {
    /// [vocabulary, width].
    token_embedding: Tensor,
    /// [positions, width].
    position_embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    /// [vocabulary, width].
    head: Tensor,
}

impl Gpt2 {
    pub(super) fn load(weights: &Weights, config: &Gpt2Config) -> Result<Self, ModelError> {
        let token_embedding = tensor(weights, "wte.weight")?;
        Ok(Self {
            head: match config.tied {
                true => token_embedding.shallow_clone(),
                false => tensor(weights, "lm_head.weight")?,
            },
            token_embedding,
            position_embedding: tensor(weights, "wpe.weight")?,
            blocks: (0..config.n_layer)
                .map(|layer| Block::load(weights, config, layer))
                .collect::<Result<_, _>>()?,
            final_norm: LayerNorm::load(weights, config, "ln_f")?,
        })
    }
}

impl Network for Gpt2 {
    fn states(&self, ids: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, ModelError> {
        let positions = pass.positions()?;
        let mut x = Tensor::f_embedding(&self.token_embedding, ids, -1, false, false)?
            .f_add(&Tensor::f_embedding(&self.position_embedding, &positions, -1, false, false)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(layer, &x, pass)?;
        }
        self.final_norm.forward(&x)
    }

    fn head(&self) -> &Tensor {
        &self.head
    }

    fn projections(&mut self) -> Vec<&mut Projections> {
        let blocks = self.blocks.iter_mut();
        blocks
            .flat_map(|b| [&mut b.qkv, &mut b.attention_output, &mut b.mlp_input, &mut b.mlp_output])
            .collect()
    }
}

struct Block {
    heads: i64,
    attention_norm: LayerNorm,
    qkv: Projections,
    attention_output: Projections,
    mlp_norm: LayerNorm,
    mlp_input: Projections,
    mlp_output: Projections,
}

impl Block {
    fn load(weights: &Weights, config: &Gpt2Config, layer: usize) -> Result<Self, ModelError> {
        let norm = |part: &str| LayerNorm::load(weights, config, &format!("h.{layer}.{part}"));
        let projection = |part: &str| {
            let name = format!("h.{layer}.{part}");
            let layer = Linear::conv1d(weights, &name)?;
            Ok::<_, ModelError>(Projections::new(vec![(format!("transformer.{name}"), layer)]))
        };
        Ok(Self {
            heads: config.n_head as i64,
            attention_norm: norm("ln_1")?,
            qkv: projection("attn.c_attn")?,
            attention_output: projection("attn.c_proj")?,
            mlp_norm: norm("ln_2")?,
            mlp_input: projection("mlp.c_fc")?,
            mlp_output: projection("mlp.c_proj")?,
        })
    }

    /// [tokens, width] to the same.
    fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, ModelError> {
        let [qkv] = self.qkv.forward(&self.attention_norm.forward(x)?, pass)?;
        // Of each token, queries, keys and values lie side by side, and in each of them head beside head.
        let (tokens, width) = x.size2()?;
        let heads = qkv.f_view([tokens, 3, self.heads, width / self.heads])?;
        let [queries, keys, values] = [0, 1, 2].map(|part| heads.f_select(1, part));
        let attended = pass.attention(layer, &queries?, &keys?, &values?)?;
        let [attended] = self.attention_output.forward(&attended, pass)?;
        let x = x.f_add(&attended)?;
        let [inner] = self.mlp_input.forward(&self.mlp_norm.forward(&x)?, pass)?;
        // transformers' gelu_new is the tanh approximation.
        let [output] = self.mlp_output.forward(&inner.f_gelu("tanh")?, pass)?;
        Ok(x.f_add(&output)?)
    }
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    fn load(weights: &Weights, config: &Gpt2Config, name: &str) -> Result<Self, ModelError> {
        Ok(Self {
            weight: tensor(weights, &format!("{name}.weight"))?,
            bias: tensor(weights, &format!("{name}.bias"))?,
            epsilon: config.layer_norm_epsilon,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, false)?)
    }
}
