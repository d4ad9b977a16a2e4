//! The transcript blob, read: calls, one after another, each tensor as compressed byte planes. `encode.rs` writes it.
//!
//! A tensor's bytes are regrouped into planes (all lowest bytes, then all second bytes, ...) and compressed with zlib: high
//! bytes of neighbouring integers resemble each other, low bytes do not.

use std::io::Read;
use std::ops::{BitOr, Shl, Shr};

use flate2::read::ZlibDecoder;

use super::BundleError;
use crate::limits::{MAX_CALL_MODULES, MAX_CALLS};
use crate::manifest::Manifest;
use crate::packing::check_width;
use crate::transcript::{Call, CallShape, Delta};

/// Decodes the calls one by one and hands each to `visit`, so that memory holds one call at a time.
pub(super) fn decode<E: From<BundleError>>(
    mut blob: impl Read,
    manifest: &Manifest,
    mut visit: impl FnMut(Call) -> Result<(), E>,
) -> Result<(), E> {
    let calls = u64::from_le_bytes(read_array(&mut blob)?);
    if calls > MAX_CALLS {
        return Err(transcript_error(0, format!("{calls} calls, expected at most {MAX_CALLS}")).into());
    }
    for number in 0..calls {
        visit(decode_call(&mut blob, manifest, number)?)?;
    }
    if blob.read(&mut [0]).map_err(BundleError::from)? != 0 {
        return Err(transcript_error(calls, "bytes after the last call".into()).into());
    }
    Ok(())
}

fn decode_call(blob: &mut impl Read, manifest: &Manifest, number: u64) -> Result<Call, BundleError> {
    let rows = u32::from_le_bytes(read_array(blob)?) as usize;
    let count = u32::from_le_bytes(read_array(blob)?) as usize;
    if count > MAX_CALL_MODULES {
        return Err(transcript_error(
            number,
            format!("{count} modules, expected at most {MAX_CALL_MODULES}"),
        ));
    }
    let modules = (0..count)
        .map(|_| Ok(u32::from_le_bytes(read_array(blob)?) as usize))
        .collect::<Result<Vec<_>, BundleError>>()?;
    let shape =
        CallShape::new(manifest, rows, modules).map_err(|error| BundleError::Call { call: number, error })?;

    // The shape bounds each product far below 2^32.
    let activations = read_tensor::<i16>(blob, rows * shape.d_in(), 2, number)?;
    if activations.contains(&i16::MIN) {
        return Err(transcript_error(number, "an activation of -2^15".into()));
    }
    let deltas = shape
        .modules()
        .iter()
        .map(|&module| {
            let [width] = read_array(blob)?;
            if !(1..=8).contains(&width) {
                return Err(transcript_error(number, format!("deltas of {width} bytes, expected 1 to 8")));
            }
            let entries = rows * manifest.modules()[module].shape().d_out();
            let values = read_tensor::<i64>(blob, entries, width, number)?;
            check_width(width, &values).map_err(|error| transcript_error(number, error.to_string()))?;
            Ok(Delta { module, values })
        })
        .collect::<Result<_, BundleError>>()?;
    Ok(Call { rows, activations, deltas })
}

/// Reads one compressed tensor of exactly `entries` entries of `width` bytes, at most as many as a `T` has. Memory grows with what
/// is really there, not with what is claimed: the integers get their place when their lowest bytes have come. There is never
/// more than they take, and a byte an entry.
fn read_tensor<T: Entry>(
    blob: &mut impl Read,
    entries: usize,
    width: u8,
    call: u64,
) -> Result<Vec<T>, BundleError> {
    let length = u64::from_le_bytes(read_array(blob)?);
    let mut decoder = ZlibDecoder::new(blob.take(length));
    let corrupt = |error| transcript_error(call, format!("a tensor does not decompress: {error}"));
    let mut lowest = Vec::new();
    (&mut decoder).take(entries as u64).read_to_end(&mut lowest).map_err(corrupt)?;
    let mut whole = lowest.len() == entries;
    let mut values: Vec<T> = lowest.iter().map(|&byte| T::from(byte)).collect();
    drop(lowest);
    let mut piece = [0; 1 << 14];
    for plane in 1..u32::from(width) {
        for values in values.chunks_mut(piece.len()) {
            let bytes = &mut piece[..values.len()];
            whole = whole && fill(&mut decoder, bytes).map_err(corrupt)?;
            for (value, &byte) in values.iter_mut().zip(&*bytes) {
                *value = *value | (T::from(byte) << (8 * plane));
            }
        }
    }
    let more = decoder.read(&mut [0]).map_err(corrupt)? > 0;
    if !whole || more || decoder.total_in() != length || decoder.into_inner().limit() != 0 {
        // At most MAX_TENSOR_ENTRIES times 8.
        let expected = entries * usize::from(width);
        let what = format!("a tensor is not {expected} bytes in {length} compressed ones");
        return Err(transcript_error(call, what));
    }
    for value in &mut values {
        *value = value.extend(width);
    }
    Ok(values)
}

/// Fills the buffer; false if there are fewer bytes.
fn fill(reader: &mut impl Read, mut buffer: &mut [u8]) -> std::io::Result<bool> {
    while !buffer.is_empty() {
        match reader.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// An integer that is put together from its bytes.
trait Entry: Copy + From<u8> + BitOr<Output = Self> + Shl<u32, Output = Self> + Shr<u32, Output = Self> {
    /// The entry of which these are the lowest `width` bytes.
    fn extend(self, width: u8) -> Self {
        // Shifting up and arithmetically down again extends the sign.
        let shift = 8 * (size_of::<Self>() as u32 - u32::from(width));
        self << shift >> shift
    }
}

impl Entry for i16 {}
impl Entry for i64 {}

fn read_array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], BundleError> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn transcript_error(call: u64, what: String) -> BundleError {
    BundleError::Transcript { call, what }
}
