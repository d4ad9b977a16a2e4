//! The public constants of an exact model that its base model does not decide alone.

use serde::{Deserialize, Serialize};
use zklora_proto::{BaseModelDigest, ExactModelDigest};

use crate::error::BuildError;
use crate::profile::{Profile, RESIDUAL};

const FORMAT: &str = "zklora-exact/1";
/// The most channels of one tensor that may be hot.
const MAX_HOT: usize = 64;

/// What calibration found, once for each base model: anyone makes the same from the base model and a public text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    format: String,
    /// The base model.
    pub base_model: BaseModelDigest,
    /// The formats.
    pub profile: Profile,
    /// f, the fraction bits of the residual stream: 9 or 10.
    pub residual_bits: u32,
    /// For each layer the channels of what attention and MLP add to the residual stream that need 24 bits, ascending.
    pub hot: Vec<Hot>,
}

/// The channels of one layer that need 24 bits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hot {
    /// Of attn.c_proj.
    pub attention: Vec<usize>,
    /// Of mlp.c_proj.
    pub mlp: Vec<usize>,
}

impl Plan {
    /// A plan with these constants.
    pub fn new(base_model: BaseModelDigest, profile: Profile, residual_bits: u32, hot: Vec<Hot>) -> Self {
        Self { format: FORMAT.into(), base_model, profile, residual_bits, hot }
    }

    /// Reads a plan's file. It must be canonical, so that a plan has one digest.
    pub fn parse(bytes: &[u8]) -> Result<Self, BuildError> {
        let plan: Self = serde_json::from_slice(bytes)
            .map_err(|error| BuildError::Plan(format!("this is no plan of an exact model: {error}")))?;
        if plan.format != FORMAT {
            let why = format!("the plan's format is {:?}, expected {FORMAT:?}", plan.format);
            return Err(BuildError::Plan(why));
        }
        if plan.to_bytes() != bytes {
            let why = "the plan is not written as calibration writes it; make it anew".to_owned();
            return Err(BuildError::Plan(why));
        }
        Ok(plan)
    }

    /// The plan's file.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings and integers alone.
        let mut bytes = serde_json::to_vec(self).expect("a plan always serialises");
        bytes.push(b'\n');
        bytes
    }

    /// The exact model's digest: of the version of its arithmetic, which this crate has, and of the plan, which names the base model.
    /// Nothing else decides a result.
    pub fn digest(&self) -> ExactModelDigest {
        ExactModelDigest::from_bytes(blake3::derive_key("zklora v1 exact model", &self.to_bytes()))
    }

    /// Checks a plan against a model's shape.
    pub(crate) fn check(
        &self,
        base_model: BaseModelDigest,
        layers: usize,
        width: usize,
    ) -> Result<(), BuildError> {
        let refuse = |why: String| Err(BuildError::Plan(why));
        if self.base_model != base_model {
            return refuse(format!("the plan is for base model {}, this is {base_model}", self.base_model));
        }
        if !RESIDUAL.contains(&self.residual_bits) {
            return refuse(format!("residual_bits is {}, expected 9 or 10", self.residual_bits));
        }
        if self.hot.len() != layers {
            return refuse(format!("hot has {} layers, expected {layers}", self.hot.len()));
        }
        for channels in self.hot.iter().flat_map(|hot| [&hot.attention, &hot.mlp]) {
            let ascending = channels.windows(2).all(|pair| pair[0] < pair[1]);
            if channels.len() > MAX_HOT || !ascending || channels.last().is_some_and(|&last| last >= width) {
                return refuse(format!(
                    "hot channels are {channels:?}, expected up to {MAX_HOT} below {width}, ascending"
                ));
            }
        }
        Ok(())
    }
}
