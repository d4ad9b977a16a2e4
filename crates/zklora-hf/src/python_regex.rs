//! Python's regular expressions, as far as those of the `regex` crate mean the same.
//!
//! PEFT's configurations name modules by expressions of Python's `re`. The two languages look alike, but some
//! expressions that both accept mean different things (`a++`, `[a[b]]`, `\<`), and some are Python's alone
//! (`(?=a)`, `\1`). Only what means the same is compiled. Names of modules are ASCII, so bytes are matched: that
//! keeps `\w` and `.` small.

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// Whether `pattern` is an expression that means the same to Python as to [`compile`].
pub(crate) fn is_understood(pattern: &str) -> bool {
    // Compiled alone, too: as a part of another expression, unbalanced parentheses might seem balanced.
    means_the_same(pattern.as_bytes()) && compile(pattern).is_some()
}

/// Compiles an expression made of understood parts, or gives `None` if it would be unreasonably large.
pub(crate) fn compile(expression: &str) -> Option<Regex> {
    RegexBuilder::new(expression).unicode(false).size_limit(MAX_BYTES).build().ok()
}

/// Compiles several expressions into one that says which of them match, or gives `None` if it would be too large.
pub(crate) fn compile_set(expressions: impl Iterator<Item = String>) -> Option<RegexSet> {
    RegexSetBuilder::new(expressions).unicode(false).size_limit(MAX_SET_BYTES).build().ok()
}

/// Looks for what Rust and Python read differently, or Rust does not read at all.
fn means_the_same(mut rest: &[u8]) -> bool {
    if !rest.is_ascii() {
        return false;
    }
    let mut in_class = false;
    while let Some((&byte, after)) = rest.split_first() {
        let next = after.first().copied();
        rest = after;
        match byte {
            b'\\' => {
                let Some(escaped) = next else { return false };
                let same = match escaped {
                    b'd' | b'D' | b'w' | b'W' | b's' | b'S' => true,
                    b'b' | b'B' => !in_class && after.get(1) != Some(&b'{'),
                    b'<' | b'>' => false,
                    other => other.is_ascii_punctuation(),
                };
                if !same {
                    return false;
                }
                rest = &after[1..];
            }
            // Rust has sets within sets and operations on sets.
            b'[' if in_class => return false,
            b'&' | b'-' | b'~' | b'|' if in_class && next == Some(byte) => return false,
            b']' if in_class => in_class = false,
            b'[' => {
                if after.starts_with(b"]") || after.starts_with(b"^]") {
                    return false;
                }
                in_class = true;
            }
            // Of the many extensions, groups that capture nothing and named ones.
            b'(' if !in_class && next == Some(b'?') => match after {
                [b'?', b':', ..] => rest = &after[2..],
                [b'?', b'P', b'<', ..] => rest = &after[3..],
                _ => return false,
            },
            b'*' | b'+' | b'?' | b'}' if !in_class => {
                if next == Some(b'?') {
                    rest = &after[1..];
                }
                // To Python, `a++` does not give back what it took; other pairs of quantifiers are errors.
                if rest.first().is_some_and(|after| b"*+?{".contains(after)) {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

const MAX_BYTES: usize = 1 << 16;
const MAX_SET_BYTES: usize = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_expressions_are_understood() {
        for pattern in [
            "c_attn",
            "q_proj|v_proj",
            r".*\.(q_proj|v_proj)",
            r"model\.layers\.(1[2-9]|2\d)\.self_attn\.[qkvo]_proj",
            r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp))",
            r"^transformer\.h\.[^0-2]\.\w+\.c_\w{2,4}$",
            r"[\w.\-]+?_proj",
            "(?P<layer>h)",
        ] {
            assert!(is_understood(pattern), "{pattern}");
        }
    }

    #[test]
    fn what_python_reads_otherwise_is_not() {
        for pattern in [
            // Both accept these and mean different things.
            "a++",
            ".*+b",
            "a{2}+",
            "[a[b]]",
            "[a&&b]",
            "[a--b]",
            r"\<c",
            r"\b{start}c",
            // Rust accepts these, Python does not, or the reverse.
            r"\pL",
            r"\x{61}",
            "(?=x)",
            "(?!x)",
            r"(a)\1",
            "(?i)a",
            "(?>a)",
            "a**",
            "a{",
            // Neither accepts these.
            "(",
            "a)|(b",
            "[]",
            "a\\",
            "[a",
            // Too large, or not the name of a module.
            "(a{1000}){1000}",
            "é",
        ] {
            assert!(!is_understood(pattern), "{pattern}");
        }
    }
}
