//! What is counted, for Prometheus.
//!
//! Nothing here is told apart by client: there may be any number of them. `docs/operations.md` has the table.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use zklora_proto::message::{ErrorCode, Request, RequestKind};

use crate::daemon::Daemon;
use crate::memory;
use crate::process;
use crate::prover::Progress;
use crate::service::Overview;
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

    /// All metrics of a daemon that has these.
    pub fn registry(&self, daemon: Arc<Daemon>) -> Registry {
        let mut registry = Registry::default();
        let identity = Info::new([
            ("version", env!("CARGO_PKG_VERSION").to_string()),
            ("adapter", daemon.service().adapter().to_string()),
        ]);
        registry.register("zklora_contributor", "The program and the adapter it serves", identity);
        let own = registry.sub_registry_with_prefix("zklora");
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
        own.register_with_unit(
            "proving",
            "Time from the first batch of a session to its bundle, of sessions that were proved",
            Unit::Seconds,
            daemon.service().proving_time(),
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
        registry.register_collector(Box::new(AtScrape(daemon)));
        registry
    }
}

/// What is looked up at each scrape.
struct AtScrape(Arc<Daemon>);

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let Overview { open, signed, abandoned, prover, exposures, exposure_refusals } =
            self.0.service().overview();
        let mut encoder = Families(encoder);
        encoder.family(
            ConstGauge::new,
            "zklora_sessions",
            "Sessions that have not ended, by stage.",
            "stage",
            [
                ("open", open as u64),
                ("signed", signed as u64),
                ("queued", prover.queued as u64),
                ("proving", prover.proving.len() as u64),
            ],
        )?;
        encoder.family(
            ConstCounter::new,
            "zklora_sessions_ended",
            "Sessions that ended since the process began; proved ones have their bundle.",
            "outcome",
            [("proved", prover.totals.proved), ("failed", prover.totals.failed), ("abandoned", abandoned)],
        )?;
        let batches = |of: fn(&Progress) -> usize| prover.proving.iter().map(of).sum::<usize>() as u64;
        encoder.family(
            ConstGauge::new,
            "zklora_proving_batches",
            "Batches of the sessions being proved.",
            "state",
            [("done", batches(|p| p.done)), ("left", batches(|p| p.total.saturating_sub(p.done)))],
        )?;
        let modules = || exposures.iter().map(|exposure| (&exposure.module[..], exposure));
        encoder.family(
            ConstGauge::new,
            "zklora_exposure_rows",
            "Linearly independent rows that a module has answered, or has to be taken to have answered.",
            "module",
            modules().map(|(module, exposure)| (module, exposure.rows as u64)),
        )?;
        encoder.family(
            ConstGauge::new,
            "zklora_exposure_budget_rows",
            "Linearly independent rows that a module may answer.",
            "module",
            modules().map(|(module, exposure)| (module, exposure.budget as u64)),
        )?;
        encoder.counter(
            "zklora_exposure_refused",
            "Calls refused because they went beyond a module's budget.",
            exposure_refusals.0,
        )?;
        encoder.gauge(
            "zklora_store",
            "The record of sessions on disk.",
            Unit::Bytes,
            self.0.store_bytes(),
        )?;
        let folders = self.0.folders().map(|(name, path)| (name, process::free_bytes(path)));
        encoder.family(
            ConstGauge::new,
            "zklora_free_bytes",
            "Space that the daemon may still take where a folder is.",
            "folder",
            folders.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))),
        )?;
        encoder.gauge(
            "process_start_time",
            "Start of the process since 1970.",
            Unit::Seconds,
            self.0.started(),
        )?;
        if let Some(bytes) = memory::resident() {
            encoder.gauge(
                "process_resident_memory",
                "Memory that the process has.",
                Unit::Bytes,
                bytes as u64,
            )?;
        }
        encoder.seconds(
            "process_cpu",
            "Time that processors spent on the process.",
            process::cpu_seconds(),
        )?;
        let files = [
            ("process_open_fds", "Open files.", process::open_files()),
            ("process_max_fds", "Most files that may be open at once.", process::max_files()),
        ];
        for (name, help, count) in files {
            if let Some(count) = count {
                encoder.count(name, help, count)?;
            }
        }
        Ok(())
    }
}

/// Encodes families of values that are known only now.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge(&mut self, name: &str, help: &str, unit: Unit, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, Some(&unit), gauge.metric_type())?)
    }

    fn count(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, Some(&Unit::Seconds), counter.metric_type())?)
    }

    fn family<'b, M: EncodeMetric>(
        &mut self,
        metric: impl Fn(u64) -> M,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'b str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, metric(0).metric_type())?;
        for (value, number) in values {
            metric(number).encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }
}
