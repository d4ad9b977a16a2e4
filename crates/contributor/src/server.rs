//! The service on QUIC.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument, Span, debug, info, info_span, warn};
use zklora_net::{Connection, FrameError, Listener, read_header, read_payload, write_frame};
use zklora_proto::PublicKey;
use zklora_proto::message::{ErrorCode, Request, Response};

use crate::metrics::{Asked, Metrics};
use crate::service::{Refusal, Service};

/// A request must have arrived within this time, and its response must have been taken.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(120);
/// A handshake must be over within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections.
const MAX_CONNECTIONS: usize = 256;

/// Serves until `shutdown` completes, then closes the connections.
pub async fn serve(
    listener: &Listener,
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()>,
) {
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let incoming = tokio::select! {
            () = &mut shutdown => break,
            incoming = listener.incoming() => incoming,
        };
        let Some(incoming) = incoming else { break };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            metrics.refused_connection();
            warn!("refusing a connection: {MAX_CONNECTIONS} are open");
            continue;
        }
        let (service, metrics) = (service.clone(), metrics.clone());
        connections.spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, incoming.accept()).await {
                Err(_) => debug!("a handshake took too long"),
                Ok(Err(error)) => debug!("a handshake failed: {error}"),
                Ok(Ok(connection)) => {
                    let span =
                        info_span!("connection", peer = %connection.address(), client = %connection.peer());
                    serve_connection(connection, service, metrics).instrument(span).await;
                }
            }
        });
    }
    listener.close().await;
}

async fn serve_connection(connection: Connection, service: Arc<Service>, metrics: Arc<Metrics>) {
    debug!("connected");
    let _open = metrics.connected();
    let mut requests = JoinSet::new();
    let client = *connection.peer();
    loop {
        match connection.accept().await {
            Ok((send, receive)) => {
                let asked = serve_request(send, receive, client, service.clone(), metrics.clone());
                requests.spawn(asked.in_current_span());
                while requests.try_join_next().is_some() {}
            }
            Err(reason) => {
                debug!("disconnected: {reason}");
                break;
            }
        }
    }
    while requests.join_next().await.is_some() {}
}

async fn serve_request(
    mut send: impl AsyncWrite + Unpin,
    mut receive: impl AsyncRead + Unpin,
    client: PublicKey,
    service: Arc<Service>,
    metrics: Arc<Metrics>,
) {
    let deadline = Instant::now() + TRANSFER_TIMEOUT;
    match arrive(deadline, read_header(&mut receive)).await {
        Ok(request) => {
            let span = span_of(&request);
            let answering = async {
                let asked = Asked::of(&request);
                match answer(request, &mut receive, deadline, client, service, &metrics).await {
                    Err(Refused::Gone) => {}
                    Err(Refused::Because(refusal)) => refuse(&mut send, asked, refusal, &metrics).await,
                    Ok((response, payload)) => respond(&mut send, &response, &payload, &metrics).await,
                }
            };
            answering.instrument(span).await;
        }
        Err(Refused::Gone) => {}
        Err(Refused::Because(refusal)) => refuse(&mut send, Asked::UNREADABLE, refusal, &metrics).await,
    }
}

/// Why a request is not answered.
enum Refused {
    /// Nobody is there to be told.
    Gone,
    Because(Refusal),
}

/// Waits for a part of a request.
async fn arrive<T>(
    deadline: Instant,
    part: impl Future<Output = Result<T, FrameError>>,
) -> Result<T, Refused> {
    match timeout_at(deadline, part).await {
        Err(_) => {
            info!("a request took longer than {TRANSFER_TIMEOUT:?} to arrive");
            Err(Refused::Gone)
        }
        Ok(Err(error @ (FrameError::CutOff | FrameError::Io(_)))) => {
            info!("{error}");
            Err(Refused::Gone)
        }
        Ok(Err(error)) => {
            Err(Refused::Because(Refusal { code: ErrorCode::BadRequest, message: error.to_string() }))
        }
        Ok(Ok(part)) => Ok(part),
    }
}

/// Reads a request's payload, only if it is one that may have any, and has the service answer it.
async fn answer(
    request: Request,
    receive: &mut (impl AsyncRead + Unpin),
    deadline: Instant,
    client: PublicKey,
    service: Arc<Service>,
    metrics: &Arc<Metrics>,
) -> Result<(Response, Vec<u8>), Refused> {
    service.admit(client, &request).map_err(Refused::Because)?;
    let payload = arrive(deadline, read_payload(receive, service.max_payload())).await?;
    metrics.received(payload.len());
    let (span, metrics) = (Span::current(), metrics.clone());
    let answering = move || {
        let (asked, began) = (Asked::of(&request), Instant::now());
        let answer = span.in_scope(|| service.answer(client, request, payload));
        if answer.is_ok() {
            metrics.answered(asked, began.elapsed());
        }
        answer
    };
    let answer = spawn_blocking(answering).await.unwrap_or_else(|_| {
        warn!("answering a request panicked; this is a bug");
        Err(Refusal { code: ErrorCode::Internal, message: "the contributor failed".into() })
    });
    answer.map_err(Refused::Because)
}

async fn refuse(send: &mut (impl AsyncWrite + Unpin), asked: Asked, refusal: Refusal, metrics: &Metrics) {
    info!(code = ?refusal.code, "refused: {}", refusal.message);
    metrics.refused(asked, refusal.code);
    let response = Response::Error { code: refusal.code, message: refusal.message };
    respond(send, &response, &[], metrics).await;
}

async fn respond(
    send: &mut (impl AsyncWrite + Unpin),
    response: &Response,
    payload: &[u8],
    metrics: &Metrics,
) {
    match timeout(TRANSFER_TIMEOUT, write_frame(send, response, payload)).await {
        Err(_) => info!("a response took longer than {TRANSFER_TIMEOUT:?} to be taken"),
        Ok(Err(error)) => info!("a response could not be sent: {error}"),
        // Dropping the stream finishes it.
        Ok(Ok(())) => metrics.sent(payload.len()),
    }
}

/// The span in which a request is answered: its session's, if it has one yet.
fn span_of(request: &Request) -> Span {
    match request {
        Request::Hello { .. } => Span::none(),
        Request::Forward { session, .. }
        | Request::Finish { session, .. }
        | Request::Countersign { session, .. }
        | Request::Status { session } => info_span!("session", id = %session),
    }
}
