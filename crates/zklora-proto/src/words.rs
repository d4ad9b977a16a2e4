//! Amounts, for people.

use std::fmt;

/// An amount of bytes as it is said to people: exact below 1 KiB, otherwise in the unit that fits and rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} byte{}", self.0, if self.0 == 1 { "" } else { "s" });
        }
        let mut amount = self.0 as f64 / 1024.0;
        let mut unit = 0;
        // What would be rounded to 1024 of a unit is 1 of the next.
        while amount >= 1023.95 && unit + 1 < UNITS.len() {
            amount /= 1024.0;
            unit += 1;
        }
        // A limit is mostly a whole number of units, and said as one. What is a little more is not to look the same.
        let is_shown = |digits: &usize| (amount.fract() * 10f64.powi(*digits as i32)).round() > 0.0;
        match (amount.fract(), (1..4).find(is_shown)) {
            (0.0, _) => write!(f, "{amount:.0} {}", UNITS[unit]),
            (_, Some(digits)) => write!(f, "{amount:.digits$} {}", UNITS[unit]),
            (_, None) => write!(f, "{} bytes", self.0),
        }
    }
}

/// So many of something, whose name takes the usual ending if it is not one: `1 row`, `0 rows`, `2 batches`.
pub fn counted(count: impl TryInto<u64>, what: &str) -> String {
    // No count here is beyond 64 bits.
    let count = count.try_into().unwrap_or(u64::MAX);
    let ending = match count {
        1 => "",
        _ if what.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{count} {what}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count: usize| counted(count, "row")), ["0 rows", "1 row", "2 rows"]);
        assert_eq!(counted(2u64, "batch"), "2 batches");
    }

    #[test]
    fn amounts_have_a_unit_that_fits() {
        for (bytes, said) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (542_486, "529.8 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (4 << 20, "4 MiB"),
            ((4 << 20) + 1, "4194305 bytes"),
            (1_100_000, "1.05 MiB"),
            (44_876_299, "42.8 MiB"),
            (1 << 40, "1 TiB"),
            (1_264_856_468_769_636_745, "1.1 EiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), said);
        }
    }
}
