//! The transcript blob, written. What is in it is described at `transcript.rs`, which reads it.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use rayon::prelude::*;

use crate::packing::{activations_to_bytes, pack_deltas};
use crate::transcript::Call;

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
