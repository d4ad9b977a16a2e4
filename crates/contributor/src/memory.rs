//! How much memory proving may take.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;

/// A limit as it is given on the command line: `2GiB`, `1500M`, or `40%` of what is available when the program starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(usize),
    /// So many hundredths of the memory that is available.
    Percent(usize),
}

impl MemoryLimit {
    /// The limit in bytes, now. Fails if what is available is asked for and cannot be found out.
    pub fn resolve(self) -> anyhow::Result<usize> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Percent(percent) => {
                let available = available(Path::new("/")).with_context(|| {
                    format!(
                        "finding out how much memory {percent}% is: expected MemAvailable in /proc/meminfo; give --memory in \
                         bytes, such as 2GiB"
                    )
                })?;
                Ok(available / 100 * percent)
            }
        }
    }
}

impl Default for MemoryLimit {
    /// Half: the rest is for transcripts, weights and other programs.
    fn default() -> Self {
        Self::Percent(50)
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for MemoryLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "{text:?} is no amount of memory, expected one such as 2GiB, 1500MiB, 3GB or 40% (1% to 100%)"
            )
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: usize = number.parse().map_err(|_| expected())?;
        let unit = match unit {
            "%" if (1..=100).contains(&number) => return Ok(Self::Percent(number)),
            "" | "B" => 1,
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            "G" | "GiB" => 1 << 30,
            "T" | "TiB" => 1 << 40,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(expected()),
        };
        number.checked_mul(unit).map(Self::Bytes).ok_or_else(expected)
    }
}

/// An amount in bytes, as it is given on the command line: `2GiB`, `1500M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(MemoryLimit::Bytes(bytes)) => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no amount, expected one such as 2GiB, 1500MiB or 3GB")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
            .into_iter()
            .find(|(bits, _)| self.0 > 0 && self.0.trailing_zeros() >= *bits);
        match unit {
            Some((bits, unit)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Bytes as people read them.
pub fn readable(bytes: usize) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / f64::from(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Bytes of memory that this process has, without what is swapped out; `None` if the kernel does not say.
pub fn resident() -> Option<usize> {
    Some(field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")? << 10)
}

/// Bytes that this process may still take without swapping: what the kernel says is available, or less if a control group has
/// less left. `root` is `/`, but in tests.
fn available(root: &Path) -> anyhow::Result<usize> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).context("reading /proc/meminfo")?;
    let kib = field(&meminfo, "MemAvailable:").context("/proc/meminfo has no MemAvailable")?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().filter_map(|line| left_in_group(root, line)).min();
    Ok(left.unwrap_or(usize::MAX).min(kib << 10))
}

/// What is left in the control group of a line of `/proc/self/cgroup` and in all above it; none without a limit.
fn left_in_group(root: &Path, line: &str) -> Option<usize> {
    let (hierarchy, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    let (mount, limit, usage, reclaimable) = if hierarchy == "0" {
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    } else {
        return None;
    };
    // In a container, the group may be named as outside, and only those above it be there.
    let group: PathBuf = Path::new(group).components().skip(1).collect();
    let groups = group.ancestors().map(|group| root.join(mount).join(group));
    groups
        .filter_map(|group| {
            let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<usize>().ok();
            let (limit, usage) = (number(limit)?, number(usage)?);
            // Cached files count as used, and are given up when memory is short.
            let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            let used = usage.saturating_sub(field(&stat, reclaimable).unwrap_or(0));
            Some(limit.saturating_sub(used))
        })
        .min()
}

/// The number after a name in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<usize> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_anything_else_is_refused() {
        for (text, limit) in [
            ("2GiB", MemoryLimit::Bytes(2 << 30)),
            ("1500M", MemoryLimit::Bytes(1500 << 20)),
            ("3GB", MemoryLimit::Bytes(3_000_000_000)),
            ("512", MemoryLimit::Bytes(512)),
            ("40%", MemoryLimit::Percent(40)),
        ] {
            assert_eq!(text.parse(), Ok(limit));
        }
        for text in ["", "%", "0%", "101%", "-1", "1.5GiB", "2 GiB", "GiB", "2gib", "99999999999T"] {
            let error = text.parse::<MemoryLimit>().unwrap_err();
            assert!(error.contains("expected one such as 2GiB"), "{error}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_read() {
        for (text, bytes) in [("2GiB", 2 << 30), ("1536MiB", 3 << 29), ("1000", 1000), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Size(bytes)));
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert!("50%".parse::<Size>().is_err());
    }

    #[test]
    fn the_default_is_found_out_here() {
        assert!(MemoryLimit::default().resolve().unwrap() > 0);
    }

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n");

    #[test]
    fn without_a_control_group_it_is_what_the_kernel_says() {
        assert_eq!(available(system(&[MEMINFO]).path()).unwrap(), 8000 << 10);
        assert!(available(system(&[]).path()).is_err());
        let unlimited = [MEMINFO, ("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "max\n")];
        assert_eq!(available(system(&unlimited).path()).unwrap(), 8000 << 10);
    }

    #[test]
    fn the_tightest_control_group_counts_less_what_is_used_but_for_cached_files() {
        let system = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "6000000\n"),
            ("sys/fs/cgroup/a/b/memory.current", "100\n"),
            ("sys/fs/cgroup/a/memory.max", "5000000\n"),
            ("sys/fs/cgroup/a/memory.current", "1000000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 400000\n"),
        ]);
        assert_eq!(available(system.path()).unwrap(), 4_400_000);
    }

    #[test]
    fn the_first_version_of_control_groups_counts_too() {
        let system = system(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/123\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 500000\n"),
        ]);
        assert_eq!(available(system.path()).unwrap(), 2_500_000);
    }
}
