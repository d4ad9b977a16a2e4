//! A session begins.

use std::sync::{Arc, Mutex};

use tracing::info;
use zklora_proto::message::{ErrorCode, Nonce, Response};
use zklora_proto::{AdapterId, BaseModelDigest, CommitmentSeed, PROTOCOL_VERSION, PublicKey, SessionId};

use super::session::{Entry, Session};
use super::{Refusal, Service, not_recorded, refuse};
use crate::state::unix_time;

impl Service {
    pub(super) fn hello(
        &self,
        client: PublicKey,
        version: u32,
        adapter: AdapterId,
        base_model: BaseModelDigest,
        nonce: Nonce,
        seed: CommitmentSeed,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        if version != PROTOCOL_VERSION {
            return refuse(
                ErrorCode::Version,
                format!("you speak version {version} of the protocol, this contributor {PROTOCOL_VERSION}"),
            );
        }
        if adapter != self.adapter {
            return refuse(
                ErrorCode::Adapter,
                format!("you pin adapter {adapter}, but adapter {} is served here", self.adapter),
            );
        }
        let served = self.state.manifest.manifest().base_model();
        if base_model != *served {
            return refuse(
                ErrorCode::BaseModel,
                format!("the adapter belongs to base model {served}, but you run base model {base_model}"),
            );
        }
        let mine = Nonce::random();
        let id = SessionId::derive(
            nonce.as_bytes(),
            mine.as_bytes(),
            &client,
            &self.state.key.public(),
            &self.adapter,
        );
        let modules = self.state.manifest.manifest().modules().len();
        // Before the table of sessions is locked: a module may be, by a call that is being recorded.
        let left = self.ledger.exposures().iter().map(|exposure| exposure.left() as u64).collect();
        self.sweep();
        let mut sessions = self.lock();
        let of_client = sessions.values().filter(|entry| entry.client == client).count();
        if of_client >= self.limits.client_sessions || sessions.len() >= self.limits.sessions {
            return refuse(ErrorCode::Limit, "too many sessions are open; finish one, or try again later");
        }
        let waiting = self.prover.waiting();
        if waiting >= self.limits.queue {
            return refuse(
                ErrorCode::Limit,
                format!("{waiting} finished sessions wait for their proofs, as many as may; try again later"),
            );
        }
        let session = Session::new(unix_time(), modules, seed.clone(), self.journal(client));
        let started = session.started;
        // Its place is taken before it is recorded: others need not wait for the disk. Nobody else knows its id yet.
        sessions.insert(id, Entry { client, session: Arc::new(Mutex::new(session)) });
        drop(sessions);
        if let Err(error) = self.store.begin(id, client, started, self.prover.security(), &seed) {
            self.lock().remove(&id);
            return Err(not_recorded(id, &error));
        }
        info!(session = %id, %client, "session opened");
        let welcome = Response::Welcome {
            nonce: mine,
            signature: *self.state.manifest.signature(),
            max_call_bytes: self.max_call_bytes(),
            left,
            security: self.prover.security().name().into(),
        };
        Ok((welcome, self.state.manifest.bytes().to_vec()))
    }
}
