//! The contributor's state folder.
//!
//! | file | content | mode |
//! |---|---|---|
//! | `identity.key` | the Ed25519 private key | 0600 |
//! | `openings.safetensors` | quantised A and B and the salt of each module | 0600 |
//! | `manifest.json` | the adapter manifest, the exact bytes that are signed | 0644 |
//! | `manifest.sig` | its signature, in hexadecimal | 0644 |
//! | `sessions.sqlite`, `sessions.sqlite-reserved` | sessions and the ledger of what was answered: the [`store`](crate::store) | 0600 |

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tracing::warn;
use zeroize::Zeroizing;
use zklora_circuit::commitment::{Opening, Salt};
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::{DEFAULT_DEGREE_BITS, plan};
use zklora_hf::{BaseModel, LoraAdapter, quantise};
use zklora_proto::limits::MAX_MANIFEST_BYTES;
use zklora_proto::{
    Manifest, ModuleEntry, ModuleShape, SecretKey, Signature, SignedManifest, read_bounded, secret_file,
};

use crate::store::{Allowance, STORE, Store};

/// The name of the identity key's file, here and among a service's credentials.
pub const KEY: &str = "identity.key";
const OPENINGS: &str = "openings.safetensors";
const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "manifest.sig";
/// More than the largest adapter that a manifest can describe in practice: bounds what a damaged file can make us read.
const MAX_OPENINGS_BYTES: u64 = 16 << 30;

/// Everything that a contributor serves and proves with.
#[derive(Debug)]
pub struct State {
    /// Who the contributor is.
    pub key: SecretKey,
    /// What it committed to.
    pub manifest: SignedManifest,
    /// What opens the commitments, in the manifest's order. Secret.
    pub openings: Vec<Opening>,
}

impl State {
    /// Quantises an adapter of a base model, commits to it and writes a new state folder. The identity key is kept if the
    /// folder has one; anything else there is an error, since a commitment must not be lost.
    pub fn create(folder: &Path, base_model: &Path, adapter: &Path) -> anyhow::Result<Self> {
        let base = BaseModel::open(base_model)?;
        let adapter = LoraAdapter::open(adapter, &base.projections())?;
        warn_of_idle_modules(&adapter);
        let store = folder.join(STORE);
        let others = Store::files(&store);
        for path in [MANIFEST, SIGNATURE, OPENINGS].map(|file| folder.join(file)).iter().chain(&others) {
            if path.exists() {
                bail!(
                    "{} is there already: expected a new or empty state folder; choose another --state",
                    path.display()
                );
            }
        }
        secret_file::create_folder(folder, 0o700).with_context(|| format!("making {}", folder.display()))?;
        let key = SecretKey::load_or_create(&folder.join(KEY))?;

        let mut rng: StdRng = rand::make_rng();
        let mut openings = Vec::with_capacity(adapter.modules.len());
        let mut entries = Vec::with_capacity(adapter.modules.len());
        for module in &adapter.modules {
            let shape = ModuleShape::new(module.d_in, module.rank, module.d_out)
                .with_context(|| format!("module {}", module.name))?;
            let quantised = quantise(module);
            let opening =
                Opening::new(shape, quantised.a.to_vec(), quantised.b.to_vec(), Salt::random(&mut rng))
                    .context("quantised weights left their range; this is a bug")?;
            entries.push(ModuleEntry::new(
                module.name.clone(),
                shape,
                quantised.scale,
                opening.commitment(),
            )?);
            openings.push(opening);
        }
        let manifest = Manifest::new(key.public(), base.digest(), unix_time(), entries)?.sign(&key);
        // Better known before anything is served than after it.
        plan(
            Security::default(),
            manifest.manifest(),
            &vec![1; manifest.manifest().modules().len()],
            DEFAULT_DEGREE_BITS,
        )
        .context("this adapter cannot be proved")?;

        secret_file::create(&folder.join(OPENINGS), &encode(&openings)?)?;
        // Before the manifest: a state that has one has its ledger.
        Store::create(&store, manifest.adapter_id(), vec![Allowance::default(); openings.len()])?;
        write(&folder.join(MANIFEST), manifest.bytes())?;
        write(&folder.join(SIGNATURE), format!("{}\n", manifest.signature()).as_bytes())?;
        Ok(Self { key, manifest, openings })
    }

    /// Opens a state folder with the key in it and checks that its parts belong together.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        check_is_folder(folder)?;
        Self::open_with_key(folder, SecretKey::load(&folder.join(KEY))?)
    }

    /// Opens a state folder whose key is kept elsewhere, and checks that its parts belong together.
    pub fn open_with_key(folder: &Path, key: SecretKey) -> anyhow::Result<Self> {
        let (path, (manifest, openings)) = (folder.join(MANIFEST), Self::adapter_of(folder)?);
        if *manifest.manifest().contributor() != key.public() {
            bail!(
                "{} is of {}, but the identity key is that of {}: these files are of two different states",
                path.display(),
                manifest.manifest().contributor(),
                key.public()
            );
        }
        Ok(Self { key, manifest, openings })
    }

    /// The adapter of a state folder: its manifest and what opens its commitments. Needs no private key.
    pub fn adapter_of(folder: &Path) -> anyhow::Result<(SignedManifest, Vec<Opening>)> {
        let manifest = Self::manifest_of(folder)?;
        let path = folder.join(OPENINGS);
        let bytes = Zeroizing::new(secret_file::read(&path, MAX_OPENINGS_BYTES)?);
        let openings = decode(&bytes, manifest.manifest()).with_context(|| path.display().to_string())?;
        for (opening, entry) in openings.iter().zip(manifest.manifest().modules()) {
            if opening.commitment() != *entry.commitment() {
                bail!(
                    "{}: the weights of {} do not open the manifest's commitment: the file is damaged or of another state",
                    path.display(),
                    entry.name()
                );
            }
        }
        Ok((manifest, openings))
    }

    /// The manifest of a state folder. Reads nothing secret.
    pub fn manifest_of(folder: &Path) -> anyhow::Result<SignedManifest> {
        check_is_folder(folder)?;
        let path = folder.join(MANIFEST);
        let bytes = read(&path, MAX_MANIFEST_BYTES as u64)?;
        let signature: Signature = String::from_utf8_lossy(&read(&folder.join(SIGNATURE), 256)?)
            .trim_end()
            .parse()
            .with_context(|| format!("{}", folder.join(SIGNATURE).display()))?;
        SignedManifest::parse(bytes, signature).with_context(|| path.display().to_string())
    }
}

fn check_is_folder(folder: &Path) -> anyhow::Result<()> {
    if !folder.is_dir() {
        bail!("{}: no such folder; make it with `zklora-contributor init`", folder.display());
    }
    Ok(())
}

fn encode(openings: &[Opening]) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let little_endian = |weights: &[i16]| -> Zeroizing<Vec<u8>> {
        Zeroizing::new(weights.iter().flat_map(|w| w.to_le_bytes()).collect())
    };
    let mut tensors = Vec::new();
    for (index, opening) in openings.iter().enumerate() {
        let shape = opening.shape();
        let salt: Vec<u8> = opening.salt().words().iter().flat_map(|word| word.to_le_bytes()).collect();
        tensors.push((
            name(index, "a"),
            Dtype::I16,
            vec![shape.d_in(), shape.rank()],
            little_endian(opening.a()),
        ));
        tensors.push((
            name(index, "b"),
            Dtype::I16,
            vec![shape.rank(), shape.d_out()],
            little_endian(opening.b()),
        ));
        tensors.push((name(index, "salt"), Dtype::U64, vec![8], Zeroizing::new(salt)));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Zeroizing::new(safetensors::serialize(views, None)?))
}

fn decode(bytes: &[u8], manifest: &Manifest) -> anyhow::Result<Vec<Opening>> {
    let file = SafeTensors::deserialize(bytes)?;
    let tensor = |index: usize, part: &str, dtype: Dtype, shape: &[usize]| {
        let name = name(index, part);
        let tensor = file.tensor(&name)?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            bail!("{name} is {:?} of {:?}, expected {shape:?} of {dtype:?}", tensor.shape(), tensor.dtype());
        }
        Ok(tensor.data().to_vec())
    };
    let weights = |bytes: &[u8]| bytes.chunks_exact(2).map(|w| i16::from_le_bytes([w[0], w[1]])).collect();
    manifest
        .modules()
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            let shape = entry.shape();
            let a = Zeroizing::new(tensor(index, "a", Dtype::I16, &[shape.d_in(), shape.rank()])?);
            let b = Zeroizing::new(tensor(index, "b", Dtype::I16, &[shape.rank(), shape.d_out()])?);
            let salt = Zeroizing::new(tensor(index, "salt", Dtype::U64, &[8])?);
            let mut words = Zeroizing::new([0u64; 8]);
            for (word, bytes) in words.iter_mut().zip(salt.chunks_exact(8)) {
                // Chunks of exactly eight bytes.
                *word = u64::from_le_bytes(bytes.try_into().unwrap());
            }
            Salt::from_words(*words)
                .and_then(|salt| Opening::new(shape, weights(&a), weights(&b), salt))
                .with_context(|| format!("module {index}: a weight or the salt is out of range"))
        })
        .collect()
}

/// What was never trained can be committed to, served and proved, and nobody would pay for it.
fn warn_of_idle_modules(adapter: &LoraAdapter) {
    let idle: Vec<&str> =
        adapter.modules.iter().filter(|module| module.does_nothing()).map(|module| &*module.name).collect();
    match idle[..] {
        [] => {}
        _ if idle.len() == adapter.modules.len() => warn!(
            "this adapter does nothing: B (or A) is zero in all of its {} modules, as before training",
            idle.len()
        ),
        [first, ..] => warn!(
            "{} of the adapter's {} modules do nothing, {first} among them: their B (or A) is zero, as before training",
            idle.len(),
            adapter.modules.len()
        ),
    }
}

fn name(index: usize, part: &str) -> String {
    format!("{index}.{part}")
}

/// Writes a file that everybody may read and nobody else may change, whatever the umask is.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let writing = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.sync_all()
    };
    writing().with_context(|| format!("writing {}", path.display()))
}

fn read(path: &Path, max: u64) -> anyhow::Result<Vec<u8>> {
    let file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    read_bounded(file, max)
        .with_context(|| format!("reading {}", path.display()))?
        .with_context(|| format!("{} has more than {max} bytes", path.display()))
}

/// Seconds since 1970; 0 for a clock set before.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or(0)
}
