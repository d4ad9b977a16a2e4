//! Numbers, names and text from elsewhere, as the page writes them.

use std::path::Path;

use maud::{Markup, Render, html};
use zklora_proto::Escaped;

use crate::report::{BundleReport, Standing};

/// Text that somebody else wrote.
pub(super) struct Foreign<'a>(pub(super) &'a str);

impl Render for Foreign<'_> {
    fn render(&self) -> Markup {
        html! { bdi { (plain(self.0)) } }
    }
}

/// The same where no `bdi` may stand.
pub(super) fn plain(text: &str) -> String {
    Escaped(text).to_string()
}

pub(super) fn file_name(bundle: &BundleReport) -> &str {
    Path::new(&bundle.path).file_name().and_then(|name| name.to_str()).unwrap_or(&bundle.path)
}

pub(super) fn badge(bundle: &BundleReport) -> Markup {
    let (class, sign) = match bundle.verdict {
        Standing::Valid => ("good", "\u{2713}"),
        Standing::NotPinned => ("unpinned", "!"),
        Standing::Refused | Standing::Unreadable | Standing::Invalid => ("bad", "\u{2717}"),
    };
    html! { span class=(format!("badge {class}")) { span aria-hidden="true" { (sign) } " " (bundle.verdict()) } }
}

pub(super) fn percent(share: f64) -> String {
    match share {
        0.0 => "0 %".into(),
        _ if share < 0.0005 => "< 0.1 %".into(),
        _ => format!("{:.1} %", 100.0 * share),
    }
}

pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(super) fn counted(n: usize, what: &str) -> String {
    format!("{} {what}{}", number(n as u64), if n == 1 { "" } else { "s" })
}

pub(super) fn bytes(n: f64) -> String {
    match n {
        _ if n < 1024.0 => format!("{n:.0} bytes"),
        _ if n < 1024.0 * 1024.0 => format!("{:.1} KiB", n / 1024.0),
        _ => format!("{:.1} MiB", n / (1024.0 * 1024.0)),
    }
}

pub(super) fn time(seconds: f64) -> String {
    match seconds {
        _ if seconds <= 0.0 => "0 ms".into(),
        _ if seconds < 0.001 => "< 1 ms".into(),
        _ if seconds < 1.0 => format!("{:.0} ms", 1000.0 * seconds),
        _ if seconds < 120.0 => format!("{seconds:.2} s"),
        _ => format!("{:.1} min", seconds / 60.0),
    }
}

pub(super) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
