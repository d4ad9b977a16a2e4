//! The transcript blob: calls, one after another, each tensor as compressed byte planes.
//!
//! A tensor's bytes are regrouped into planes (all lowest bytes, then all second bytes, ...) and compressed with zlib: high
//! bytes of neighbouring integers resemble each other, low bytes do not.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use rayon::prelude::*;

use super::BundleError;
use crate::limits::{MAX_CALL_MODULES, MAX_CALLS};
use crate::manifest::Manifest;
use crate::packing::{activations_from_bytes, activations_to_bytes, pack_deltas, unpack_deltas};
use crate::transcript::{Call, CallShape, Delta};

/// Encodes all calls of a session.
pub(super) fn encode(calls: &[Call]) -> io::Result<Vec<u8>> {
    let encoded: Vec<Vec<u8>> = calls.par_iter().map(encode_call).collect::<io::Result<_>>()?;
    let mut bytes = (calls.len() as u64).to_le_bytes().to_vec();
    for call in encoded {
        bytes.extend_from_slice(&call);
    }
    Ok(bytes)
}

fn encode_call(call: &Call) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(call.rows as u32).to_le_bytes());
    bytes.extend_from_slice(&(call.deltas.len() as u32).to_le_bytes());
    for delta in &call.deltas {
        bytes.extend_from_slice(&(delta.module as u32).to_le_bytes());
    }
    compress(&mut bytes, &activations_to_bytes(&call.activations), 2)?;
    for delta in &call.deltas {
        let packed = pack_deltas(&delta.values);
        bytes.push(packed.width);
        compress(&mut bytes, &packed.bytes, usize::from(packed.width))?;
    }
    Ok(bytes)
}

fn compress(out: &mut Vec<u8>, entries: &[u8], width: usize) -> io::Result<()> {
    let count = entries.len() / width;
    let mut planes = Vec::with_capacity(entries.len());
    for plane in 0..width {
        planes.extend((0..count).map(|i| entries[i * width + plane]));
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&planes)?;
    let compressed = encoder.finish()?;
    out.extend_from_slice(&(compressed.len() as u64).to_le_bytes());
    out.extend_from_slice(&compressed);
    Ok(())
}

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
