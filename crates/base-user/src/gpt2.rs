//! GPT-2 on the CPU in float32, with a place for a hook on each projection.

use std::sync::Arc;

use tch::{Device, Kind, Reduction, Tensor};
use zklora_hf::{BaseModel, Gpt2Config, Weights};

use crate::error::ModelError;
use crate::hooks::ProjectionHook;

/// A GPT-2 with its language-modelling head, computing what transformers' `GPT2LMHeadModel` does in evaluation mode.
pub struct Gpt2 {
    config: Gpt2Config,
    token_embedding: Tensor,
    position_embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
}

impl Gpt2 {
    /// Reads the model's weights into memory.
    pub fn load(model: &BaseModel) -> Result<Self, ModelError> {
        let config = model.config().clone();
        let weights = model.weights();
        Ok(Self {
            token_embedding: tensor(weights, "wte.weight")?,
            position_embedding: tensor(weights, "wpe.weight")?,
            blocks: (0..config.n_layer)
                .map(|layer| Block::load(weights, &config, layer))
                .collect::<Result<_, _>>()?,
            final_norm: LayerNorm::load(weights, &config, "ln_f")?,
            config,
        })
    }

    /// Puts `hook` on a projection, such as `transformer.h.0.attn.c_attn`, in place of the hook it had, if any.
    ///
    /// Fails with [`ModelError::UnknownProjection`] if the model has no projection of that name.
    pub fn patch(&mut self, projection: &str, hook: Arc<dyn ProjectionHook>) -> Result<(), ModelError> {
        if let Some(found) = self.projections_mut().find(|candidate| candidate.name == projection) {
            found.hook = Some(hook);
            return Ok(());
        }
        Err(ModelError::UnknownProjection {
            name: projection.to_owned(),
            examples: self.projections_mut().take(4).map(|known| known.name.clone()).collect(),
        })
    }

    /// Takes all hooks off: the plain base model again.
    pub fn unpatch(&mut self) {
        for projection in self.projections_mut() {
            projection.hook = None;
        }
    }

    /// The logits of the next token after each token of each sequence: float32 [sequences, tokens, vocabulary] for
    /// int64 `ids` [sequences, tokens].
    ///
    /// Fails if the ids are not of that form, a sequence is empty or longer than the model's context, an id is not in
    /// the vocabulary, or a hook fails.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor, ModelError> {
        tch::no_grad(|| {
            let tokens = self.check_ids(ids)?;
            let mut x = Tensor::f_embedding(&self.token_embedding, ids, -1, false, false)?
                .f_add(&self.position_embedding.f_narrow(0, 0, tokens)?)?;
            for block in &self.blocks {
                x = block.forward(&x)?;
            }
            let x = self.final_norm.forward(&x)?;
            Ok(x.f_linear(&self.token_embedding, None::<Tensor>)?)
        })
    }

    /// The mean negative log-likelihood, in nats, of each token but the first given those before it.
    ///
    /// Fails as [`forward`](Self::forward) does, and with [`ModelError::TooShort`] for fewer than 2 tokens.
    pub fn loss(&self, ids: &[i64]) -> Result<f64, ModelError> {
        if ids.len() < 2 {
            return Err(ModelError::TooShort { found: ids.len() });
        }
        tch::no_grad(|| {
            let last = ids.len() as i64 - 1;
            let ids = Tensor::f_from_slice(ids)?;
            let predicted = self.forward(&ids.f_unsqueeze(0)?)?.f_squeeze_dim(0)?;
            let loss = predicted.f_narrow(0, 0, last)?.f_cross_entropy_loss(
                &ids.f_narrow(0, 1, last)?,
                None::<Tensor>,
                Reduction::Mean,
                -100,
                0.0,
            )?;
            Ok(loss.f_double_value(&[])?)
        })
    }

    /// Gives the number of tokens in each sequence.
    fn check_ids(&self, ids: &Tensor) -> Result<i64, ModelError> {
        let (&[sequences, tokens], Kind::Int64, Device::Cpu) = (&ids.size()[..], ids.f_kind()?, ids.device())
        else {
            return Err(ModelError::NotTokenIds { found: describe(ids) });
        };
        if tokens < 1 || tokens > self.config.n_positions as i64 {
            return Err(ModelError::Length { found: tokens as usize, limit: self.config.n_positions });
        }
        if sequences > 0 {
            for extreme in [ids.f_min()?.f_int64_value(&[])?, ids.f_max()?.f_int64_value(&[])?] {
                if extreme < 0 || extreme >= self.config.vocab_size as i64 {
                    return Err(ModelError::TokenId { found: extreme, vocabulary: self.config.vocab_size });
                }
            }
        }
        Ok(tokens)
    }

    fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.blocks.iter_mut().flat_map(|block| {
            [&mut block.qkv, &mut block.attention_output, &mut block.mlp_input, &mut block.mlp_output]
        })
    }
}

struct Block {
    n_head: i64,
    attention_norm: LayerNorm,
    qkv: Projection,
    attention_output: Projection,
    mlp_norm: LayerNorm,
    mlp_input: Projection,
    mlp_output: Projection,
}

impl Block {
    fn load(weights: &Weights, config: &Gpt2Config, layer: usize) -> Result<Self, ModelError> {
        let norm = |part: &str| LayerNorm::load(weights, config, &format!("h.{layer}.{part}"));
        let projection = |part: &str| Projection::load(weights, &format!("h.{layer}.{part}"));
        Ok(Self {
            n_head: config.n_head as i64,
            attention_norm: norm("ln_1")?,
            qkv: projection("attn.c_attn")?,
            attention_output: projection("attn.c_proj")?,
            mlp_norm: norm("ln_2")?,
            mlp_input: projection("mlp.c_fc")?,
            mlp_output: projection("mlp.c_proj")?,
        })
    }

    /// [sequences, tokens, width] to the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = x.f_add(&self.attention(&self.attention_norm.forward(x)?)?)?;
        let inner = self.mlp_input.forward(&self.mlp_norm.forward(&x)?)?;
        // transformers' gelu_new is the tanh approximation.
        let delta = self.mlp_output.forward(&inner.f_gelu("tanh")?)?;
        Ok(x.f_add(&delta)?)
    }

    fn attention(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (sequences, tokens, width) = x.size3()?;
        // Of each token, queries, keys and values lie side by side, and in each of them head beside head.
        let heads = self
            .qkv
            .forward(x)?
            .f_view([sequences, tokens, 3, self.n_head, width / self.n_head])?
            .f_permute([2, 0, 3, 1, 4])?;
        let attended = Tensor::f_scaled_dot_product_attention(
            &heads.f_select(0, 0)?,
            &heads.f_select(0, 1)?,
            &heads.f_select(0, 2)?,
            None::<Tensor>,
            0.0,
            true,
            None,
            false,
        )?;
        self.attention_output.forward(&attended.f_transpose(1, 2)?.f_reshape([sequences, tokens, width])?)
    }
}

/// A linear layer that can carry a hook.
struct Projection {
    name: String,
    /// [d_in, d_out], as GPT-2's files have it.
    weight: Tensor,
    bias: Tensor,
    hook: Option<Arc<dyn ProjectionHook>>,
}

impl Projection {
    fn load(weights: &Weights, name: &str) -> Result<Self, ModelError> {
        Ok(Self {
            name: format!("transformer.{name}"),
            weight: tensor(weights, &format!("{name}.weight"))?,
            bias: tensor(weights, &format!("{name}.bias"))?,
            hook: None,
        })
    }

    /// [sequences, tokens, d_in] to [sequences, tokens, d_out].
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (sequences, tokens, d_in) = x.size3()?;
        let rows = x.f_reshape([sequences * tokens, d_in])?;
        let base = || self.bias.f_addmm(&rows, &self.weight);
        let output = match &self.hook {
            None => base()?,
            Some(hook) => {
                let output = hook
                    .apply(&self.name, &rows, &base)
                    .map_err(|source| ModelError::Hook { projection: self.name.clone(), source })?;
                let expected = (vec![sequences * tokens, self.weight.size2()?.1], Kind::Float);
                if (output.size(), output.f_kind()?) != expected {
                    return Err(ModelError::HookOutput {
                        projection: self.name.clone(),
                        expected: format!("{:?} {:?}", expected.1, expected.0),
                        found: describe(&output),
                    });
                }
                output
            }
        };
        Ok(output.f_view([sequences, tokens, -1])?)
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

fn tensor(weights: &Weights, name: &str) -> Result<Tensor, ModelError> {
    let host = weights.tensor(name)?;
    let shape: Vec<i64> = host.shape.iter().map(|&dimension| dimension as i64).collect();
    Ok(Tensor::f_from_slice(&host.data)?.f_reshape(shape)?)
}

fn describe(tensor: &Tensor) -> String {
    match tensor.f_kind() {
        Ok(kind) => format!("{kind:?} {:?} on {:?}", tensor.size(), tensor.device()),
        Err(error) => error.to_string(),
    }
}
