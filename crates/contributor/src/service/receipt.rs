//! A session ends with a receipt that both sign.

use std::sync::PoisonError;
use std::time::Instant;

use tracing::info;
use zklora_proto::identity::Purpose;
use zklora_proto::message::{ErrorCode, Response};
use zklora_proto::{PublicKey, Receipt, SessionId, Signature, SignedReceipt, TranscriptDigest};

use super::session::Stage;
use super::{Refusal, Service, not_recorded, refuse, unknown_session};
use crate::budget::Reservation;
use crate::state::unix_time;
use crate::store::{self, StoredSession};

impl Service {
    pub(super) fn finish(
        &self,
        client: PublicKey,
        id: SessionId,
        calls: u64,
        transcript: TranscriptDigest,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let Ok(session) = self.session(client, id) else {
            return self.receipt_again(client, id, calls, transcript);
        };
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(session.stage, Stage::Open) {
            return self.receipt_again(client, id, calls, transcript);
        }
        same_transcript((calls, transcript), (session.hasher.calls(), session.hasher.digest()))?;
        if calls == 0 {
            return refuse(ErrorCode::Session, "the session has no calls, so that there is nothing to prove");
        }
        let receipt = Receipt::new(
            id,
            self.adapter,
            *self.state.manifest.manifest().base_model(),
            self.state.key.public(),
            client,
            calls,
            session.hasher.rows().to_vec(),
            transcript,
            session.hasher.commitments(),
            session.started,
            // A clock that was set back a little in between costs nobody the session.
            unix_time().max(session.started),
        )
        .to_bytes();
        let signature = self.state.key.sign(Purpose::ReceiptContributor, &receipt);
        self.store.sign(id, &receipt, &signature).map_err(|e| not_recorded(id, &e))?;
        session.stage = Stage::Signed;
        session.last_used = Instant::now();
        Ok((Response::Receipt { signature }, receipt))
    }

    pub(super) fn countersign(
        &self,
        client: PublicKey,
        id: SessionId,
        by_client: Signature,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let session = self.session(client, id).ok();
        let mut session =
            session.as_ref().map(|session| session.lock().unwrap_or_else(PoisonError::into_inner));
        if session.as_ref().is_some_and(|session| matches!(session.stage, Stage::Open)) {
            return refuse(ErrorCode::Session, "the session has no receipt to sign yet; finish it first");
        }
        let (stage, receipt, by_contributor) = self.signed(client, id)?;
        let receipt = SignedReceipt::parse(receipt, by_contributor, by_client)
            .map_err(|e| Refusal { code: ErrorCode::Signature, message: e.to_string() })?;
        // Otherwise it is asked again, and has been accepted, by this process or by an earlier one.
        if stage == store::Stage::Signed {
            let Some(session) = session.as_mut().filter(|session| matches!(session.stage, Stage::Signed))
            else {
                return unknown_session();
            };
            self.store.finish(id, &by_client).map_err(|e| not_recorded(id, &e))?;
            info!(session = %id, calls = receipt.receipt().calls, "receipt signed by both");
            session.stage = Stage::Done;
            let journal = std::mem::replace(&mut session.journal, Reservation::none(vec![]));
            self.prover.submit(id, client, journal);
        }
        Ok((Response::Accepted, vec![]))
    }

    /// The receipt of a session that was finished before: the same answer to the same question.
    fn receipt_again(
        &self,
        client: PublicKey,
        id: SessionId,
        calls: u64,
        transcript: TranscriptDigest,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let (_, bytes, signature) = self.signed(client, id)?;
        let receipt = Receipt::from_bytes(&bytes).map_err(|e| not_recorded(id, &e.into()))?;
        same_transcript((calls, transcript), (receipt.calls, receipt.transcript))?;
        Ok((Response::Receipt { signature }, bytes))
    }

    /// How far a session is whose receipt this contributor has signed, that receipt and the signature.
    fn signed(
        &self,
        client: PublicKey,
        id: SessionId,
    ) -> Result<(store::Stage, Vec<u8>, Signature), Refusal> {
        let stored = self.store.session(id).map_err(|e| not_recorded(id, &e))?;
        match stored.filter(|stored| stored.client == client) {
            Some(StoredSession {
                stage, receipt: Some(receipt), by_contributor: Some(signature), ..
            }) if stage != store::Stage::Abandoned => Ok((stage, receipt, signature)),
            _ => unknown_session(),
        }
    }
}

/// Fails unless the client has hashed the transcript that was recorded here: so many calls, with this digest.
fn same_transcript(
    (calls, digest): (u64, TranscriptDigest),
    (calls_here, here): (u64, TranscriptDigest),
) -> Result<(), Refusal> {
    if (calls, digest) == (calls_here, here) {
        return Ok(());
    }
    refuse(
        ErrorCode::Transcript,
        format!(
            "your transcript ({calls} calls, {digest}) is not this contributor's ({calls_here} calls, {here})"
        ),
    )
}
