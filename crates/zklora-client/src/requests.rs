//! Requests that one answer ends, of a session or of a fetch.

use std::error::Error;
use std::time::Duration;

use tokio::runtime::Handle;
use zklora_net::FrameError;
use zklora_proto::message::{ProofState, Request, Response};
use zklora_proto::{Escaped, SessionId};

use crate::error::SessionError;
use crate::link::Link;

/// How often a contributor that is still proving is asked again.
const POLL: Duration = Duration::from_millis(200);

/// Asked again and again while something is waited for; that ends with its error.
pub type Interrupt<'a> = &'a dyn Fn() -> Result<(), Box<dyn Error + Send + Sync>>;

/// Waits until a session is proved.
pub(crate) fn wait_for_proof(
    runtime: &Handle,
    link: &Link,
    session: SessionId,
    interrupt: Interrupt<'_>,
    mut progress: impl FnMut(&ProofState),
) -> Result<u64, SessionError> {
    let mut last = None;
    loop {
        interrupt().map_err(SessionError::NotWaited)?;
        let state = status(runtime, link, session)?;
        if last.as_ref() != Some(&state) {
            progress(&state);
        }
        match state {
            ProofState::Proved { bytes } => return Ok(bytes),
            ProofState::Failed => return Err(SessionError::ProofFailed),
            _ => std::thread::sleep(POLL),
        }
        last = Some(state);
    }
}

/// How far a session is.
pub(crate) fn status(runtime: &Handle, link: &Link, session: SessionId) -> Result<ProofState, SessionError> {
    match ask(runtime, link, &Request::Status { session })?.0 {
        Response::Status { state } => Ok(state),
        other => Err(unexpected("how far proving is", &other)),
    }
}

pub(crate) fn ask(
    runtime: &Handle,
    link: &Link,
    request: &Request,
) -> Result<(Response, Vec<u8>), SessionError> {
    granted(runtime.block_on(link.request(request, &[])))
}

/// The answer, unless it is a refusal.
pub(crate) fn granted(
    answer: Result<(Response, Vec<u8>), FrameError>,
) -> Result<(Response, Vec<u8>), SessionError> {
    match answer? {
        (Response::Error { code, message }, _) => {
            Err(SessionError::Refused { code, message: Escaped(&message).to_string() })
        }
        answer => Ok(answer),
    }
}

/// That an answer was of another kind.
pub(crate) fn unexpected(expected: &'static str, found: &Response) -> SessionError {
    SessionError::Unexpected { expected, found: found.kind().into() }
}
