//! The transcript blob, read: calls, one after another, each tensor as compressed byte planes. `encode.rs` writes it.
//!
//! A tensor's bytes are regrouped into planes (all lowest bytes, then all second bytes, ...) and compressed with zlib: high
//! bytes of neighbouring integers resemble each other, low bytes do not.

use std::io::Read;

use flate2::read::ZlibDecoder;

use super::BundleError;
use crate::limits::{MAX_CALL_MODULES, MAX_CALLS};
use crate::manifest::Manifest;
use crate::packing::{activations_from_bytes, unpack_deltas};
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

    let entries = rows * shape.d_in();
    let bytes = decompress(blob, entries, 2, number)?;
    let activations = activations_from_bytes(&bytes, entries)
        .ok_or_else(|| transcript_error(number, "an activation of -2^15".into()))?;
    let deltas = shape
        .modules()
        .iter()
        .map(|&module| {
            let [width] = read_array(blob)?;
            if !(1..=8).contains(&width) {
                return Err(transcript_error(number, format!("deltas of {width} bytes, expected 1 to 8")));
            }
            let entries = rows * manifest.modules()[module].shape().d_out();
            let bytes = decompress(blob, entries, usize::from(width), number)?;
            let values = unpack_deltas(width, &bytes, entries)
                .map_err(|error| transcript_error(number, error.to_string()))?;
            Ok(Delta { module, values })
        })
        .collect::<Result<_, BundleError>>()?;
    Ok(Call { rows, activations, deltas })
}

/// Reads one compressed tensor of exactly `entries` entries of `width` bytes. Memory grows with what is really there, not
/// with what is claimed.
fn decompress(blob: &mut impl Read, entries: usize, width: usize, call: u64) -> Result<Vec<u8>, BundleError> {
    let length = u64::from_le_bytes(read_array(blob)?);
    let expected = entries * width;
    let mut decoder = ZlibDecoder::new(blob.take(length));
    let mut planes = Vec::new();
    (&mut decoder)
        .take(expected as u64 + 1)
        .read_to_end(&mut planes)
        .map_err(|error| transcript_error(call, format!("a tensor does not decompress: {error}")))?;
    if planes.len() != expected || decoder.total_in() != length || decoder.into_inner().limit() != 0 {
        return Err(transcript_error(
            call,
            format!("a tensor is not {expected} bytes in {length} compressed ones"),
        ));
    }
    let mut bytes = vec![0; expected];
    for (plane, values) in planes.chunks_exact(entries.max(1)).enumerate() {
        for (i, &value) in values.iter().enumerate() {
            bytes[i * width + plane] = value;
        }
    }
    Ok(bytes)
}

fn read_array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], BundleError> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn transcript_error(call: u64, what: String) -> BundleError {
    BundleError::Transcript { call, what }
}
