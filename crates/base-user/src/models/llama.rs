//! Llama: transformers' `LlamaForCausalLM`.

use std::f64::consts::TAU;

use tch::{Kind, Tensor};
use zklora_hf::{LlamaConfig, RopeScaling, Weights};

use super::Network;
use super::parts::{Linear, Pass, Projections, tensor};
use crate::error::ModelError;

pub(super) struct Llama {
    /// [vocabulary, width].
    embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    /// [vocabulary, width].
    head: Tensor,
    /// Angle per position of each pair of a head's dimensions, float32 [head width / 2].
    frequencies: Tensor,
}

impl Llama {
    pub(super) fn load(weights: &Weights, config: &LlamaConfig) -> Result<Self, ModelError> {
        let embedding = tensor(weights, "embed_tokens.weight")?;
        Ok(Self {
            head: match config.tied {
                true => embedding.shallow_clone(),
                false => tensor(weights, "lm_head.weight")?,
            },
            embedding,
            blocks: (0..config.layers)
                .map(|layer| Block::load(weights, config, layer))
                .collect::<Result<_, _>>()?,
            final_norm: RmsNorm::load(weights, config, "norm")?,
            frequencies: Tensor::f_from_slice(&frequencies(config))?,
        })
    }
}

impl Network for Llama {
    fn states(&self, ids: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, ModelError> {
        let angles = pass.positions()?.f_to_kind(Kind::Float)?.f_outer(&self.frequencies)?;
        // The same for the first and the second half of a head's dimensions, and for all heads.
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?.f_unsqueeze(1)?;
        let rotation = Rotation { cos: angles.f_cos()?, sin: angles.f_sin()? };
        let mut x = Tensor::f_embedding(&self.embedding, ids, -1, false, false)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(layer, &x, &rotation, pass)?;
        }
        self.final_norm.forward(&x)
    }

    fn head(&self) -> &Tensor {
        &self.head
    }

    fn projections(&mut self) -> Vec<&mut Projections> {
        let blocks = self.blocks.iter_mut();
        blocks
            .flat_map(|b| [&mut b.qkv, &mut b.attention_output, &mut b.gate_up, &mut b.mlp_output])
            .collect()
    }
}

/// Rotary embeddings (Su et al., arXiv 2104.09864), a pair being dimensions half a head apart.
struct Rotation {
    /// float32 [tokens, 1, head width], both.
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// [tokens, heads, head width] to the same.
    fn apply(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let half = x.size3()?.2 / 2;
        let turned = Tensor::f_cat(&[x.f_narrow(2, half, half)?.f_neg()?, x.f_narrow(2, 0, half)?], 2)?;
        Ok(x.f_mul(&self.cos)?.f_add(&turned.f_mul(&self.sin)?)?)
    }
}

struct Block {
    head_dim: i64,
    attention_norm: RmsNorm,
    qkv: Projections,
    attention_output: Projections,
    mlp_norm: RmsNorm,
    gate_up: Projections,
    mlp_output: Projections,
}

impl Block {
    fn load(weights: &Weights, config: &LlamaConfig, layer: usize) -> Result<Self, ModelError> {
        let norm = |part: &str| RmsNorm::load(weights, config, &format!("layers.{layer}.{part}"));
        let projections = |parts: &[&str]| {
            let layers = parts.iter().map(|part| {
                let name = format!("layers.{layer}.{part}");
                let layer = Linear::plain(weights, &name)?;
                Ok::<_, ModelError>((format!("model.{name}"), layer))
            });
            Ok::<_, ModelError>(Projections::new(layers.collect::<Result<_, _>>()?))
        };
        Ok(Self {
            head_dim: config.head_dim as i64,
            attention_norm: norm("input_layernorm")?,
            qkv: projections(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])?,
            attention_output: projections(&["self_attn.o_proj"])?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate_up: projections(&["mlp.gate_proj", "mlp.up_proj"])?,
            mlp_output: projections(&["mlp.down_proj"])?,
        })
    }

    /// [tokens, width] to the same.
    fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        rotation: &Rotation,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor, ModelError> {
        let [queries, keys, values] = self.qkv.forward(&self.attention_norm.forward(x)?, pass)?;
        let heads = |rows: &Tensor| rows.f_view([x.size2()?.0, -1, self.head_dim]);
        let (queries, keys) = (rotation.apply(&heads(&queries)?)?, rotation.apply(&heads(&keys)?)?);
        let attended = pass.attention(layer, &queries, &keys, &heads(&values)?)?;
        let [attended] = self.attention_output.forward(&attended, pass)?;
        let x = x.f_add(&attended)?;
        let [gate, up] = self.gate_up.forward(&self.mlp_norm.forward(&x)?, pass)?;
        let [output] = self.mlp_output.forward(&gate.f_silu()?.f_mul(&up)?, pass)?;
        Ok(x.f_add(&output)?)
    }
}

/// Zhang and Sennrich, arXiv 1910.07467.
struct RmsNorm {
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    fn load(weights: &Weights, config: &LlamaConfig, name: &str) -> Result<Self, ModelError> {
        Ok(Self { weight: tensor(weights, &format!("{name}.weight"))?, epsilon: config.epsilon })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let mean_square = x.f_square()?.f_mean_dim(-1i64, true, Kind::Float)?;
        let inverse = mean_square.f_add_scalar(self.epsilon)?.f_rsqrt()?;
        Ok(x.f_mul(&inverse)?.f_mul(&self.weight)?)
    }
}

/// Radians that a pair of dimensions turns at each position.
fn frequencies(config: &LlamaConfig) -> Vec<f32> {
    let pairs = config.head_dim / 2;
    let plain = (0..pairs).map(|pair| config.rope_theta.powf(-(pair as f64) / pairs as f64));
    let scaled = plain.map(|frequency| match config.rope_scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
            // How often the pair turns in the longest sequence of the training.
            let turns = original_positions as f64 * frequency / TAU;
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / factor)
        }
    });
    scaled.map(|frequency| frequency as f32).collect()
}
