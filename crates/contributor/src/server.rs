//! The service on QUIC.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{Instrument, Span, debug, info, info_span, warn};
use zklora_net::{
    Arriving, Connection, FrameError, Incoming, Listener, RecvStream, SendStream, deliver, read_header,
    write_frame,
};
use zklora_proto::PublicKey;
use zklora_proto::message::{ErrorCode, Request, Response};

use crate::access::Access;
use crate::clients::{Clients, MemoryPermits, Quota};
use crate::metrics::{self, Asked, Metrics};
use crate::service::{Refusal, Service};

/// A handshake must be over within this time, and a request's header must have arrived.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// What a payload may take beyond that, at least this many bytes in a second.
const SLOWEST: u64 = 128 << 10;
/// So many refusals of a connection are told one by one.
const REFUSALS_TOLD: u64 = 16;
/// When the server stops, requests that are worked on have this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often sessions are looked through for those to be given up.
const SWEEP: Duration = Duration::from_secs(10);

/// The service, for those who may have it.
pub struct Server {
    service: Arc<Service>,
    access: Arc<Access>,
    clients: Arc<Clients>,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Serves these clients within the limits of the service.
    pub fn new(service: Arc<Service>, access: Arc<Access>, metrics: Arc<Metrics>) -> Self {
        Self { clients: Clients::new(service.limits()), service, access, metrics }
    }

    /// Serves until `shutdown` completes. Then takes no more requests, answers those it has, and closes the connections.
    pub async fn serve(self, listener: &Listener, shutdown: impl Future<Output = ()>) {
        let server = Arc::new(self);
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut sweep = interval(SWEEP);
        tokio::pin!(shutdown);
        loop {
            let incoming = tokio::select! {
                () = &mut shutdown => break,
                _ = sweep.tick() => {
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
                server.metrics.refused_connection(metrics::Refused::connections);
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
            let Closing { reason, come_again } = self.requests(&connection, stopping).await;
            debug!("connection over: {reason}");
            connection.close_because(&reason, come_again);
        }
        .instrument(span)
        .await;
    }

    /// Serves the requests of a connection, and says why it is over.
    async fn requests(
        self: &Arc<Self>,
        connection: &Connection,
        mut stopping: watch::Receiver<bool>,
    ) -> Closing {
        let client = *connection.peer();
        if !self.access.allows(&client) {
            self.metrics.refused_connection(metrics::Refused::not_listed);
            info!("refused: not on the list of clients");
            return Closing::refused(format!("key {client} is not on this contributor's list of clients"));
        }
        let Some(quota) = self.clients.quota(client).map(Arc::new) else {
            self.metrics.refused_connection(metrics::Refused::client_connections);
            info!("refused: too many connections");
            return Closing::refused("you have too many connections here".into());
        };
        let _open = self.metrics.connected();
        let mut requests = JoinSet::new();
        let reason = loop {
            let streams = tokio::select! {
                streams = connection.accept() => streams,
                () = self.access.removed(&client) => {
                    info!("no longer on the list of clients");
                    let reason = format!("key {client} is no longer on this contributor's list of clients");
                    return Closing::refused(reason);
                }
                _ = stopping.wait_for(|stopping| *stopping) => break "the contributor is stopping".into(),
                () = sleep(self.service.limits().session_idle), if requests.is_empty() => {
                    break "there was no request for too long".into();
                }
                _ = requests.join_next(), if !requests.is_empty() => continue,
            };
            match streams {
                Ok((send, receive)) => {
                    let (server, quota) = (self.clone(), quota.clone());
                    let request = async move { server.request(send, receive, client, &quota).await };
                    requests.spawn(request.in_current_span());
                }
                Err(reason) => break reason.to_string(),
            }
        };
        while requests.join_next().await.is_some() {}
        match quota.refusals() {
            0..=REFUSALS_TOLD => {}
            refusals => info!("{refusals} requests of this connection were refused"),
        }
        Closing { reason, come_again: true }
    }

    async fn request(&self, send: SendStream, mut receive: RecvStream, client: PublicKey, quota: &Quota) {
        let _turn = quota.request().await;
        match arrive(START_TIMEOUT, read_header(&mut receive)).await {
            Ok(request) => {
                let span = span_of(&request);
                let answering = async {
                    let asked = Asked::of(&request);
                    match self.answer(request, &mut receive, client, quota).await {
                        Err(Refused::Gone) => {}
                        Err(Refused::Because(refusal)) => self.refuse(send, asked, refusal, quota).await,
                        Ok(Answer { response, payload, _held }) => {
                            self.respond(send, &response, &payload).await;
                        }
                    }
                };
                answering.instrument(span).await;
            }
            Err(Refused::Gone) => {}
            Err(Refused::Because(refusal)) => self.refuse(send, Asked::UNREADABLE, refusal, quota).await,
        }
    }

    /// Reads a request's payload, once it is one that may have it and there is room, and has the service answer it.
    async fn answer(
        &self,
        request: Request,
        receive: &mut RecvStream,
        client: PublicKey,
        quota: &Quota,
    ) -> Result<Answer, Refused> {
        let cost = self.service.admit(client, &request).map_err(Refused::Because)?;
        quota.rows(cost.rows).await.map_err(Refused::Because)?;
        let mut held = quota.memory(cost.memory).await.map_err(Refused::Because)?;
        let arriving = async {
            let mut payload = Arriving::begin(receive, cost.payload).await?;
            while let Some(bytes) = payload.more().await? {
                quota.arriving(&mut held, bytes).await.map_err(Refused::Because)?;
                payload.take().await?;
            }
            Ok::<_, Refused>(payload.end().await?)
        };
        let payload = arrive(patience(cost.payload), arriving).await?;
        quota.answering(&mut held, cost.memory).await.map_err(Refused::Because)?;
        self.metrics.received(payload.len());
        let (span, metrics, service) = (Span::current(), self.metrics.clone(), self.service.clone());
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
        let (response, payload) = answer.map_err(Refused::Because)?;
        held.shrink(payload.len());
        Ok(Answer { response, payload, _held: held })
    }

    async fn refuse(&self, send: SendStream, asked: Asked, refusal: Refusal, quota: &Quota) {
        // A line costs its client nothing.
        match quota.refused() {
            0..REFUSALS_TOLD => info!(code = ?refusal.code, "refused: {}", refusal.message),
            REFUSALS_TOLD => {
                info!("refused again; from now on of this connection the number is told, when it is over")
            }
            _ => debug!(code = ?refusal.code, "refused: {}", refusal.message),
        }
        self.metrics.refused(asked, refusal.code);
        let response = Response::Error { code: refusal.code, message: refusal.message };
        self.respond(send, &response, &[]).await;
    }

    async fn respond(&self, mut send: SendStream, response: &Response, payload: &[u8]) {
        let patience = patience(payload.len() as u64);
        let delivered = async {
            write_frame(&mut send, response, payload).await?;
            deliver(send).await;
            Ok::<_, FrameError>(())
        };
        match timeout(patience, delivered).await {
            Err(_) => info!("a response was not taken within {patience:?}"),
            Ok(Err(error)) => info!("a response could not be sent: {error}"),
            Ok(Ok(())) => self.metrics.sent(payload.len()),
        }
    }
}

/// Why a connection is over.
struct Closing {
    reason: String,
    /// Whether its client would be served on another one.
    come_again: bool,
}

impl Closing {
    fn refused(reason: String) -> Self {
        Self { reason, come_again: false }
    }
}

/// An answer, and the memory that it takes.
struct Answer {
    response: Response,
    payload: Vec<u8>,
    _held: MemoryPermits,
}

/// Why a request is not answered.
enum Refused {
    /// Nobody is there to be told.
    Gone,
    Because(Refusal),
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::CutOff | FrameError::Io(_) => {
                info!("{error}");
                Self::Gone
            }
            error => Self::Because(Refusal { code: ErrorCode::BadRequest, message: error.to_string() }),
        }
    }
}

/// Waits for a part of a request.
async fn arrive<T, E: Into<Refused>>(
    patience: Duration,
    part: impl Future<Output = Result<T, E>>,
) -> Result<T, Refused> {
    match timeout(patience, part).await {
        Err(_) => {
            let message = format!("your request did not arrive within {patience:?}");
            Err(Refused::Because(Refusal { code: ErrorCode::BadRequest, message }))
        }
        Ok(part) => part.map_err(Into::into),
    }
}

/// The span in which a request is answered: its session's, if it has one yet.
fn span_of(request: &Request) -> Span {
    request.session().map_or_else(Span::none, |session| info_span!("session", id = %session))
}

/// How long the transfer of a payload may take.
fn patience(bytes: u64) -> Duration {
    START_TIMEOUT + Duration::from_secs(bytes / SLOWEST)
}
