//! A word to who waits.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Does `work`, and calls `say` from another thread if it is not done `after` that time.
pub(crate) fn say_if_slow<T>(after: Duration, say: impl FnOnce() + Send, work: impl FnOnce() -> T) -> T {
    let (done, waiting) = channel::<()>();
    thread::scope(|scope| {
        // Dropped when work is done, and also when it panics.
        let _done = done;
        scope.spawn(move || {
            if waiting.recv_timeout(after) == Err(RecvTimeoutError::Timeout) {
                say();
            }
        });
        work()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn speaks_only_when_slow() {
        for (time, expected) in [(0, false), (200, true)] {
            let said = AtomicBool::new(false);
            let value = say_if_slow(
                Duration::from_millis(50),
                || said.store(true, Ordering::Relaxed),
                || {
                    thread::sleep(Duration::from_millis(time));
                    7
                },
            );
            assert_eq!((value, said.into_inner()), (7, expected));
        }
    }
}
