//! How far proving is, and the bundle in parts.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;
use tracing::{info, warn};
use zklora_proto::message::{ErrorCode, ProofState, Response};
use zklora_proto::{PublicKey, SessionId};

use super::{Refusal, Service, refuse, unknown_session};
use crate::store;

impl Service {
    pub(super) fn status(&self, client: PublicKey, id: SessionId) -> Result<(Response, Vec<u8>), Refusal> {
        let state = match self.prover.status(&id) {
            Some((owner, state)) if owner == client => state,
            // Whose session it is, is nobody else's business.
            Some(_) => return unknown_session(),
            None => match self.session(client, id) {
                Ok(_) => ProofState::Open,
                Err(unknown) => self.past(client, id).ok_or(unknown)?,
            },
        };
        Ok((Response::Status { state }, vec![]))
    }

    /// How a session of an earlier service ended.
    fn past(&self, client: PublicKey, id: SessionId) -> Option<ProofState> {
        let session = self.store.session(id).ok().flatten().filter(|session| session.client == client)?;
        match session.stage {
            store::Stage::Proved => Some(ProofState::Proved { bytes: session.bundle_bytes? }),
            store::Stage::Failed => Some(ProofState::Failed),
            store::Stage::Finished | store::Stage::Proving => Some(ProofState::Queued),
            _ => None,
        }
    }

    /// A part of the bundle, for the client whose session it is.
    pub(super) fn fetch(
        &self,
        client: PublicKey,
        id: SessionId,
        offset: u64,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let bytes = match self.status(client, id)? {
            (Response::Status { state: ProofState::Proved { bytes } }, _) => bytes,
            (Response::Status { state: ProofState::Failed }, _) => {
                return refuse(ErrorCode::Session, "proving this session failed, so that there is no bundle");
            }
            (Response::Status { state: ProofState::Open }, _) => {
                return refuse(ErrorCode::Session, "the session is not finished, so that it is not proved");
            }
            _ => return refuse(ErrorCode::Session, "the session is not proved yet; ask for its status"),
        };
        if offset > bytes {
            let why = format!("the bundle has {bytes} bytes, you ask for what comes after {offset}");
            return refuse(ErrorCode::BadRequest, why);
        }
        let gone = |why: String| {
            warn!(session = %id, "a bundle cannot be handed over: {why}");
            let deleted = self.store.session(id).ok().flatten().and_then(|session| session.bundle_deleted);
            let message = match deleted {
                Some(at) => format!(
                    "the bundle was kept for as long as this contributor keeps bundles, and deleted at {}; ask the contributor whether \
                     it has a copy",
                    format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at.min(u32::MAX.into())))
                ),
                None => {
                    "the bundle was written, and is no longer where it was; ask the contributor for it".into()
                }
            };
            Refusal { code: ErrorCode::Gone, message }
        };
        let path = self.prover.bundle(id);
        let failed = |error: io::Error| gone(format!("{}: {error}", path.display()));
        // Before opening: to open a pipe would wait for a writer.
        let found = fs::metadata(&path).map_err(failed)?;
        if !found.is_file() || found.len() != bytes {
            return Err(gone(format!("{} is no file of {bytes} bytes", path.display())));
        }
        let mut part = vec![0; (bytes - offset).min(self.part_bytes() as u64) as usize];
        File::open(&path).and_then(|file| file.read_exact_at(&mut part, offset)).map_err(failed)?;
        if offset + part.len() as u64 == bytes {
            info!(session = %id, bytes, "bundle handed over");
        }
        Ok((Response::Bundle { bytes }, part))
    }
}
