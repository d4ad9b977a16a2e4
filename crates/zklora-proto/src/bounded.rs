//! Bounded reading.

use std::io::{self, Read};

/// Reads to the end, or `None` if there are more than `max` bytes.
pub fn read_bounded(reader: impl Read, max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    reader.take(max + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= max).then_some(content))
}
