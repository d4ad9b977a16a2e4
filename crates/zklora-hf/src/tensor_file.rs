use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use zeroize::Zeroizing;

use crate::{Error, read};

/// An open safetensors file whose header has been checked against the size of the file. Tensors are read one at a time,
/// so that memory is bounded by the largest of them.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Where the tensors' data begins, in bytes from the start of the file.
    data_start: u64,
    header: Metadata,
}

impl TensorFile {
    /// Reads the header. `hint` says what the file is for, should it be missing.
    pub(crate) fn open(path: &Path, hint: &'static str) -> Result<Self, Error> {
        let (mut file, length) = read::open(path, hint)?;
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix)
            .map_err(|_| Error::safetensors(path, "it is shorter than the 8 bytes of its header length"))?;
        if prefix == *b"version " {
            let mut begin = prefix.to_vec();
            (&file).take(64).read_to_end(&mut begin).map_err(|error| Error::io(path, error))?;
            if read::is_lfs_pointer(&begin) {
                return Err(Error::LfsPointer { path: path.to_owned() });
            }
        }
        let header_length = u64::from_le_bytes(prefix);
        if header_length > MAX_HEADER_BYTES {
            return Err(Error::safetensors(
                path,
                format!(
                    "its header would have {header_length} bytes, at most {MAX_HEADER_BYTES} are accepted"
                ),
            ));
        }
        let data_start = prefix.len() as u64 + header_length;
        let Some(data_length) = length.checked_sub(data_start) else {
            return Err(Error::safetensors(path, "it ends within its header"));
        };
        let mut text = Vec::new();
        (&file).take(header_length).read_to_end(&mut text).map_err(|error| Error::io(path, error))?;
        // Checks that the tensors lie one behind the other and that each has the bytes its shape and type ask for.
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|error| Error::safetensors(path, error))?;
        if header.data_len() as u64 != data_length {
            return Err(Error::safetensors(
                path,
                format!(
                    "its header describes {} bytes of tensors, {data_length} are there (an incomplete download?)",
                    header.data_len()
                ),
            ));
        }
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), data_start, header })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, in the order of their data.
    pub(crate) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Checks that there is a tensor `name` of this shape, in a type that can be widened to float32.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(self.tensor_error(name, format!("shape {shape:?}"), format!("{:?}", info.shape)));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(self.tensor_error(name, "F32, F16 or BF16", info.dtype.to_string()));
        }
        Ok(())
    }

    pub(crate) fn shape(&self, name: &str) -> Result<&[usize], Error> {
        Ok(&self.info(name)?.shape)
    }

    /// Hands the tensor's values to `each` as float32 (float64 is rounded to nearest, as PyTorch does), in row-major
    /// order, a bounded number at a time. Refuses values that are not finite.
    pub(crate) fn for_each_chunk(&self, name: &str, mut each: impl FnMut(&[f32])) -> Result<(), Error> {
        let info = self.info(name)?;
        let (width, widen): (usize, fn(&[u8]) -> f32) = match info.dtype {
            // PEFT copies adapters stored as float64 into layers of float32. [`Self::check`] refuses it in base models.
            Dtype::F64 => {
                (8, |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
            }
            Dtype::F32 => (4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Dtype::F16 => (2, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
            Dtype::BF16 => (2, |b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            other => return Err(self.tensor_error(name, "F64, F32, F16 or BF16", other.to_string())),
        };
        let mut left = info.data_offsets.1 - info.data_offsets.0;
        // These may be an adapter's weights, so they are not left behind in freed memory.
        let mut bytes = Zeroizing::new(vec![0; left.min(CHUNK_BYTES)]);
        let mut values = Zeroizing::new(Vec::with_capacity(bytes.len() / width));

        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + info.data_offsets.0 as u64))
            .map_err(|error| Error::io(&self.path, error))?;
        while left > 0 {
            // A multiple of every width: CHUNK_BYTES is one, and so is what Metadata has checked.
            let chunk = &mut bytes[..left.min(CHUNK_BYTES)];
            file.read_exact(chunk).map_err(|error| Error::io(&self.path, error))?;
            values.clear();
            values.extend(chunk.chunks_exact(width).map(widen));
            if !values.iter().all(|value| value.is_finite()) {
                return Err(self.tensor_error(name, "finite values", "a NaN or an infinity"));
            }
            each(&values);
            left -= chunk.len();
        }
        Ok(())
    }

    /// All values of a tensor as float32, in row-major order.
    pub(crate) fn read(&self, name: &str) -> Result<Zeroizing<Vec<f32>>, Error> {
        // Metadata has compared this product with the size of the file.
        let mut values = Zeroizing::new(Vec::with_capacity(self.info(name)?.shape.iter().product()));
        self.for_each_chunk(name, |chunk| values.extend_from_slice(chunk))?;
        Ok(values)
    }

    /// A digest of a tensor's values as float32, whatever type they are stored in.
    pub(crate) fn digest_of_values(&self, name: &str) -> Result<blake3::Hash, Error> {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = Vec::new();
        self.for_each_chunk(name, |values| {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        })?;
        Ok(hasher.finalize())
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.header.info(name).ok_or_else(|| self.tensor_error(name, "a tensor of this name", "none"))
    }

    fn tensor_error(&self, name: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Tensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

impl fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorFile")
            .field("path", &self.path)
            .field("tensors", &self.header.tensors().len())
            .finish_non_exhaustive()
    }
}

/// GPT-2 XL's header has 60 KB; 8 MiB describe some 80,000 tensors.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// How much of a tensor is in memory at a time.
const CHUNK_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestTensor, write_tensors};

    #[test]
    fn other_precisions_are_converted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let values = [0.5f32, -2.0, 0.0, 1.5];
        let f16_bytes = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes());
        let f64_bytes = values.iter().flat_map(|&v| (f64::from(v) * (1.0 + 1e-9)).to_le_bytes());
        let bf16_bytes = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes());
        write_tensors(
            &path,
            &[
                TestTensor::f32("single", &[2, 2], &values),
                TestTensor::raw("double", Dtype::F64, &[4], f64_bytes.collect()),
                TestTensor::raw("overflow", Dtype::F64, &[1], 1e300f64.to_le_bytes().to_vec()),
                TestTensor::raw("half", Dtype::F16, &[4], f16_bytes.collect()),
                TestTensor::raw("brain", Dtype::BF16, &[4, 1], bf16_bytes.collect()),
            ],
        );
        let file = TensorFile::open(&path, "").unwrap();
        for name in ["double", "single", "half", "brain"] {
            assert_eq!(*file.read(name).unwrap(), values, "{name}");
        }
        assert!(file.read("overflow").unwrap_err().to_string().contains("expected finite values"));
    }

    #[test]
    fn tensors_longer_than_a_chunk_are_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let values: Vec<f32> = (0..CHUNK_BYTES / 4 * 2 + 3).map(|i| i as f32).collect();
        write_tensors(&path, &[TestTensor::f32("long", &[values.len()], &values)]);
        assert_eq!(*TensorFile::open(&path, "").unwrap().read("long").unwrap(), values);
    }

    #[test]
    fn hostile_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let with_header = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.resize(bytes.len() + data, 0);
            bytes
        };
        for (bytes, why) in [
            (vec![], "shorter than the 8 bytes"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n".to_vec(),
                "is a pointer of Git LFS",
            ),
            (b"version 2 of something".to_vec(), "its header would have"),
            (u64::MAX.to_le_bytes().to_vec(), "its header would have"),
            (1000u64.to_le_bytes().to_vec(), "ends within its header"),
            (with_header("{", 0), "EOF"),
            (
                with_header(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 12),
                "incomplete download",
            ),
            (with_header(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 20), "20 are there"),
            (with_header(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[4,20]}}"#, 20), "invalid offset"),
            (with_header(r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#, 16), "invalid shape"),
            (
                with_header(
                    r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
                    0,
                ),
                "overflow",
            ),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let message = TensorFile::open(&path, "").unwrap_err().to_string();
            assert!(message.contains(why), "{message:?} should contain {why:?}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        write_tensors(&path, &[TestTensor::f32("w", &[2], &[1.0, f32::NAN])]);
        let message = TensorFile::open(&path, "").unwrap().read("w").unwrap_err().to_string();
        assert!(message.contains("tensor w: expected finite values"), "{message}");
    }
}
