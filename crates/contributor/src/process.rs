//! What the operating system says of this process.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Time that processors have spent on it, in all its threads.
pub fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// Files that it has open; `None` where `/proc` is not to be seen.
pub fn open_files() -> Option<u64> {
    // Less the one that is open for reading the folder.
    fs::read_dir("/proc/self/fd").ok().map(|files| (files.count() as u64).saturating_sub(1))
}

/// Most files that it may have open; `None` without a limit.
pub fn max_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Bytes that it may still write where a path is; `None` if that cannot be found out.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let system = statvfs(path).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}
