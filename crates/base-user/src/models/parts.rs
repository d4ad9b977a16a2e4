//! What architectures are made of: projections that carry a hook, attention over several sequences, and its memory.

use tch::{Kind, TchError, Tensor};
use zklora_hf::Weights;

use crate::error::ModelError;
use crate::hooks::Hook;

/// One forward pass: which rows belong together, and what happens at the projections.
pub(super) struct Pass<'a> {
    /// Tokens of each sequence.
    lengths: Vec<i64>,
    hook: Option<&'a dyn Hook>,
    /// What came before; then there is one sequence.
    past: Option<&'a mut Past>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(lengths: Vec<i64>, hook: Option<&'a dyn Hook>, past: Option<&'a mut Past>) -> Self {
        Self { lengths, hook, past }
    }

    /// The place of each token in its sequence, int64 [tokens].
    pub(super) fn positions(&self) -> Result<Tensor, TchError> {
        let before = self.past.as_ref().map_or(0, |past| past.tokens as i64);
        let positions: Vec<i64> = self.lengths.iter().flat_map(|length| before..before + length).collect();
        Tensor::f_from_slice(&positions)
    }

    /// Attention of each token to itself and those before it in its sequence: queries [tokens, heads, width], keys and values
    /// [tokens, fewer heads or as many, width] to [tokens, heads · width].
    pub(super) fn attention(
        &mut self,
        layer: usize,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, TchError> {
        let (tokens, heads, width) = queries.size3()?;
        let grouped = keys.size3()?.1 != heads;
        let attend = |queries: &Tensor, keys: &Tensor, values: &Tensor, causal: bool| {
            let none = None::<Tensor>;
            Tensor::f_scaled_dot_product_attention(queries, keys, values, none, 0.0, causal, None, grouped)?
                .f_transpose(1, 2)?
                .f_reshape([-1, heads * width])
        };
        // Sequences by heads by tokens by width.
        let split = |rows: &Tensor, sequences: i64| {
            let (tokens, heads, width) = rows.size3()?;
            rows.f_reshape([sequences, tokens / sequences, heads, width])?.f_transpose(1, 2)
        };
        if let Some(past) = &mut self.past {
            let (keys, values) = past.remember(layer, &split(keys, 1)?, &split(values, 1)?)?;
            // One new token attends to everything; several are the beginning, or attend to what a mask says.
            let begins = past.tokens == 0;
            let queries = split(queries, 1)?;
            if begins || tokens == 1 {
                return attend(&queries, &keys, &values, begins);
            }
            let seen = past.tokens as i64;
            let mask =
                Tensor::f_ones([tokens, seen + tokens], (Kind::Bool, queries.device()))?.f_tril(seen)?;
            let attended = Tensor::f_scaled_dot_product_attention(
                &queries,
                &keys,
                &values,
                Some(mask),
                0.0,
                false,
                None,
                grouped,
            )?;
            return attended.f_transpose(1, 2)?.f_reshape([-1, heads * width]);
        }
        let sequences = self.lengths.len() as i64;
        if self.lengths.iter().all(|length| *length == self.lengths[0]) {
            return attend(
                &split(queries, sequences)?,
                &split(keys, sequences)?,
                &split(values, sequences)?,
                true,
            );
        }
        let mut begin = 0;
        let mut attended = Vec::with_capacity(self.lengths.len());
        for &length in &self.lengths {
            let part = |rows: &Tensor| split(&rows.f_narrow(0, begin, length)?, 1);
            attended.push(attend(&part(queries)?, &part(keys)?, &part(values)?, true)?);
            begin += length;
        }
        Tensor::f_cat(&attended, 0)
    }

    /// After all layers: the past has grown by the tokens of this pass.
    pub(super) fn end(self) {
        if let Some(past) = self.past {
            past.tokens += self.lengths.iter().sum::<i64>() as usize;
        }
    }
}

/// Keys and values of a sequence's tokens in all layers, so that going on with it computes only what is new.
#[derive(Debug)]
pub struct Past {
    tokens: usize,
    capacity: usize,
    /// Of each layer, [1, heads, capacity, width].
    layers: Vec<(Tensor, Tensor)>,
}

impl Past {
    /// The past of a sequence that has not begun and will have at most `capacity` tokens.
    pub fn new(capacity: usize) -> Self {
        Self { tokens: 0, capacity, layers: Vec::new() }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds the keys and values, [1, heads, tokens, width], of new tokens in a layer; gives those of all.
    fn remember(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor), TchError> {
        let (_, heads, new, width) = keys.size4()?;
        while self.layers.len() <= layer {
            let buffer =
                || Tensor::f_empty([1, heads, self.capacity as i64, width], (Kind::Float, keys.device()));
            self.layers.push((buffer()?, buffer()?));
        }
        let (all_keys, all_values) = &self.layers[layer];
        let begin = self.tokens as i64;
        for (all, new_ones) in [(all_keys, keys), (all_values, values)] {
            // Fails if there are more than the capacity.
            all.f_narrow(2, begin, new)?.f_copy_(new_ones)?;
        }
        Ok((all_keys.f_narrow(2, 0, begin + new)?, all_values.f_narrow(2, 0, begin + new)?))
    }
}

/// Linear layers that read the same input, and can carry a hook.
pub(super) struct Projections {
    names: Vec<String>,
    layers: Vec<Linear>,
    hooked: bool,
}

impl Projections {
    pub(super) fn new(layers: Vec<(String, Linear)>) -> Self {
        let (names, layers) = layers.into_iter().unzip();
        Self { names, layers, hooked: false }
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether the hook, if there is one, serves any of them.
    pub(super) fn set_hooked(&mut self, hooked: bool) {
        self.hooked = hooked;
    }

    /// Adds to a layer's weight, [d_in, d_out].
    pub(super) fn add(&mut self, name: &str, change: &Tensor) -> Result<(), TchError> {
        let mut layers = self.names.iter().zip(&mut self.layers).filter(|(known, _)| *known == name);
        layers.try_for_each(|(_, layer)| layer.weight.f_add_(change).map(drop))
    }

    /// The outputs of all, [rows, d_out] each, of [rows, d_in].
    pub(super) fn forward<const N: usize>(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<[Tensor; N], ModelError> {
        let base = |place: usize| self.layers[place].forward(x);
        let outputs = match pass.hook.filter(|_| self.hooked) {
            None => (0..self.layers.len()).map(base).collect::<Result<Vec<_>, _>>()?,
            Some(hook) => {
                let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
                let outputs = hook
                    .apply(&names, x, &base)
                    .map_err(|error| ModelError::Hook { projection: names.join(", "), error })?;
                self.check(x.size2()?.0, &outputs)?;
                outputs
            }
        };
        // As many as there are layers: the network asks for what it has built.
        let count = outputs.len();
        outputs.try_into().map_err(|_| ModelError::HookOutput {
            projection: self.names.join(", "),
            expected: format!("{N} outputs"),
            found: format!("{count}"),
        })
    }

    /// Whether a hook's outputs can stand in for the layers' own.
    fn check(&self, rows: i64, outputs: &[Tensor]) -> Result<(), ModelError> {
        if outputs.len() != self.layers.len() {
            return Err(ModelError::HookOutput {
                projection: self.names.join(", "),
                expected: format!("{} outputs", self.layers.len()),
                found: format!("{}", outputs.len()),
            });
        }
        for ((name, layer), output) in self.names.iter().zip(&self.layers).zip(outputs) {
            let expected = (vec![rows, layer.weight.size2()?.1], Kind::Float);
            if (output.size(), output.f_kind()?) != expected {
                return Err(ModelError::HookOutput {
                    projection: name.clone(),
                    expected: format!("{:?} {:?}", expected.1, expected.0),
                    found: describe(output),
                });
            }
        }
        Ok(())
    }
}

/// A linear layer.
pub(super) struct Linear {
    /// [d_in, d_out].
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Stored input × output, with a bias.
    pub(super) fn conv1d(weights: &Weights, name: &str) -> Result<Self, ModelError> {
        Ok(Self {
            weight: tensor(weights, &format!("{name}.weight"))?,
            bias: Some(tensor(weights, &format!("{name}.bias"))?),
        })
    }

    /// Stored output × input, without a bias.
    pub(super) fn plain(weights: &Weights, name: &str) -> Result<Self, ModelError> {
        Ok(Self { weight: tensor(weights, &format!("{name}.weight"))?.f_tr()?, bias: None })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match &self.bias {
            Some(bias) => bias.f_addmm(x, &self.weight),
            None => x.f_mm(&self.weight),
        }
    }
}

/// A tensor of the model.
pub(super) fn tensor(weights: &Weights, name: &str) -> Result<Tensor, ModelError> {
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
