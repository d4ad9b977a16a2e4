//! What is counted while it happens, for Prometheus; what is looked up is in `scrape.rs`.
//!
//! Nothing here is told apart by client: there may be any number of them. `docs/operations.md` has the table.

use std::borrow::Cow;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use zklora_proto::message::{ErrorCode, Request, RequestKind};

use crate::state::unix_time;

/// Upper ends of the histogram's buckets, in seconds: from a cached row of one module to a long text on a busy machine.
const LATENCIES: [f64; 15] =
    [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// What is counted while it happens. What can be looked up is looked up when it is asked for.
#[derive(Debug)]
pub struct Metrics {
    connections: Gauge,
    connections_refused: Family<RefusedFor, Counter>,
    reload: Reload,
    requests: Family<Answered, Counter>,
    rows: Counter,
    forward: Histogram,
    received: Counter,
    sent: Counter,
}

/// A kind of request, and `ok` or the code of the error.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    kind: Cow<'static, str>,
    outcome: Cow<'static, str>,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "they are the names of labels")]
pub enum Refused {
    /// As many are open as may be, of all clients.
    connections,
    /// As many are open as may be, of this client.
    client_connections,
    /// The client is not on the list.
    not_listed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedFor {
    reason: Refused,
}

/// How the configuration was read the last time.
#[derive(Debug, Default)]
struct Reload {
    successful: Gauge,
    /// In seconds since 1970.
    succeeded: Gauge,
}

/// A connection that is open until this is dropped.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a request is to the metrics, taken from it before it is answered.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    kind: &'static str,
    /// Rows times modules, if it is a forward request.
    rows: Option<u64>,
}

impl Asked {
    /// A request whose header could not be read.
    pub const UNREADABLE: Self = Self { kind: "unreadable", rows: None };

    /// Of this request.
    pub fn of(request: &Request) -> Self {
        let rows = match request {
            Request::Forward { rows, modules, .. } => {
                Some((*rows as u64).saturating_mul(modules.len() as u64))
            }
            _ => None,
        };
        Self { kind: request.kind().name(), rows }
    }
}

impl Reload {
    fn record(&self, successful: bool) {
        self.successful.set(successful.into());
        if successful {
            self.succeeded.set(i64::try_from(unix_time()).unwrap_or(i64::MAX));
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = Family::default();
        for kind in RequestKind::ALL {
            // Prometheus sees a rate only from the second value on: the first is 0, before anything happens.
            drop(requests.get_or_create(&Answered { kind: kind.name().into(), outcome: "ok".into() }));
        }
        let connections_refused = Family::default();
        for reason in [Refused::connections, Refused::client_connections, Refused::not_listed] {
            drop(connections_refused.get_or_create(&RefusedFor { reason }));
        }
        let reload = Reload::default();
        reload.record(true);
        Self {
            connections: Gauge::default(),
            connections_refused,
            reload,
            requests,
            rows: Counter::default(),
            forward: Histogram::new(LATENCIES),
            received: Counter::default(),
            sent: Counter::default(),
        }
    }
}

impl Metrics {
    /// A connection was opened.
    pub fn connected(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// Connections that are open.
    pub fn connections(&self) -> i64 {
        self.connections.get()
    }

    /// A connection was refused.
    pub fn refused_connection(&self, reason: Refused) {
        self.connections_refused.get_or_create(&RefusedFor { reason }).inc();
    }

    /// The configuration was read again, or could not be.
    pub fn reloaded(&self, successful: bool) {
        self.reload.record(successful);
    }

    /// A payload has arrived.
    pub fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }

    /// A payload was taken by its client.
    pub fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    /// The service was asked, and took this long to answer.
    pub fn answered(&self, asked: Asked, took: Duration) {
        self.count(asked, "ok".into());
        if let Some(rows) = asked.rows {
            self.rows.inc_by(rows);
            self.forward.observe(took.as_secs_f64());
        }
    }

    /// A request was refused.
    pub fn refused(&self, asked: Asked, code: ErrorCode) {
        // The name that clients are told. A code is a name without fields.
        let code = serde_json::to_value(code).ok().and_then(|code| code.as_str().map(String::from));
        self.count(asked, code.unwrap_or_default().into());
    }

    fn count(&self, asked: Asked, outcome: Cow<'static, str>) {
        self.requests.get_or_create(&Answered { kind: asked.kind.into(), outcome }).inc();
    }

    /// Registers what is counted here.
    pub fn register(&self, own: &mut Registry) {
        own.register("connections", "Open connections of clients", self.connections.clone());
        own.register(
            "connections_refused",
            "Connections refused, by reason",
            self.connections_refused.clone(),
        );
        own.register(
            "config_last_reload_successful",
            "Whether the configuration could be read the last time",
            self.reload.successful.clone(),
        );
        own.register_with_unit(
            "config_last_reload_success_timestamp",
            "When the configuration was read with success the last time, since 1970",
            Unit::Seconds,
            self.reload.succeeded.clone(),
        );
        own.register("requests", "Requests, by kind and outcome", self.requests.clone());
        own.register("rows_answered", "Rows answered, once for each module", self.rows.clone());
        own.register_with_unit(
            "forward",
            "Time of answering a forward request, from its payload's arrival to the answer, without sending it",
            Unit::Seconds,
            self.forward.clone(),
        );
        own.register_with_unit("received", "Payloads of requests", Unit::Bytes, self.received.clone());
        own.register_with_unit("sent", "Payloads of answers", Unit::Bytes, self.sent.clone());
    }
}
