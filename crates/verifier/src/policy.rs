//! What the caller knows from elsewhere, as options or as a policy file.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;
use zklora_proto::{AdapterId, BaseModelDigest, Bytes, PublicKey, read_bounded};
use zklora_verdict::{Pins, Policy};

/// The pins as options.
#[derive(Debug, Clone, Default, Args)]
pub struct PinArgs {
    /// Adapter id that every file must be about, known from elsewhere; repeated, one of them
    #[arg(long, value_name = "ID")]
    pub adapter: Vec<AdapterId>,

    /// Public key of the contributor that every file must come from, known from elsewhere; repeated, one of them
    #[arg(long, value_name = "KEY")]
    pub contributor: Vec<PublicKey>,

    /// Digest of the base model that every file must name; repeated, one of them
    #[arg(long, value_name = "DIGEST")]
    pub base_model: Vec<BaseModelDigest>,

    /// Public key of the base-model user whose sessions count; repeated, one of them
    #[arg(long, value_name = "KEY")]
    pub client: Vec<PublicKey>,

    /// Exit with 0 for what is valid even if no adapter is pinned. The verdict stays "VALID, NOT PINNED"
    #[arg(long)]
    pub unpinned: bool,
}

impl From<&PinArgs> for Pins {
    fn from(args: &PinArgs) -> Self {
        Self {
            adapters: args.adapter.clone(),
            contributors: args.contributor.clone(),
            base_models: args.base_model.clone(),
            clients: args.client.clone(),
            max_age: None,
            redacted: false,
        }
    }
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is far longer than any policy.
    #[error("{path}: the policy has more than {}", Bytes(MAX_POLICY_BYTES), path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not what docs/verifying.md describes.
    #[error("{path}:{error}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        error: String,
    },
}

/// Reads the TOML file of `verify --policy`.
pub fn read_policy(path: &Path) -> Result<Policy, PolicyError> {
    let io = |error| PolicyError::Io { path: path.into(), error };
    let bytes = read_bounded(fs::File::open(path).map_err(io)?, MAX_POLICY_BYTES).map_err(io)?;
    let bytes = bytes.ok_or_else(|| PolicyError::TooLarge { path: path.into() })?;
    let content = |error| PolicyError::Content { path: path.into(), error };
    let text = String::from_utf8(bytes).map_err(|error| content(format!(" {error}")))?;
    parse(&text).map_err(content)
}

/// The policy; or what is wrong, on one line and with its place if it has one.
fn parse(text: &str) -> Result<Policy, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| match error.span() {
        // What the document as a whole lacks is no line's fault.
        Some(span) if span.len() < text.trim_end().len() => {
            let line = text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
            let field =
                text.lines().nth(line).and_then(|line| line.split_once('=')).map(|(field, _)| field.trim());
            match field {
                Some(field) if !error.message().contains(field) => {
                    format!("{}: {field}: {}", line + 1, error.message())
                }
                _ => format!("{}: {}", line + 1, error.message()),
            }
        }
        _ => format!(" {}", error.message()),
    })
}

const MAX_POLICY_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_policy_is_read_whole_or_not_at_all() {
        let key = "ab".repeat(32);
        let policy = parse(&format!(
            "adapters = [\"{key}\"]\nbase_models = [\"{key}\"]\nmin_security = 90\nmax_age_days = 30\n"
        ))
        .unwrap();
        assert_eq!(policy.pins.adapters, [key.parse().unwrap()]);
        assert_eq!(policy.pins.base_models, [key.parse().unwrap()]);
        assert!(policy.pins.contributors.is_empty() && policy.pins.clients.is_empty());
        assert_eq!((policy.min_security, policy.pins.max_age), (90, Some(Duration::from_secs(30 * 86_400))));
        assert_eq!(parse("").unwrap(), Policy::default());

        for (text, words) in [
            ("adapter = []", "unknown field `adapter`"),
            ("adapters = []", "adapters is an empty list"),
            ("contributors = []", "contributors is an empty list"),
            ("base_models = []", "base_models is an empty list"),
            ("clients = []", "clients is an empty list"),
            ("redacted = true", "expected clients"),
            ("adapters = [\"abc\"]", "hexadecimal"),
            ("max_age_days = -1", "max_age_days"),
            ("min_security = \"high\"", "min_security"),
            ("\nadapters", "2: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }
}
