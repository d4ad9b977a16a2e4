//! A call is answered.

use std::sync::PoisonError;
use std::time::Instant;

use tracing::error;
use zklora_proto::limits::{MAX_CALLS, MAX_PAYLOAD_BYTES};
use zklora_proto::message::{ErrorCode, Response};
use zklora_proto::packing::{activations_from_bytes, pack_deltas};
use zklora_proto::transcript::CallShape;
use zklora_proto::{Bytes, Call, Delta, PublicKey, SessionId};

use super::session::{Question, Stage};
use super::{Refusal, Service, not_recorded, refuse};
use crate::delta::DeltaError;
use crate::exposure::Refused;

impl Service {
    pub(super) fn forward(
        &self,
        client: PublicKey,
        id: SessionId,
        call: u64,
        rows: usize,
        modules: Vec<usize>,
        payload: &[u8],
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let session = self.session(client, id)?;
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(session.stage, Stage::Open) {
            return refuse(ErrorCode::Session, "the session is finished; open another for more calls");
        }
        let expected = session.hasher.calls();
        // The answer to the last call may have been lost: the same question has the same answer.
        let again = call.checked_add(1) == Some(expected);
        if call != expected && !again {
            return refuse(
                ErrorCode::Session,
                format!("this is call {call}, expected call {expected}: calls come in order, each once"),
            );
        }
        if call >= MAX_CALLS {
            return refuse(ErrorCode::Limit, "the session has as many calls as it may have; finish it");
        }
        let manifest = self.state.manifest.manifest();
        let bad = |why: String| Refusal { code: ErrorCode::BadRequest, message: why };
        let shape = CallShape::new(manifest, rows, modules).map_err(|e| bad(e.to_string()))?;
        let entries = rows * shape.d_in();
        let activations = activations_from_bytes(payload, entries).ok_or_else(|| {
            bad(format!("expected {entries} activations as int16 above -2^15, found {} bytes", payload.len()))
        })?;
        let question = Question::new(shape.modules(), &activations);
        let failed = |error: DeltaError| {
            error!("delta: {error}");
            Refusal {
                code: ErrorCode::Internal,
                message: "the contributor could not compute the delta".into(),
            }
        };
        if again {
            if session.last.as_ref() != Some(&question) {
                return refuse(ErrorCode::Session, format!("call {call} has been answered, and was another"));
            }
            session.last_used = Instant::now();
            return Ok(packed(&self.engines.deltas(&shape, &activations).map_err(failed)?));
        }
        let bytes = shape.bytes();
        if session.journal.bytes() + bytes > self.limits.session_bytes {
            return refuse(
                ErrorCode::Limit,
                format!(
                    "the session has reached its limit of {}; finish it and open another",
                    Bytes(self.limits.session_bytes as u64)
                ),
            );
        }
        if !session.journal.grow(bytes) {
            return refuse(
                ErrorCode::Limit,
                "you, or all clients together, have as many transcripts here as may wait for their proofs; try again later",
            );
        }
        let spent = |refused: Refused| match refused {
            Refused::Exhausted(_) => {
                self.refusals.count(client);
                Refusal { code: ErrorCode::Exposure, message: refused.to_string() }
            }
            Refused::Closed => Refusal { code: ErrorCode::Limit, message: refused.to_string() },
        };
        let recorded = || {
            // Before the deltas: a call that goes beyond the budget costs nobody their time.
            let considered = self.ledger.consider(shape.modules(), &activations).map_err(spent)?;
            let deltas = self.engines.deltas(&shape, &activations).map_err(failed)?;
            let answer = packed(&deltas);
            if answer.1.len() as u64 > MAX_PAYLOAD_BYTES {
                return refuse(
                    ErrorCode::Limit,
                    "the deltas of this call do not fit a message; send fewer rows",
                );
            }
            // The ledger and the journal come before the answer. What is counted and then not sent is counted all the same.
            let charge = self.ledger.charge(considered, &activations).map_err(spent)?;
            charge
                .record(&activations, |exposed| {
                    self.store.record(id, call, (shape.modules(), rows, &activations), exposed)
                })
                .map_err(|e| not_recorded(id, &e))?;
            Ok((deltas, answer))
        };
        let (deltas, answer) = recorded().inspect_err(|_| session.journal.shrink(bytes))?;
        let call = Call { rows, activations, deltas };
        // Fewer calls than there may be: checked above.
        let _ = session.hasher.add(&call);
        session.last = Some(question);
        session.last_used = Instant::now();
        Ok(answer)
    }
}

/// The response that carries these deltas.
fn packed(deltas: &[Delta]) -> (Response, Vec<u8>) {
    let (mut widths, mut payload) = (Vec::new(), Vec::new());
    for delta in deltas {
        let packed = pack_deltas(&delta.values);
        widths.push(packed.width);
        payload.extend_from_slice(&packed.bytes);
    }
    (Response::Deltas { widths }, payload)
}
