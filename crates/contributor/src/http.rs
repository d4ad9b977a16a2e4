//! `/metrics` and `/healthz` on a loopback address.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::daemon::Daemon;

/// Open connections; more wait until one of these is over.
const MAX_CONNECTIONS: usize = 16;
/// A connection is over within this time, whatever its client does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// A request's headers must have arrived within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The health check must have passed within this time.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's headers. The least that hyper takes.
const MAX_HEADER_BYTES: usize = 8192;

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// An address that only this machine can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopbackAddress(SocketAddr);

impl FromStr for LoopbackAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self(address)),
            Ok(_) => Err(
                "expected a loopback address such as 127.0.0.1:9464: there is neither a password nor encryption. For \
                 readers elsewhere, put a proxy that has them in front of it",
            ),
            Err(_) => Err("expected a loopback address and a port such as 127.0.0.1:9464 or [::1]:9464"),
        }
    }
}

impl fmt::Display for LoopbackAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Waits for scrapers.
#[derive(Debug)]
pub struct Http(TcpListener);

impl Http {
    /// Listens at this address.
    pub async fn bind(address: LoopbackAddress) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address.0).await.with_context(|| {
            format!(
                "listening on tcp {address} for metrics: choose another --metrics address if it is in use"
            )
        })?;
        Ok(Self(listener))
    }

    /// The address that is listened on, with the port that the system chose if it was 0.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers until it is dropped.
    pub async fn serve(self, registry: Registry, daemon: Arc<Daemon>) {
        let registry = Arc::new(registry);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("metrics: accepting a connection: {error}");
                    // Such as too many open files: at once it would fail again.
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let (registry, daemon) = (registry.clone(), daemon.clone());
            tokio::spawn(async move {
                let _place = place;
                let answer = service_fn(move |request| answer(request, registry.clone(), daemon.clone()));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .keep_alive(false)
                    .max_buf_size(MAX_HEADER_BYTES)
                    .serve_connection(TokioIo::new(stream), answer);
                match timeout(CONNECTION_TIMEOUT, connection).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!("metrics: {error}"),
                    Err(_) => debug!("metrics: a client took longer than {CONNECTION_TIMEOUT:?}"),
                }
            });
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    registry: Arc<Registry>,
    daemon: Arc<Daemon>,
) -> Result<Response<String>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "expected GET\n".into()));
    }
    Ok(match request.uri().path() {
        "/metrics" => {
            let encoded = spawn_blocking(move || {
                let mut text = String::new();
                encode(&mut text, &registry).map(|()| text)
            });
            match encoded.await {
                Ok(Ok(text)) => response(StatusCode::OK, OPEN_METRICS, text),
                _ => {
                    warn!("the metrics could not be written; this is a bug");
                    response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the log says why\n".into())
                }
            }
        }
        "/healthz" => match daemon.check_health(HEALTH_TIMEOUT).await {
            Ok(()) if daemon.is_stopping() => {
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n".into())
            }
            Ok(()) => response(StatusCode::OK, TEXT, "ok\n".into()),
            Err(error) => {
                warn!("unhealthy: {error:#}");
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "unhealthy: the log says why\n".into())
            }
        },
        _ => response(StatusCode::NOT_FOUND, TEXT, "expected /metrics or /healthz\n".into()),
    })
}

fn response(status: StatusCode, form: HeaderValue, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, form);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_read_metrics() {
        for address in ["127.0.0.1:9464", "[::1]:0", "127.1.2.3:1"] {
            assert_eq!(address.parse::<LoopbackAddress>().unwrap().to_string(), address);
        }
        for address in ["0.0.0.0:9464", "[::]:9464", "192.168.1.1:9464", "localhost:9464", "127.0.0.1", ""] {
            let error = address.parse::<LoopbackAddress>().unwrap_err();
            assert!(error.contains("expected a loopback address"), "{error}");
        }
        assert!("0.0.0.0:1".parse::<LoopbackAddress>().unwrap_err().contains("password"));
    }
}
