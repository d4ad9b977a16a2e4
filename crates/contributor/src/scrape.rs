//! What Prometheus gets: what was counted, and what is looked up when it asks.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::daemon::Daemon;
use crate::metrics::Metrics;
use crate::prover::Progress;
use crate::service::Overview;
use crate::{memory, process};

/// All metrics of a daemon: those that are counted, and what is looked up.
pub fn registry(metrics: &Metrics, daemon: Arc<Daemon>) -> Registry {
    let mut registry = Registry::default();
    let identity = Info::new([
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("adapter", daemon.service().adapter().to_string()),
    ]);
    registry.register("zklora_contributor", "The program and the adapter it serves", identity);
    let own = registry.sub_registry_with_prefix("zklora");
    metrics.register(own);
    own.register_with_unit(
        "proving",
        "Time from the first batch of a session to its bundle, of sessions that were proved",
        Unit::Seconds,
        daemon.service().proving_time(),
    );
    registry.register_collector(Box::new(AtScrape(daemon)));
    registry
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
