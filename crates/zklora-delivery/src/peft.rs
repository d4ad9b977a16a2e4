//! The adapter as a folder that PEFT reads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use safetensors::tensor::{Dtype, View};
use serde_json::json;
use zeroize::Zeroizing;
use zklora_circuit::commitment::Opening;
use zklora_proto::limits::MAX_MANIFEST_BYTES;
use zklora_proto::{ModuleEntry, SignedManifest, partial, read_bounded, secret_file};

use crate::Delivery;

/// Why a folder is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeftError {
    /// PEFT has no such module.
    #[error(
        "module {0}: its name is not one of a PyTorch module, expected letters, digits and underscores, with dots between them"
    )]
    Name(String),
    /// A scale with which float32 has no weights.
    #[error("module {module}: with the scale {scale:e} its weights are no ordinary numbers in float32")]
    Scale {
        /// The module.
        module: String,
        /// Its scale.
        scale: f64,
    },
    /// There is something already.
    #[error("{path} is there already: expected a name for a new folder", path = .0.display())]
    Exists(PathBuf),
    /// The operating system refused.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        error: io::Error,
    },
    /// The folder is not what was delivered.
    #[error("{path}: {why}", path = .path.display())]
    NotAsDelivered {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The tensors could not be written.
    #[error("{path}: {error}", path = .path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Its reason.
        error: safetensors::SafeTensorError,
    },
}

/// A delivered adapter as PEFT has it: each module with its two factors in float32, and alpha = r, so that PEFT's scaling is 1.
///
/// A is stored as integers times a power of two, which float32 holds exactly. B takes up the scale and is rounded to float32, which is the only
/// rounding there is. The power of two makes both about equally large, so that the adapter can be loaded in half precision, too.
pub struct PeftFolder<'a> {
    delivery: &'a Delivery,
    base_model: Option<&'a str>,
    units: Vec<Units>,
}

/// What an integer of A and of B is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Units {
    a: f64,
    b: f64,
}

impl<'a> PeftFolder<'a> {
    /// `base_model` is what PEFT will load by itself, a name or a folder.
    pub fn new(delivery: &'a Delivery, base_model: Option<&'a str>) -> Result<Self, PeftError> {
        let modules = delivery.manifest().manifest().modules();
        let units = modules.iter().map(Units::of).collect::<Result<_, _>>()?;
        Ok(Self { delivery, base_model, units })
    }

    /// Writes the folder, with access for its owner alone, beside where it will be, and renames it when all is on the disk. Never over
    /// anything that is there.
    pub fn write(&self, out: &Path) -> Result<(), PeftError> {
        ensure_new(out)?;
        let parent = match out.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| PeftError::Io { path, error }
        };
        secret_file::create_folder(parent, 0o700).map_err(io(parent))?;
        // Removed with what is in it unless it gets its name.
        let folder = partial::folder(parent, partial::PARTIAL).map_err(io(parent))?;
        let at = |name: &str| folder.path().join(name);
        let manifest = self.delivery.manifest();
        let mut config = serde_json::to_vec_pretty(&self.config())
            .map_err(|error| PeftError::Io { path: at("adapter_config.json"), error: error.into() })?;
        config.push(b'\n');
        for (name, content) in [
            ("adapter_config.json", &config[..]),
            ("manifest.json", manifest.bytes()),
            ("manifest.sig", format!("{}\n", manifest.signature()).as_bytes()),
            ("README.md", self.readme().as_bytes()),
        ] {
            create(&at(name), content).map_err(io(&at(name)))?;
        }
        self.write_tensors(&at("adapter_model.safetensors"))?;
        File::open(folder.path()).and_then(|folder| folder.sync_all()).map_err(io(folder.path()))?;
        match renameat_with(CWD, folder.path(), CWD, out, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(PeftError::Exists(out.into())),
            // A file system without that.
            Err(Errno::INVAL | Errno::NOSYS) => {
                ensure_new(out)?;
                fs::rename(folder.path(), out).map_err(io(out))?;
            }
            Err(error) => return Err(io(out)(error.into())),
        }
        // Under its own name it stays.
        folder.keep();
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io(parent))
    }

    fn write_tensors(&self, path: &Path) -> Result<(), PeftError> {
        let io = |error| PeftError::Io { path: path.into(), error };
        let tensors = self.modules().flat_map(|(entry, opening, units)| {
            let (d_in, rank, d_out) = (entry.shape().d_in(), entry.shape().rank(), entry.shape().d_out());
            // PEFT stores both factors as the weights of torch.nn.Linear, output x input.
            [("lora_A", opening.a(), units.a, [rank, d_in]), ("lora_B", opening.b(), units.b, [d_out, rank])]
                .map(|(factor, weights, unit, shape)| {
                    let name = format!("base_model.model.{}.{factor}.weight", entry.name());
                    (name, Transposed { weights, unit, shape })
                })
        });
        let about = BTreeMap::from([("format".to_owned(), "pt".to_owned())]).into_iter().collect();
        safetensors::serialize_to_file(tensors, Some(about), path)
            .map_err(|error| PeftError::Tensors { path: path.into(), error })?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io)?;
        File::open(path).and_then(|file| file.sync_all()).map_err(io)
    }

    fn modules(&self) -> impl Iterator<Item = (&ModuleEntry, &Opening, Units)> {
        let entries = self.delivery.manifest().manifest().modules().iter();
        entries
            .zip(self.delivery.openings())
            .zip(&self.units)
            .map(|((entry, opening), &units)| (entry, opening, units))
    }

    fn config(&self) -> serde_json::Value {
        let entries = self.delivery.manifest().manifest().modules();
        let mut ranks: BTreeMap<usize, usize> = BTreeMap::new();
        for entry in entries {
            *ranks.entry(entry.shape().rank()).or_default() += 1;
        }
        // The one that most modules have. A manifest has a module.
        let rank = ranks.into_iter().max_by_key(|&(_, modules)| modules).map_or(1, |(rank, _)| rank);
        // The others by a regular expression that is the name in full.
        let others: BTreeMap<String, usize> = entries
            .iter()
            .filter(|entry| entry.shape().rank() != rank)
            .map(|entry| (format!("^{}", entry.name().replace('.', r"\.")), entry.shape().rank()))
            .collect();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "inference_mode": true,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "use_rslora": false,
            "use_dora": false,
            "lora_dropout": 0.0,
            "bias": "none",
            "init_lora_weights": true,
            "fan_in_fan_out": entries.iter().all(|entry| is_conv1d(entry.name())),
            "target_modules": entries.iter().map(ModuleEntry::name).collect::<Vec<_>>(),
            "modules_to_save": null,
        })
    }

    fn readme(&self) -> String {
        let manifest = self.delivery.manifest();
        format!(
            "# A LoRA adapter, delivered as it was proved\n\n\
             | | |\n|---|---|\n| adapter | `{}` |\n| contributor | `{}` |\n| base model | `{}` |\n| package | `{}` |\n\n\
             Every module's weights were held against its commitment in `manifest.json`, which the contributor has signed \
             (`manifest.sig`). `adapter_config.json` and `adapter_model.safetensors` are what PEFT reads: `lora_A` is the integers \
             of A times a power of two, and `lora_B` those of B times the rest of the module's scale, rounded to float32.\n",
            manifest.adapter_id(),
            manifest.manifest().contributor(),
            manifest.manifest().base_model(),
            self.delivery.digest(),
        )
    }
}

/// The signed manifest in a folder that [`PeftFolder::write`] made; none in another folder of PEFT's.
pub fn delivered_manifest(folder: &Path) -> Result<Option<SignedManifest>, PeftError> {
    let path = folder.join("manifest.json");
    let invalid = |why: String| PeftError::NotAsDelivered { path: path.clone(), why };
    let read = |name: &str, most: u64| -> Result<Option<Vec<u8>>, PeftError> {
        let path = folder.join(name);
        match File::open(&path) {
            Ok(file) => {
                let bytes =
                    read_bounded(file, most).map_err(|error| PeftError::Io { path: path.clone(), error })?;
                bytes.map(Some).ok_or_else(|| invalid(format!("{name} is longer than any")))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PeftError::Io { path, error }),
        }
    };
    let Some(bytes) = read("manifest.json", MAX_MANIFEST_BYTES as u64)? else { return Ok(None) };
    let signature =
        read("manifest.sig", 1 << 10)?.ok_or_else(|| invalid("manifest.sig is missing".into()))?;
    let signature = String::from_utf8_lossy(&signature);
    let signature = signature.trim().parse().map_err(|error| invalid(format!("manifest.sig: {error}")))?;
    SignedManifest::parse(bytes, signature).map(Some).map_err(|error| invalid(error.to_string()))
}

/// A, row-major `d_in x rank`, and B, row-major `rank x d_out`, as they are committed to.
pub type Integers = (Zeroizing<Vec<i16>>, Zeroizing<Vec<i16>>);

/// The committed integers of a module, from its weights as [`PeftFolder`] has them.
///
/// Fails with [`PeftError::NotAsDelivered`] if a weight is no integer of that module's scale: somebody changed it. A weight that was changed by a
/// whole unit is not noticed: only the package, with its salts, shows which integers were committed to.
pub fn committed_integers(entry: &ModuleEntry, a: &[f32], b: &[f32]) -> Result<Integers, PeftError> {
    let units = Units::of(entry)?;
    let integers = |weights: &[f32], unit: f64| -> Option<Zeroizing<Vec<i16>>> {
        let mut integers = Zeroizing::new(Vec::with_capacity(weights.len()));
        for &weight in weights {
            let integer = (f64::from(weight) / unit).round();
            // As it was written, to the bit.
            let same = (integer * unit) as f32 == weight && integer.abs() < 2048.0;
            integers.push(same.then_some(integer as i16)?);
        }
        Some(integers)
    };
    match (integers(a, units.a), integers(b, units.b)) {
        (Some(a), Some(b)) => Ok((a, b)),
        _ => Err(PeftError::NotAsDelivered {
            path: "adapter_model.safetensors".into(),
            why: format!("module {} has other weights than were delivered", entry.name()),
        }),
    }
}

impl Units {
    fn of(entry: &ModuleEntry) -> Result<Self, PeftError> {
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !entry.name().split('.').all(is_part) {
            return Err(PeftError::Name(entry.name().to_owned()));
        }
        let scale = entry.scale();
        // The power of two next to the root of the scale; at most 2^±100, so that A has its twelve bits.
        let exponent = (scale.log2() / 2.0).round().clamp(-100.0, 100.0);
        let a = exponent.exp2();
        let b = scale / a;
        let is_ordinary = |value: f64| (f64::from(f32::MIN_POSITIVE)..f64::from(f32::MAX)).contains(&value);
        match is_ordinary(b) && is_ordinary(b * 2048.0) {
            true => Ok(Self { a, b }),
            false => Err(PeftError::Scale { module: entry.name().to_owned(), scale }),
        }
    }
}

/// Whether transformers stores the projection of this name as a `Conv1D`, input x output: GPT-2 does, Llama does not.
fn is_conv1d(name: &str) -> bool {
    matches!(name.rsplit('.').next(), Some("c_attn" | "c_proj" | "c_fc"))
}

/// Weights in float32, transposed when they are written.
struct Transposed<'a> {
    /// Row-major, with as many columns as `shape` has rows.
    weights: &'a [i16],
    unit: f64,
    shape: [usize; 2],
}

impl View for Transposed<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let [rows, columns] = self.shape;
        let mut bytes = Vec::with_capacity(self.data_len());
        for row in 0..rows {
            for column in 0..columns {
                let weight = f64::from(self.weights[column * rows + row]) * self.unit;
                bytes.extend_from_slice(&(weight as f32).to_le_bytes());
            }
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        4 * self.weights.len()
    }
}

fn ensure_new(path: &Path) -> Result<(), PeftError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(PeftError::Io { path: path.into(), error }),
        Ok(_) => Err(PeftError::Exists(path.into())),
    }
}

fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
