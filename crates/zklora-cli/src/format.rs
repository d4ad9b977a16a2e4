//! The forms of the log, none of which a peer's text can break out of.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::{Escaped, LogFormat};

/// In front of a line, the journal's mark of an error.
pub(crate) const ERROR: &str = "<3>";

/// What writes events in this form.
pub(crate) fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
    colours: bool,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => {
            Box::new(builder.with_ansi(colours).with_target(false).fmt_fields(PlainFields).finish())
        }
        LogFormat::Json => Box::new(builder.json().map_event_format(JsonLine).finish()),
        LogFormat::Journal => {
            let builder = builder.with_ansi(false).with_target(false).with_level(false).without_time();
            Box::new(builder.fmt_fields(PlainFields).map_event_format(Prioritised).finish())
        }
    }
}

/// Fields as `name=value`, one line whatever is in them.
///
/// tracing-subscriber escapes what a terminal would act on, but lets new lines and marks of direction pass: a peer could make up
/// lines of the log.
struct PlainFields;

impl<'writer> FormatFields<'writer> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = PlainVisitor { writer, first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct PlainVisitor<'writer> {
    writer: Writer<'writer>,
    first: bool,
    result: fmt::Result,
}

impl Visit for PlainVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Where an event of the `log` crate comes from, which is no part of what it says.
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        let space = if std::mem::take(&mut self.first) { "" } else { " " };
        let value = format!("{value:?}");
        self.result = match field.name() {
            "message" => write!(self.writer, "{space}{}", Escaped(&value)),
            name => write!(self.writer, "{space}{name}={}", Escaped(&value)),
        };
    }
}

/// JSON that has no character outside of itself that a terminal would act on: its own escapes leave those above 0x7e.
struct JsonLine<F>(F);

impl<S, N, F> FormatEvent<S, N> for JsonLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        for c in line.chars() {
            let plain = c == '\n' || (' '..='~').contains(&c) || c.escape_debug().count() == 1;
            if plain {
                writer.write_char(c)?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// Lines with the priority of sd-daemon(3) in front, by which the journal sorts them.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(match *event.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            Level::DEBUG | Level::TRACE => "<7>",
        })?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{error, info, info_span, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged meanwhile.
    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let written = Log::default();
        let writer = written.clone();
        let subscriber = subscriber(format, EnvFilter::new("info"), move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// Clears the screen, forges a line, and turns the rest around.
    const HOSTILE: &str = "\x1b[2J\r\n<0>forged\u{9b}1m\u{202e}\u{7f}x";

    #[test]
    fn no_form_lets_a_peer_write_lines_or_escape_sequences() {
        for format in [LogFormat::Text, LogFormat::Json, LogFormat::Journal] {
            let said = logged(format, || {
                let _span = info_span!("peer", name = HOSTILE, shown = %HOSTILE).entered();
                info!(field = HOSTILE, shown = %HOSTILE, debug = ?HOSTILE, "said {HOSTILE}");
            });
            assert_eq!(said.lines().count(), 1, "{said:?}");
            assert!(said.ends_with('\n'));
            let hostile = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!said.contains(hostile), "{format:?}: {said:?}");
            assert!(said.contains("forged"), "{said:?}");
        }
    }

    #[test]
    fn json_says_exactly_what_was_said() {
        let said = logged(LogFormat::Json, || info!("{HOSTILE} ñ 😀"));
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["fields"]["message"], format!("{HOSTILE} ñ 😀"));
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        let said = logged(LogFormat::Journal, || {
            let _span = info_span!("session", id = 7).entered();
            error!("a");
            warn!(n = 1, "b");
            info!("c");
        });
        assert_eq!(said, "<3>session{id=7}: a\n<4>session{id=7}: b n=1\n<6>session{id=7}: c\n");
    }
}
