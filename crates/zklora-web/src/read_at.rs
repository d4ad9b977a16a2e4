//! A file that is read in pieces.

use std::io::{self, Read, Seek, SeekFrom};

/// Bytes that somebody else holds.
pub trait ReadAt {
    /// How many there are.
    fn length(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on, all of which are below [`Self::length`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let bytes = rest.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Reads such bytes from front to back.
#[derive(Debug)]
pub(crate) struct Reader<T> {
    source: T,
    at: u64,
}

impl<T: ReadAt> Reader<T> {
    pub(crate) fn new(source: T) -> Self {
        Self { source, at: 0 }
    }
}

impl<T: ReadAt> Read for Reader<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.length().saturating_sub(self.at);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if count > 0 {
            self.source.read_at(self.at, &mut buffer[..count])?;
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl<T: ReadAt> Seek for Reader<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.source.length().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there_and_no_more() {
        let mut reader = Reader::new(&b"abcdef"[..]);
        let mut four = [0; 4];
        assert_eq!((reader.read(&mut four).unwrap(), &four), (4, b"abcd"));
        assert_eq!((reader.read(&mut four).unwrap(), &four[..2]), (2, &b"ef"[..]));
        assert_eq!(reader.read(&mut four).unwrap(), 0);

        assert_eq!(reader.seek(SeekFrom::End(-2)).unwrap(), 4);
        assert_eq!(reader.seek(SeekFrom::Current(-3)).unwrap(), 1);
        assert_eq!((reader.read(&mut four).unwrap(), &four), (4, b"bcde"));
        assert_eq!(reader.seek(SeekFrom::Start(u64::MAX)).unwrap(), u64::MAX);
        assert_eq!(reader.read(&mut four).unwrap(), 0);
        assert!(reader.seek(SeekFrom::Current(1)).is_err());
        assert!(reader.seek(SeekFrom::End(-7)).is_err());
        assert_eq!(reader.stream_position().unwrap(), u64::MAX, "where it was");
    }
}
