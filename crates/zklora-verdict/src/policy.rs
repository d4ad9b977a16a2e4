//! All that is asked of a bundle, as a file or a form says it.

use std::time::Duration;

use serde::Deserialize;
use zklora_proto::{AdapterId, BaseModelDigest, PublicKey};

use crate::check::DEFAULT_MIN_SECURITY;
use crate::pins::Pins;

/// All that is asked of a bundle. Deserialised from what `docs/verifying.md` describes; unknown settings are refused, and so are
/// empty lists: a slip must not become a policy that asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Settings")]
pub struct Policy {
    /// What every bundle has to agree with.
    pub pins: Pins,
    /// Fewest bits of provable soundness.
    pub min_security: u32,
}

impl Default for Policy {
    /// Without pins, at the default level.
    fn default() -> Self {
        Self { pins: Pins::default(), min_security: DEFAULT_MIN_SECURITY }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    adapters: Option<Vec<AdapterId>>,
    contributors: Option<Vec<PublicKey>>,
    base_models: Option<Vec<BaseModelDigest>>,
    clients: Option<Vec<PublicKey>>,
    min_security: Option<u32>,
    max_age_days: Option<u32>,
    redacted: Option<bool>,
}

impl TryFrom<Settings> for Policy {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        for (setting, length) in [
            ("adapters", settings.adapters.as_ref().map(Vec::len)),
            ("contributors", settings.contributors.as_ref().map(Vec::len)),
            ("base_models", settings.base_models.as_ref().map(Vec::len)),
            ("clients", settings.clients.as_ref().map(Vec::len)),
        ] {
            if length == Some(0) {
                return Err(format!(
                    "{setting} is an empty list, which no bundle agrees with: name what is accepted, or leave it out to \
                     accept any"
                ));
            }
        }
        if settings.redacted == Some(true) && settings.clients.is_none() {
            return Err(
                "redacted = true takes the word of the clients for it: expected clients, found none".into()
            );
        }
        Ok(Self {
            pins: Pins {
                adapters: settings.adapters.unwrap_or_default(),
                contributors: settings.contributors.unwrap_or_default(),
                base_models: settings.base_models.unwrap_or_default(),
                clients: settings.clients.unwrap_or_default(),
                redacted: settings.redacted.unwrap_or(false),
                max_age: settings
                    .max_age_days
                    .map(|days| Duration::from_secs(u64::from(days) * SECONDS_OF_DAY)),
            },
            min_security: settings.min_security.unwrap_or(DEFAULT_MIN_SECURITY),
        })
    }
}

const SECONDS_OF_DAY: u64 = 24 * 60 * 60;
