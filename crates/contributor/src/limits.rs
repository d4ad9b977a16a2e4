//! What a contributor allows its clients: one table, of which the fields, the defaults, the flags and the settings are made.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::memory::Size;

/// The table: for each limit what is said of it, its name, how its value is written, and its default.
macro_rules! limits {
    ($($(#[doc = $help:literal])+ $name:ident: $field:ty, $written:ty = $default:expr;)*) => {
        /// Bounds on what clients may take, one of them and all together. None of them can be switched off.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Limits {
            $($(#[doc = $help])+ pub $name: $field,)*
        }

        impl Limits {
            /// What is allowed unless told otherwise.
            pub const DEFAULT: Self = Self { $($name: $default,)* };

            /// Every limit.
            pub const ALL: &[Limit] = &[$(Limit {
                name: stringify!($name),
                help: concat!($($help),+),
                value_name: <$written as Written>::VALUE_NAME,
                set: |limits, text| {
                    limits.$name = <$written as Written>::read(text)?;
                    Ok(())
                },
                show: |limits| <$written as Written>::show(limits.$name),
            }),*];
        }
    };
}

limits! {
    /// Open sessions of one client.
    client_sessions: usize, usize = 16;
    /// Connections of one client.
    client_connections: usize, usize = 16;
    /// Requests of one client that are worked on at once; others wait.
    client_requests: usize, usize = 16;
    /// Rows that one client may ask for in a minute, each module's counted by itself; who asks faster waits.
    client_rows_per_minute: u64, u64 = 1 << 20;
    /// Transcripts of one client, of activations and deltas, until they are proved.
    client_bytes: usize, Size = 4 << 30;
    /// Memory of one client's requests under way.
    client_memory: usize, Size = 256 << 20;
    /// Open sessions of all clients.
    sessions: usize, usize = 256;
    /// Connections of all clients.
    connections: usize, usize = 256;
    /// Transcript of one session, which is in memory once when it is proved.
    session_bytes: usize, Size = 1 << 30;
    /// All transcripts until they are proved, on the disk.
    total_bytes: usize, Size = 16 << 30;
    /// Memory of all requests under way.
    request_memory: usize, Size = 1 << 30;
    /// Finished sessions that may wait for their proofs before no other session is opened.
    queue: usize, usize = 256;
    /// A session or a connection without a request for this long is given up.
    session_idle: Duration, Period = Duration::from_secs(600);
    /// A session this long after it was opened, or taken up after a restart, is given up.
    session_age: Duration, Period = Duration::from_secs(24 * 3600);
}

/// One limit, by its name.
#[derive(Debug)]
pub struct Limit {
    /// Its name in the configuration file; its flag and its variable are made of it.
    pub name: &'static str,
    help: &'static str,
    /// What stands for its value in the help.
    pub value_name: &'static str,
    set: fn(&mut Limits, &str) -> Result<(), String>,
    show: fn(&Limits) -> String,
}

impl Limit {
    /// What is said of it.
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    /// Reads its value, and otherwise says what was expected.
    pub fn set(&self, limits: &mut Limits, text: &str) -> Result<(), String> {
        (self.set)(limits, text)
    }

    /// Its value, as it would be given.
    pub fn show(&self, limits: &Limits) -> String {
        (self.show)(limits)
    }
}

/// How the value of a field is written.
trait Written {
    type Field;
    const VALUE_NAME: &'static str;

    fn read(text: &str) -> Result<Self::Field, String>;
    fn show(field: Self::Field) -> String;
}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(impl Written for $number {
            type Field = Self;
            const VALUE_NAME: &'static str = "N";

            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| "expected a whole number".into())
            }

            fn show(field: Self) -> String {
                field.to_string()
            }
        })*
    };
}

numbers! { usize u64 }

impl Written for Size {
    type Field = usize;
    const VALUE_NAME: &'static str = "SIZE";

    fn read(text: &str) -> Result<usize, String> {
        Ok(text.parse::<Self>()?.0)
    }

    fn show(field: usize) -> String {
        Self(field).to_string()
    }
}

impl Written for Period {
    type Field = Duration;
    const VALUE_NAME: &'static str = "TIME";

    fn read(text: &str) -> Result<Duration, String> {
        Ok(text.parse::<Self>()?.0)
    }

    fn show(field: Duration) -> String {
        Self(field).to_string()
    }
}

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Period(Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(period) if !period.is_zero() => Ok(Self(period)),
            _ => Err("expected a length of time such as 90s, 10m or 1day".into()),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Limits {
    /// Most memory of one request, in bytes. A part of what there is for all is kept for small requests, and for what arrives.
    pub fn most_memory(&self) -> usize {
        self.client_memory.min(self.request_memory / 4 * 3)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_read_as_it_is_shown() {
        for limit in Limits::ALL {
            let shown = limit.show(&Limits::DEFAULT);
            let mut limits = Limits::DEFAULT;
            limit.set(&mut limits, &shown).unwrap();
            assert_eq!(limits, Limits::DEFAULT, "{}", limit.name);
            let other = if limit.value_name == "TIME" { "90s" } else { "77" };
            limit.set(&mut limits, other).unwrap();
            assert_ne!(limits, Limits::DEFAULT, "{}", limit.name);
            let another = Limits::ALL.iter().filter(|another| another.name != limit.name);
            for another in another {
                assert_eq!(another.show(&limits), another.show(&Limits::DEFAULT), "{}", limit.name);
            }
            for wrong in ["", "-1", "many", "1e3"] {
                assert!(
                    limit.set(&mut limits, wrong).unwrap_err().contains("expected"),
                    "{} {wrong}",
                    limit.name
                );
            }
            assert!(limit.help().ends_with('.'));
        }
    }
}
