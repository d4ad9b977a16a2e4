//! The service on QUIC.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinSet, spawn_blocking};
use tracing::{Instrument, debug, info, info_span, warn};
use zklora_net::{Connection, FrameError, Listener, read_header, read_payload, write_frame};
use zklora_proto::PublicKey;
use zklora_proto::message::{ErrorCode, Request, Response};

use crate::service::{Refusal, Service};

/// A request must have arrived within this time, and its response must have been taken.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(120);
/// A handshake must be over within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections.
const MAX_CONNECTIONS: usize = 256;

/// Serves until `shutdown` completes, then closes the connections.
pub async fn serve(listener: &Listener, service: Arc<Service>, shutdown: impl Future<Output = ()>) {
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
            warn!("refusing a connection: {MAX_CONNECTIONS} are open");
            continue;
        }
        let service = service.clone();
        connections.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming.accept()).await {
                Err(_) => debug!("a handshake took too long"),
                Ok(Err(error)) => debug!("a handshake failed: {error}"),
                Ok(Ok(connection)) => {
                    let span =
                        info_span!("connection", peer = %connection.address(), client = %connection.peer());
                    serve_connection(connection, service).instrument(span).await;
                }
            }
        });
    }
    listener.close().await;
}

async fn serve_connection(connection: Connection, service: Arc<Service>) {
    debug!("connected");
    let mut requests = JoinSet::new();
    let client = *connection.peer();
    loop {
        match connection.accept().await {
            Ok((send, receive)) => {
                let service = service.clone();
                requests.spawn(serve_request(send, receive, client, service).in_current_span());
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
    mut send: impl tokio::io::AsyncWrite + Unpin,
    mut receive: impl tokio::io::AsyncRead + Unpin,
    client: PublicKey,
    service: Arc<Service>,
) {
    let received =
        tokio::time::timeout(TRANSFER_TIMEOUT, receive_request(&mut receive, client, &service)).await;
    let answer = match received {
        Err(_) => {
            info!("a request took longer than {TRANSFER_TIMEOUT:?} to arrive");
            return;
        }
        // Nobody is there to be told.
        Ok(Err(error @ (FrameError::CutOff | FrameError::Io(_)))) => {
            info!("{error}");
            return;
        }
        Ok(Err(error)) => Err(Refusal { code: ErrorCode::BadRequest, message: error.to_string() }),
        Ok(Ok(Err(refusal))) => Err(refusal),
        Ok(Ok(Ok((request, payload)))) => {
            spawn_blocking(move || service.answer(client, request, payload)).await.unwrap_or_else(|_| {
                warn!("answering a request panicked; this is a bug");
                Err(Refusal { code: ErrorCode::Internal, message: "the contributor failed".into() })
            })
        }
    };
    let (response, payload) = answer.unwrap_or_else(|refusal| {
        info!(code = ?refusal.code, "refused: {}", refusal.message);
        (Response::Error { code: refusal.code, message: refusal.message }, vec![])
    });
    match tokio::time::timeout(TRANSFER_TIMEOUT, write_frame(&mut send, &response, &payload)).await {
        Err(_) => info!("a response took longer than {TRANSFER_TIMEOUT:?} to be taken"),
        Ok(Err(error)) => info!("a response could not be sent: {error}"),
        // Dropping the stream finishes it.
        Ok(Ok(())) => {}
    }
}

/// Reads a request, and its payload only if it is one that may have any.
async fn receive_request(
    receive: &mut (impl tokio::io::AsyncRead + Unpin),
    client: PublicKey,
    service: &Service,
) -> Result<Result<(Request, Vec<u8>), Refusal>, FrameError> {
    let request: Request = read_header(receive).await?;
    if let Err(refusal) = service.admit(client, &request) {
        return Ok(Err(refusal));
    }
    let payload = read_payload(receive, service.max_payload()).await?;
    Ok(Ok((request, payload)))
}
