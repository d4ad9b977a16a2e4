//! What the caller knows from elsewhere.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;
use zklora_proto::{AdapterId, BaseModelDigest, PublicKey, SignedSession};

use crate::kind::Kind;

/// What every bundle and every disclosure has to agree with: of each kind one of those that are listed, and anything where none is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// The adapters that were agreed on.
    pub adapters: Vec<AdapterId>,
    /// The keys of contributors that were agreed on.
    pub contributors: Vec<PublicKey>,
    /// The base models that they are for.
    pub base_models: Vec<BaseModelDigest>,
    /// The keys of base-model users whose sessions count.
    pub clients: Vec<PublicKey>,
    /// How long ago a session may have ended, by the contributor's word.
    pub max_age: Option<Duration>,
    /// Whether redacted bundles of the pinned clients are taken, on their word that the folds are those of the session.
    pub redacted: bool,
}

impl Pins {
    /// Holds a session against the pins.
    pub fn check(&self, session: &SignedSession) -> Result<(), PinRefusal> {
        let (adapter, manifest) = (session.manifest().adapter_id(), session.manifest().manifest());
        let receipt = session.receipt().receipt();
        let (contributor, base, client) = (*manifest.contributor(), *manifest.base_model(), receipt.client);
        if let Some(pinned) = missed(&self.adapters, &adapter) {
            return Err(PinRefusal::Adapter { pinned, found: adapter });
        }
        if let Some(pinned) = missed(&self.contributors, &contributor) {
            return Err(PinRefusal::Contributor { pinned, found: contributor });
        }
        if let Some(pinned) = missed(&self.base_models, &base) {
            return Err(PinRefusal::BaseModel { pinned, found: base });
        }
        if let Some(pinned) = missed(&self.clients, &client) {
            return Err(PinRefusal::Client { pinned, found: client });
        }
        let Some(max) = self.max_age else { return Ok(()) };
        // A clock before 1970 makes everything lie ahead.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if receipt.finished > now.saturating_add(CLOCKS_APART.as_secs()) {
            return Err(PinRefusal::Ahead { seconds: receipt.finished - now });
        }
        match Duration::from_secs(now.saturating_sub(receipt.finished)) {
            age if age > max => Err(PinRefusal::Age { age, max }),
            _ => Ok(()),
        }
    }

    /// Whether a redacted bundle of this client may be taken on its word: only if it was asked for, and of a pinned client. Anyone
    /// can make such a bundle under two keys of their own, and have any folds in it.
    pub fn check_redacted(&self, client: PublicKey) -> Result<(), PinRefusal> {
        match self.redacted && self.clients.contains(&client) {
            true => Ok(()),
            false => Err(PinRefusal::Redacted { client }),
        }
    }

    /// Which kinds of pins there are.
    pub fn given(&self) -> PinsFound {
        PinsFound {
            adapter: !self.adapters.is_empty(),
            contributor: !self.contributors.is_empty(),
            base_model: !self.base_models.is_empty(),
            client: !self.clients.is_empty(),
        }
    }

    /// Which kinds of pins there are and agree with these.
    pub fn found_in(
        &self,
        adapter: Option<AdapterId>,
        contributor: Option<PublicKey>,
        base_model: Option<BaseModelDigest>,
        client: Option<PublicKey>,
    ) -> PinsFound {
        PinsFound {
            adapter: adapter.is_some_and(|id| self.adapters.contains(&id)),
            contributor: contributor.is_some_and(|key| self.contributors.contains(&key)),
            base_model: base_model.is_some_and(|digest| self.base_models.contains(&digest)),
            client: client.is_some_and(|key| self.clients.contains(&key)),
        }
    }
}

/// What was pinned, as text, unless nothing was or `found` is among it.
fn missed<T: PartialEq + ToString>(pinned: &[T], found: &T) -> Option<String> {
    (!pinned.is_empty() && !pinned.contains(found))
        .then(|| pinned.iter().map(T::to_string).collect::<Vec<_>>().join(" or "))
}

/// What the caller had pinned, and a file agrees with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PinsFound {
    /// Adapter ids were given, and the file's is one of them.
    pub adapter: bool,
    /// Contributors' keys were given, and the file's is one of them.
    pub contributor: bool,
    /// Digests of base models were given, and the file's is one of them.
    pub base_model: bool,
    /// Clients' keys were given, and the file's is one of them.
    pub client: bool,
}

/// What to say of a thing that was pinned or not, and of one that was not: `otherwise`.
pub fn word_on(given: bool, found: bool, otherwise: &'static str) -> &'static str {
    match (given, found) {
        (true, true) => "pinned: it is the one you gave",
        (true, false) => "NOT the one you gave",
        (false, _) => otherwise,
    }
}

/// Why a file is not one that the caller asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinRefusal {
    /// The manifest is another.
    #[error(
        "the manifest in this file is not the pinned one: its adapter id is {found}, expected {pinned}; it is another \
         adapter, or the manifest was changed"
    )]
    Adapter {
        /// What the caller gave.
        pinned: String,
        /// What the file has.
        found: AdapterId,
    },
    /// The contributor is another.
    #[error(
        "the contributor of this file is not the pinned one: its key is {found}, expected {pinned}; somebody else \
         made it"
    )]
    Contributor {
        /// What the caller gave.
        pinned: String,
        /// What the file has.
        found: PublicKey,
    },
    /// The base model is another.
    #[error(
        "the base model that this file names is not the pinned one: its digest is {found}, expected {pinned}"
    )]
    BaseModel {
        /// What the caller gave.
        pinned: String,
        /// What the file has.
        found: BaseModelDigest,
    },
    /// The client is another.
    #[error(
        "the client of this session is not the pinned one: its key is {found}, expected {pinned}; a contributor can \
         play the client itself, under a key of its own"
    )]
    Client {
        /// What the caller gave.
        pinned: String,
        /// What the file has.
        found: PublicKey,
    },
    /// It is a redacted bundle, and nobody said that the client's word is good.
    #[error(
        "this bundle is redacted: that its folds are those of the session rests on the word of its client {client}; if you know \
         that key and trust its holder with that, say so with --redacted and --client, or else ask for the full bundle"
    )]
    Redacted {
        /// Whose word it is.
        client: PublicKey,
    },
    /// The session is old.
    #[error(
        "the session ended {} ago, expected at most {}: ask for a new one, or accept older ones",
        humantime::format_duration(*age),
        humantime::format_duration(*max)
    )]
    Age {
        /// Its age.
        age: Duration,
        /// The greatest age.
        max: Duration,
    },
    /// The session is dated ahead.
    #[error(
        "the session ended {seconds} seconds ahead of this machine's clock: one of the two clocks is wrong, so that its age \
         cannot be told"
    )]
    Ahead {
        /// How far.
        seconds: u64,
    },
}

impl PinRefusal {
    /// What kind of thing is wrong.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Adapter { .. } => Kind::AdapterPin,
            Self::Contributor { .. } => Kind::ContributorPin,
            Self::BaseModel { .. } => Kind::BaseModelPin,
            Self::Client { .. } => Kind::ClientPin,
            Self::Redacted { .. } => Kind::Redacted,
            Self::Age { .. } | Self::Ahead { .. } => Kind::Age,
        }
    }
}

/// How far the contributor's clock may be ahead of this one.
const CLOCKS_APART: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    /// The attacker is a contributor who dates a session ahead, so that it never grows old.
    #[test]
    fn a_session_grows_old_and_cannot_be_dated_ahead() {
        let world = zklora_testing::World::new(&[zklora_testing::shape(8, 2, 8)], 1);
        let mut receipt = world.receipt(&[world.call(1, &[0], &mut zklora_testing::rng(1))]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let day = Pins { max_age: Some(Duration::from_secs(DAY)), ..Pins::default() };
        let mut kind_at = |finished, pins: &Pins| {
            (receipt.started, receipt.finished) = (0, finished);
            pins.check(&world.session(world.sign(&receipt))).map_err(|refusal| refusal.kind())
        };
        for (finished, expected) in [
            (now, Ok(())),
            (now - DAY + 60, Ok(())),
            (now + 60, Ok(())),
            (now - DAY - 60, Err(Kind::Age)),
            (0, Err(Kind::Age)),
            (now + 3600, Err(Kind::Age)),
            (u64::MAX, Err(Kind::Age)),
        ] {
            assert_eq!(kind_at(finished, &day), expected, "{finished}");
            assert_eq!(kind_at(finished, &Pins::default()), Ok(()), "{finished}");
        }
    }
}
