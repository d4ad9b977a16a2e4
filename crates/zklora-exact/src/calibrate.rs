//! Calibration: from a base model and a public text to the constants of its exact model.

use zklora_hf::BaseModel;

use crate::error::BuildError;
use crate::model::ExactModel;
use crate::plan::{Hot, Plan};
use crate::profile::{Profile, RESIDUAL};
use crate::trace::NormTrace;

/// A tensor's channel gets 24 bits if four times what the text makes of it does not fit 16.
const ROOM: i64 = 4;

impl Plan {
    /// The plan that these texts, given as tokens, make for a base model. It is the same on every machine.
    ///
    /// The fraction bits of the residual stream are the fewest with which the median spread of rows at every norm but the first is
    /// at least 2^6.5 units; a channel of what a layer adds is hot if four times its largest magnitude does not fit 16 bits.
    pub fn calibrate(base: &BaseModel, profile: Profile, texts: &[Vec<u32>]) -> Result<Self, BuildError> {
        Self::calibrate_telling(base, profile, texts, |_| ())
    }

    /// The same, which says after each text how many tokens it had.
    pub fn calibrate_telling(
        base: &BaseModel,
        profile: Profile,
        texts: &[Vec<u32>],
        mut done: impl FnMut(usize),
    ) -> Result<Self, BuildError> {
        if texts.is_empty() {
            return Err(BuildError::Calibration("there is no text".into()));
        }
        let layers = match base.config() {
            zklora_hf::Config::Gpt2(shape) => shape.n_layer,
            _ => 0,
        };
        let finest = *RESIDUAL.end();
        let plan = Self::new(base.digest(), profile, finest, vec![Hot::default(); layers]);
        let model = ExactModel::build(base, plan, true)?;
        let width = model.shape.n_embd;
        let mut spreads: Vec<Vec<i64>> = vec![Vec::new(); 2 * layers + 1];
        let mut largest = vec![[vec![0i64; width], vec![0i64; width]]; layers];
        for tokens in texts {
            let scored: Vec<usize> = (1..tokens.len()).collect();
            let (_, trace) = model
                .trace(tokens, &scored, None)
                .map_err(|refusal| BuildError::Calibration(refusal.to_string()))?;
            let mut see = |index: usize, norm: &NormTrace| {
                spreads[index].extend(norm.statistics.iter().map(|s| s.spread));
            };
            for (index, layer) in trace.layers.iter().enumerate() {
                see(2 * index, &layer.attention_norm);
                see(2 * index + 1, &layer.mlp_norm);
                for (most, outputs) in
                    largest[index].iter_mut().zip([&layer.attention_out.outputs, &layer.mlp_out.outputs])
                {
                    for row in outputs.chunks_exact(width) {
                        most.iter_mut().zip(row).for_each(|(most, &z)| *most = (*most).max(z.abs()));
                    }
                }
            }
            see(2 * layers, &trace.head.norm);
            done(tokens.len());
        }
        for norm in &mut spreads {
            norm.sort_unstable();
        }
        // V = d·spread²: at least d·2^13 with the bits that are chosen. The first norm has more bits.
        let enough = |bits: &u32| {
            let least = (width as i64) << 13;
            spreads.iter().skip(1).all(|norm| norm[norm.len() / 2] >> (2 * (finest - bits)) >= least)
        };
        let residual_bits = RESIDUAL.into_iter().find(enough).unwrap_or(finest);
        let hot = |largest: &[i64]| -> Vec<usize> {
            let too_large = |&most: &i64| (most >> (finest - residual_bits)) * ROOM >= 1 << 15;
            largest
                .iter()
                .enumerate()
                .filter(|(_, most)| too_large(most))
                .map(|(channel, _)| channel)
                .collect()
        };
        let hot =
            largest.iter().map(|[attention, mlp]| Hot { attention: hot(attention), mlp: hot(mlp) }).collect();
        Ok(Self::new(base.digest(), profile, residual_bits, hot))
    }
}
