//! What a daemon tells systemd, or whatever else set `NOTIFY_SOCKET`: sd_notify(3).

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error};

use crate::daemon::Daemon;

/// The status line is at most this old.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Starting asks for more time this often, and for so much.
const EXTENSION_INTERVAL: Duration = Duration::from_secs(5);
const EXTENSION: Duration = Duration::from_secs(30);
/// Starting never takes longer than this, or it hangs.
const LONGEST_START: Duration = Duration::from_secs(3600);

/// Asks for more time to start, again and again until it is dropped: sessions are restored, which may take long.
#[derive(Debug)]
pub struct Starting(AbortHandle);

impl Starting {
    /// Begins to ask.
    pub fn begin() -> Self {
        let asking = tokio::spawn(async {
            let mut interval = interval(EXTENSION_INTERVAL);
            for _ in 0..LONGEST_START.as_secs() / EXTENSION_INTERVAL.as_secs() {
                interval.tick().await;
                notify(&[NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32)]);
            }
        });
        Self(asking.abort_handle())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The daemon serves. From now on its status is kept fresh, and its watchdog fed for as long as it is healthy, until the tasks
/// are dropped.
pub fn ready(daemon: &Arc<Daemon>) -> JoinSet<()> {
    notify(&[NotifyState::Ready]);
    let mut tasks = JoinSet::new();
    tasks.spawn(keep_status(daemon.clone()));
    if let Some(patience) = sd_notify::watchdog_enabled() {
        tasks.spawn(feed_watchdog(daemon.clone(), patience));
    }
    tasks
}

/// The daemon reads its configuration again, by `reload`, and then goes on.
pub fn reloading(reload: impl FnOnce()) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => debug!("the clock cannot be read: {error}"),
    }
    reload();
    notify(&[NotifyState::Ready]);
}

/// The daemon has been told to stop.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

async fn keep_status(daemon: Arc<Daemon>) {
    let mut interval = interval(STATUS_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = String::new();
    loop {
        interval.tick().await;
        let daemon = daemon.clone();
        let Ok(line) = spawn_blocking(move || daemon.status().line()).await else { return };
        if line != last {
            notify(&[NotifyState::Status(&line)]);
            last = line;
        }
    }
}

/// Says that all is well while it is, twice as often as is asked for.
async fn feed_watchdog(daemon: Arc<Daemon>, patience: Duration) {
    let mut interval = interval((patience / 2).max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        match daemon.check_health(patience / 2).await {
            Ok(()) => notify(&[NotifyState::Watchdog]),
            Err(error) => error!("the watchdog is not fed: {error:#}"),
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // A service manager that does not listen is no reason to stop.
    if let Err(error) = sd_notify::notify(states) {
        debug!("notifying the service manager: {error}");
    }
}
