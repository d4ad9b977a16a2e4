//! Base models on the CPU in float32, with a place for a hook on each projection.
//!
//! [`Model`] is what all architectures have in common. Each is a file of its own that builds a `Network` of what is in
//! `parts`; another one is another file, and another arm in [`Model::load`].

mod gpt2;
mod llama;
mod parts;

use std::collections::BTreeSet;
use std::sync::Arc;

use gpt2::Gpt2;
use llama::Llama;
pub use parts::Past;
use parts::{Pass, Projections};
use tch::{Reduction, Tensor};
use zklora_hf::{BaseModel, Config, LoraAdapter};

use crate::error::ModelError;
use crate::hooks::Hook;

/// A causal language model, computing what transformers' does in evaluation mode.
pub struct Model {
    network: Box<dyn Network>,
    positions: usize,
    vocabulary: usize,
    hook: Option<Arc<dyn Hook>>,
}

/// The layers of an architecture.
trait Network: Send {
    /// The states after the last norm, [tokens, width], of the sequences of a pass: int64 ids [tokens], one sequence after
    /// the other.
    fn states(&self, ids: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, ModelError>;

    /// The language-modelling head: [vocabulary, width], without a bias.
    fn head(&self) -> &Tensor;

    /// All projections, those that read the same input together.
    fn projections(&mut self) -> Vec<&mut Projections>;
}

impl Model {
    /// Reads the model's weights into memory.
    pub fn load(model: &BaseModel) -> Result<Self, ModelError> {
        let architecture = model.config().architecture();
        let network: Box<dyn Network> = match model.config() {
            Config::Gpt2(config) => Box::new(Gpt2::load(model.weights(), config)?),
            Config::Llama(config) => Box::new(Llama::load(model.weights(), config)?),
        };
        Ok(Self {
            network,
            positions: architecture.positions(),
            vocabulary: architecture.vocabulary(),
            hook: None,
        })
    }

    /// The longest sequence, in tokens.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Puts a hook on the projections that it serves, in place of the hook that the model had, if any.
    ///
    /// Fails with [`ModelError::UnknownProjection`] if the model has no projection of such a name.
    pub fn patch(&mut self, hook: Arc<dyn Hook>) -> Result<(), ModelError> {
        let served: BTreeSet<String> = hook.projections().into_iter().collect();
        let known: BTreeSet<String> = self.names().into_iter().collect();
        if let Some(unknown) = served.difference(&known).next() {
            return Err(self.unknown(unknown));
        }
        for group in self.network.projections() {
            group.set_hooked(group.names().iter().any(|name| served.contains(name)));
        }
        self.hook = Some(hook);
        Ok(())
    }

    /// Takes the hook off: the plain base model again.
    pub fn unpatch(&mut self) {
        self.hook = None;
    }

    /// Adds an adapter to the weights for good: W + A·B·scaling in float32.
    ///
    /// Fails with [`ModelError::UnknownProjection`] if the model has no projection of a module's name.
    pub fn merge(&mut self, adapter: &LoraAdapter) -> Result<(), ModelError> {
        for module in &adapter.modules {
            let [d_in, rank, d_out] = [module.d_in, module.rank, module.d_out].map(|size| size as i64);
            let a = Tensor::f_from_slice(&module.a)?.f_view([d_in, rank])?;
            let b = Tensor::f_from_slice(&module.b)?.f_view([rank, d_out])?;
            let change = a.f_mm(&b)?.f_mul_scalar(module.scaling)?;
            let groups = self.network.projections();
            let Some(group) = groups.into_iter().find(|group| group.names().contains(&module.name)) else {
                return Err(self.unknown(&module.name));
            };
            group.add(&module.name, &change)?;
        }
        Ok(())
    }

    /// The logits of the next token after each token: float32 [tokens, vocabulary].
    ///
    /// Fails if the sequence is empty or longer than the model's context, an id is not in the vocabulary, or the hook fails.
    pub fn logits(&self, ids: &[i64]) -> Result<Tensor, ModelError> {
        tch::no_grad(|| Ok(self.states(&[ids], None)?.f_linear(self.network.head(), None::<Tensor>)?))
    }

    /// For each sequence, the negative log-likelihood, in nats, of each token but the first given those before it.
    ///
    /// All tokens of all sequences go through each projection together. Fails as [`logits`](Self::logits) does, and with
    /// [`ModelError::TooShort`] for a sequence of fewer than 2 tokens.
    pub fn token_losses(&self, sequences: &[&[i64]]) -> Result<Vec<Vec<f32>>, ModelError> {
        if let Some(short) = sequences.iter().find(|ids| ids.len() < 2) {
            return Err(ModelError::TooShort { found: short.len() });
        }
        tch::no_grad(|| {
            let states = self.states(sequences, None)?;
            // What follows each token, and something after the last.
            let mut next = sequences.concat();
            next.rotate_left(1);
            let mut losses = vec![0f32; next.len()];
            // The logits of a whole batch would take gigabytes.
            for (part, losses) in losses.chunks_mut(LOGIT_ROWS).enumerate() {
                let (begin, rows) = (part * LOGIT_ROWS, losses.len());
                let states = states.f_narrow(0, begin as i64, rows as i64)?;
                let logits = states.f_linear(self.network.head(), None::<Tensor>)?;
                let next = Tensor::f_from_slice(&next[begin..begin + rows])?;
                let loss = logits.f_cross_entropy_loss(&next, None::<Tensor>, Reduction::None, -100, 0.0)?;
                loss.f_copy_data(losses, rows)?;
            }
            let mut rest = &losses[..];
            let of_sequence = sequences.iter().map(|ids| {
                let (losses, others) = rest.split_at(ids.len());
                rest = others;
                // What follows the last token is another sequence.
                losses[..ids.len() - 1].to_vec()
            });
            Ok(of_sequence.collect())
        })
    }

    /// The mean of [`token_losses`](Self::token_losses) of one sequence.
    pub fn loss(&self, ids: &[i64]) -> Result<f64, ModelError> {
        let losses = self.token_losses(&[ids])?;
        Ok(losses[0].iter().copied().map(f64::from).sum::<f64>() / losses[0].len() as f64)
    }

    /// The logits, as many as the vocabulary has tokens, of the next token after `ids`, which come after those that `past` remembers, and are remembered
    /// there.
    ///
    /// Fails as [`logits`](Self::logits) does. After a failure `past` must not be used any more.
    pub fn next(&self, past: &mut Past, ids: &[i64]) -> Result<Vec<f32>, ModelError> {
        tch::no_grad(|| {
            let last = self.states(&[ids], Some(past))?.f_select(0, ids.len() as i64 - 1)?;
            let logits = last.f_unsqueeze(0)?.f_linear(self.network.head(), None::<Tensor>)?.f_view([-1])?;
            let mut values = vec![0f32; self.vocabulary];
            logits.f_copy_data(&mut values, self.vocabulary)?;
            Ok(values)
        })
    }

    /// All projections, in the order in which a forward pass meets them.
    fn names(&mut self) -> Vec<String> {
        self.network.projections().iter().flat_map(|group| group.names().to_vec()).collect()
    }

    fn unknown(&mut self, name: &str) -> ModelError {
        ModelError::UnknownProjection {
            name: name.to_owned(),
            examples: self.names().into_iter().take(4).collect(),
        }
    }

    fn states(&self, sequences: &[&[i64]], past: Option<&mut Past>) -> Result<Tensor, ModelError> {
        let before = past.as_ref().map_or(0, |past| past.tokens());
        for ids in sequences {
            let found = before + ids.len();
            if ids.is_empty() || found > self.positions {
                return Err(ModelError::Length { found, limit: self.positions });
            }
            if let Some(&found) = ids.iter().find(|&&id| id < 0 || id >= self.vocabulary as i64) {
                return Err(ModelError::TokenId { found, vocabulary: self.vocabulary });
            }
        }
        let ids = Tensor::f_from_slice(&sequences.concat())?;
        let lengths = sequences.iter().map(|ids| ids.len() as i64).collect();
        let mut pass = Pass::new(lengths, self.hook.as_deref(), past);
        let states = self.network.states(&ids, &mut pass)?;
        pass.end();
        Ok(states)
    }
}

/// Rows of logits that are computed at once: 50 MB of GPT-2's.
const LOGIT_ROWS: usize = 256;
