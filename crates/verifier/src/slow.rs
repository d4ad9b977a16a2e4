//! A word to who waits.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Work under way. Dropped when it is done, also by a panic.
pub(crate) struct Slow(#[allow(dead_code, reason = "dropped to say that the work is done")] Sender<()>);

impl Slow {
    /// Calls `say` from another thread, unless this is dropped before that time is over.
    pub(crate) fn after(time: Duration, say: impl FnOnce() + Send + 'static) -> Self {
        let (done, waiting) = channel::<()>();
        thread::spawn(move || {
            if waiting.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                say();
            }
        });
        Self(done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn speaks_only_when_slow() {
        for (time, expected) in [(0, false), (200, true)] {
            let said = Arc::new(AtomicBool::new(false));
            let slow = Slow::after(Duration::from_millis(50), {
                let said = said.clone();
                move || said.store(true, Ordering::Relaxed)
            });
            thread::sleep(Duration::from_millis(time));
            drop(slow);
            thread::sleep(Duration::from_millis(100));
            assert_eq!(said.load(Ordering::Relaxed), expected);
        }
    }
}
