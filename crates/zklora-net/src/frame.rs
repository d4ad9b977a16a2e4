//! Messages on a stream: a length-prefixed JSON header, then a length-prefixed payload, both bounded.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zklora_proto::limits::MAX_MESSAGE_HEADER_BYTES;
use zklora_proto::message::parse_header;

/// Bytes of a payload that are held at once before it is known that more arrive, and that are copied so as to be sent at once.
const AT_ONCE: usize = 64 << 10;

/// Why a frame was not sent or not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A header that claims too much.
    #[error("the frame claims a header of {claimed} bytes, expected at most {MAX_MESSAGE_HEADER_BYTES}")]
    HeaderTooLarge {
        /// What it claims.
        claimed: u64,
    },
    /// A payload that claims too much.
    #[error("the frame claims a payload of {claimed} bytes, expected at most {max}")]
    PayloadTooLarge {
        /// What it claims.
        claimed: u64,
        /// What is accepted here.
        max: u64,
    },
    /// A header that is no such message.
    #[error("the frame's header is no message of this protocol: {0}")]
    Header(String),
    /// The peer stopped in the middle.
    #[error("the peer hung up in the middle of a frame")]
    CutOff,
    /// The peer does not answer.
    #[error("the peer has not answered within {0:?}")]
    NoAnswer(std::time::Duration),
    /// The peer closed the connection, and said why.
    #[error("the peer closed the connection: {reason}")]
    Closed {
        /// Its words.
        reason: String,
        /// It would close another one, too.
        refused: bool,
    },
    /// The peer went on after the end.
    #[error("the peer sent bytes after the end of the frame")]
    Excess,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(std::io::Error),
}

/// Sends a message with its payload.
pub async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    header: &impl Serialize,
    payload: &[u8],
) -> Result<(), FrameError> {
    let header = serde_json::to_vec(header).map_err(|e| FrameError::Header(e.to_string()))?;
    if header.len() > MAX_MESSAGE_HEADER_BYTES {
        return Err(FrameError::HeaderTooLarge { claimed: header.len() as u64 });
    }
    let mut prefix = (header.len() as u32).to_le_bytes().to_vec();
    prefix.extend_from_slice(&header);
    prefix.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    // A short payload goes out together with its header: one packet, and one turn of who sends it, less.
    let (together, rest) = payload.split_at(payload.len().min(AT_ONCE));
    prefix.extend_from_slice(together);
    stream.write_all(&prefix).await.map_err(FrameError::Io)?;
    stream.write_all(rest).await.map_err(FrameError::Io)?;
    stream.flush().await.map_err(FrameError::Io)
}

/// Receives the one message of a stream, with a payload of at most `max_payload` bytes.
pub async fn read_frame<T: Serialize + DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    max_payload: u64,
) -> Result<(T, Vec<u8>), FrameError> {
    let header = read_header(stream).await?;
    Ok((header, read_payload(stream, max_payload).await?))
}

/// Receives the header of a message, so that it can be refused before its payload is read.
pub async fn read_header<T: Serialize + DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let length = stream.read_u32_le().await.map_err(cut_off)?;
    if length as usize > MAX_MESSAGE_HEADER_BYTES {
        return Err(FrameError::HeaderTooLarge { claimed: length.into() });
    }
    let mut header = vec![0; length as usize];
    stream.read_exact(&mut header).await.map_err(cut_off)?;
    parse_header(&header).map_err(|e| FrameError::Header(e.to_string()))
}

/// Receives what follows the header: a payload of at most `max_payload` bytes and the end of the stream. Memory grows with
/// what arrives, not with what is claimed.
pub async fn read_payload(
    stream: &mut (impl AsyncRead + Unpin),
    max_payload: u64,
) -> Result<Vec<u8>, FrameError> {
    let mut payload = Arriving::begin(stream, max_payload).await?;
    while payload.more().await?.is_some() {
        payload.take().await?;
    }
    payload.end().await
}

/// A payload that is received piece by piece, so that there can be room for each before it is read.
#[derive(Debug)]
pub struct Arriving<'a, R> {
    stream: &'a mut R,
    claimed: u64,
    payload: Vec<u8>,
    /// The first byte of the next piece tells that there is somebody who sends it.
    first: u8,
}

impl<'a, R: AsyncRead + Unpin> Arriving<'a, R> {
    /// Reads how long the payload is to be: at most `max_payload` bytes.
    pub async fn begin(stream: &'a mut R, max_payload: u64) -> Result<Self, FrameError> {
        let claimed = stream.read_u64_le().await.map_err(cut_off)?;
        if claimed > max_payload {
            return Err(FrameError::PayloadTooLarge { claimed, max: max_payload });
        }
        Ok(Self { stream, claimed, payload: Vec::new(), first: 0 })
    }

    /// Waits for the next piece; gives the most bytes that it takes. `None` once there is none.
    pub async fn more(&mut self) -> Result<Option<usize>, FrameError> {
        let piece = self.piece();
        if piece == 0 {
            return Ok(None);
        }
        self.first = self.stream.read_u8().await.map_err(cut_off)?;
        Ok(Some(piece))
    }

    /// Reads the piece that was waited for.
    pub async fn take(&mut self) -> Result<(), FrameError> {
        let piece = self.piece();
        self.payload.reserve(piece);
        self.payload.push(self.first);
        let rest = (piece as u64).saturating_sub(1);
        let read = (&mut *self.stream).take(rest).read_to_end(&mut self.payload).await.map_err(cut_off)?;
        if (read as u64) < rest { Err(FrameError::CutOff) } else { Ok(()) }
    }

    /// The payload, if nothing follows it.
    pub async fn end(self) -> Result<Vec<u8>, FrameError> {
        match self.stream.read(&mut [0]).await.map_err(FrameError::Io)? {
            0 => Ok(self.payload),
            _ => Err(FrameError::Excess),
        }
    }

    fn piece(&self) -> usize {
        (self.claimed - self.payload.len() as u64).min(AT_ONCE as u64) as usize
    }
}

fn cut_off(error: std::io::Error) -> FrameError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => FrameError::CutOff,
        _ => FrameError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use zklora_proto::message::Response;

    use super::*;

    async fn read(bytes: &[u8]) -> Result<(Response, Vec<u8>), FrameError> {
        read_frame(&mut &bytes[..], 8).await
    }

    #[tokio::test]
    async fn frames_round_trip_and_hostile_ones_are_refused() {
        let mut bytes = Vec::new();
        let header = Response::Accepted;
        write_frame(&mut bytes, &header, b"payload").await.unwrap();
        assert_eq!(read(&bytes).await.unwrap(), (header, b"payload".to_vec()));

        for end in 0..bytes.len() {
            assert!(matches!(read(&bytes[..end]).await, Err(FrameError::CutOff)), "{end}");
        }
        let mut excess = bytes.clone();
        excess.push(0);
        assert!(matches!(read(&excess).await, Err(FrameError::Excess)));

        let mut huge_header = bytes.clone();
        huge_header[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read(&huge_header).await, Err(FrameError::HeaderTooLarge { .. })));

        let mut huge_payload = bytes.clone();
        let length = bytes.len() - b"payload".len();
        huge_payload[length - 8..length].copy_from_slice(&(1u64 << 40).to_le_bytes());
        let error = read(&huge_payload).await.unwrap_err().to_string();
        assert!(error.contains("claims a payload of 1099511627776 bytes"), "{error}");

        let mut no_json = bytes.clone();
        no_json[4] = b'[';
        assert!(matches!(read(&no_json).await, Err(FrameError::Header(_))));
    }
}
