//! Text that came from a file, made safe for a terminal.

use std::fmt;

/// Shows a text without anything that a terminal would act on or that would show as something else: control characters,
/// escape sequences and marks that reverse the direction come out as `\u{...}`. Cut after 2,000.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, c) in self.0.chars().enumerate() {
            if position == MAX_CHARS {
                return f.write_str("...");
            }
            match c {
                // Debug escapes these for the sake of quoting alone.
                '"' | '\'' | '\\' => write!(f, "{c}")?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        Ok(())
    }
}

/// Longer than any message of this program, shorter than what a hostile file can put into one.
const MAX_CHARS: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(Escaped("a \"b\" X·A·B ñ\\").to_string(), "a \"b\" X·A·B ñ\\");
        assert_eq!(
            Escaped("\x1b[2J\r\n\u{9b}1m\u{202e}x").to_string(),
            "\\u{1b}[2J\\r\\n\\u{9b}1m\\u{202e}x"
        );
        assert_eq!(Escaped(&"x".repeat(5000)).to_string().len(), MAX_CHARS + 3);
    }
}
