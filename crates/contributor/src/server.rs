//! The service on QUIC.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, info, info_span, warn};
use zklora_net::{Connection, FrameError, Incoming, Listener, read_header, read_payload, write_frame};
use zklora_proto::message::{ErrorCode, Request, Response};

use crate::access::Access;
use crate::clients::{Clients, Held, Seat};
use crate::service::{Refusal, Service};

/// A handshake must be over within this time, and a request's header must have arrived.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// What a payload may take beyond that, at least this many bytes in a second.
const SLOWEST: u64 = 128 << 10;
/// When the server stops, requests that are worked on have this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often sessions are looked through for those to be given up.
const SWEEP: Duration = Duration::from_secs(10);

/// The service, for those who may have it.
pub struct Server {
    service: Arc<Service>,
    access: Arc<Access>,
    clients: Arc<Clients>,
}

impl Server {
    /// Serves these clients within the limits of the service.
    pub fn new(service: Arc<Service>, access: Arc<Access>) -> Self {
        Self { clients: Clients::new(service.limits()), service, access }
    }

    /// Serves until `shutdown` completes. Then takes no more requests, answers those it has, and closes the connections.
    pub async fn serve(self, listener: &Listener, shutdown: impl Future<Output = ()>) {
        let server = Arc::new(self);
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let incoming = tokio::select! {
                () = &mut shutdown => break,
                () = sleep(SWEEP) => {
                    let service = server.service.clone();
                    let _ = spawn_blocking(move || service.sweep()).await;
                    continue;
                }
                incoming = listener.incoming() => incoming,
            };
            let Some(incoming) = incoming else { break };
            while connections.try_join_next().is_some() {}
            let most = server.service.limits().connections;
            if connections.len() >= most {
                warn!("refusing a connection: {most} are open");
                incoming.refuse();
                continue;
            }
            // Packets may come from addresses that their sender does not have.
            let Some(incoming) = incoming.validated(connections.len() >= most / 2) else { continue };
            connections.spawn(server.clone().connection(incoming, stopping.clone()));
        }
        listener.refuse_all();
        let _ = stop.send(true);
        let all = async { while connections.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, all).await.is_err() {
            warn!("some requests were not answered within {STOP_TIMEOUT:?}; their clients are cut off");
        }
        listener.close().await;
    }

    async fn connection(self: Arc<Self>, incoming: Incoming, stopping: watch::Receiver<bool>) {
        let connection = match timeout(START_TIMEOUT, incoming.accept()).await {
            Err(_) => return debug!("a handshake took too long"),
            Ok(Err(error)) => return debug!("a handshake failed: {error}"),
            Ok(Ok(connection)) => connection,
        };
        let span = info_span!("connection", peer = %connection.address(), client = %connection.peer());
        async {
            let reason = self.requests(&connection, stopping).await;
            debug!("connection over: {reason}");
            connection.close_because(&reason).await;
        }
        .instrument(span)
        .await;
    }

    /// Serves the requests of a connection, and says why it is over.
    async fn requests(
        self: &Arc<Self>,
        connection: &Connection,
        mut stopping: watch::Receiver<bool>,
    ) -> String {
        let client = *connection.peer();
        if !self.access.allows(&client) {
            info!("refused: not on the list of clients");
            return format!("key {client} is not on this contributor's list of clients");
        }
        let Some(seat) = self.clients.seat(client).map(Arc::new) else {
            info!("refused: too many connections");
            return "you have too many connections here".into();
        };
        let mut requests = JoinSet::new();
        let reason = loop {
            let streams = tokio::select! {
                streams = connection.accept() => streams,
                () = self.access.removed(&client) => {
                    info!("no longer on the list of clients");
                    return format!("key {client} is no longer on this contributor's list of clients");
                }
                _ = stopping.wait_for(|stopping| *stopping) => break "the contributor is stopping".into(),
                () = sleep(self.service.limits().idle), if requests.is_empty() => {
                    break "there was no request for too long".into();
                }
                _ = requests.join_next(), if !requests.is_empty() => continue,
            };
            match streams {
                Ok((send, receive)) => {
                    let (server, seat) = (self.clone(), seat.clone());
                    let request = async move { server.request(send, receive, client, &seat).await };
                    requests.spawn(request.in_current_span());
                }
                Err(reason) => break reason.to_string(),
            }
        };
        while requests.join_next().await.is_some() {}
        reason
    }

    async fn request(
        &self,
        mut send: impl tokio::io::AsyncWrite + Unpin,
        mut receive: impl tokio::io::AsyncRead + Unpin,
        client: zklora_proto::PublicKey,
        seat: &Seat,
    ) {
        let _turn = seat.request().await;
        let (answer, _held) = match self.receive(&mut receive, client, seat).await {
            // Nobody is there to be told.
            Err(error @ (FrameError::CutOff | FrameError::Io(_))) => return info!("{error}"),
            Err(error) => (Err(Refusal { code: ErrorCode::BadRequest, message: error.to_string() }), None),
            Ok(Err(refusal)) => (Err(refusal), None),
            Ok(Ok(Received { request, payload, held })) => {
                let service = self.service.clone();
                let answer = spawn_blocking(move || service.answer(client, request, payload)).await;
                (answer.unwrap_or_else(|_| panicked()), Some(held))
            }
        };
        let (response, payload) = answer.unwrap_or_else(|refusal| {
            info!(code = ?refusal.code, "refused: {}", refusal.message);
            (Response::Error { code: refusal.code, message: refusal.message }, vec![])
        });
        let patience = patience(payload.len() as u64);
        match timeout(patience, write_frame(&mut send, &response, &payload)).await {
            Err(_) => info!("a response was not taken within {patience:?}"),
            Ok(Err(error)) => info!("a response could not be sent: {error}"),
            // Dropping the stream finishes it.
            Ok(Ok(())) => {}
        }
    }

    /// Reads a request, and its payload once it is one that may have it and there is room.
    async fn receive(
        &self,
        receive: &mut (impl tokio::io::AsyncRead + Unpin),
        client: zklora_proto::PublicKey,
        seat: &Seat,
    ) -> Result<Result<Received, Refusal>, FrameError> {
        let slow = |patience| FrameError::Slow { patience };
        let header = timeout(START_TIMEOUT, read_header(receive)).await;
        let request: Request = header.map_err(|_| slow(START_TIMEOUT))??;
        let admitted = async {
            let cost = self.service.admit(client, &request)?;
            seat.rows(cost.rows).await?;
            Ok((cost, seat.memory(cost.memory).await?))
        };
        let (cost, held) = match admitted.await {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let patience = patience(cost.payload);
        let payload = timeout(patience, read_payload(receive, cost.payload)).await;
        let payload = payload.map_err(|_| slow(patience))??;
        Ok(Ok(Received { request, payload, held }))
    }
}

/// A request, and the memory that it takes.
struct Received {
    request: Request,
    payload: Vec<u8>,
    held: Held,
}

/// How long the transfer of a payload may take.
fn patience(bytes: u64) -> Duration {
    START_TIMEOUT + Duration::from_secs(bytes / SLOWEST)
}

fn panicked<T>() -> Result<T, Refusal> {
    warn!("answering a request panicked; this is a bug");
    Err(Refusal { code: ErrorCode::Internal, message: "the contributor failed".into() })
}
