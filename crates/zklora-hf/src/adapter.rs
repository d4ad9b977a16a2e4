use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::mem;
use std::path::Path;

use zeroize::{Zeroize, Zeroizing};

use crate::adapter_config::AdapterConfig;
use crate::tensor_file::TensorFile;
use crate::wrappers::wrapper_in;
use crate::{Error, Projection, read};

/// A LoRA adapter: for some projections of a base model, the two factors of what is added to their output. One that
/// exists fits its base model.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoraAdapter {
    /// At least one, in the order of the base model's projections, each projection at most once.
    pub modules: Vec<LoraModule>,
    /// The base model the adapter's configuration names. Only a name, to be shown to people.
    pub base_model_name: Option<String>,
}

/// LoRA on one projection: for input rows x it adds x·A·B·scaling to the output rows.
///
/// The weights are secret: they are zeroed when the module is dropped, and `Debug` does not print them. The scaling is
/// public.
#[non_exhaustive]
pub struct LoraModule {
    /// The projection, such as `transformer.h.0.attn.c_attn`.
    pub name: String,
    /// r, the inner width of A·B.
    pub rank: usize,
    /// Width of the projection's input rows.
    pub d_in: usize,
    /// Width of the projection's output rows.
    pub d_out: usize,
    /// A, `d_in` × `rank`, row-major, finite.
    pub a: Vec<f32>,
    /// B, `rank` × `d_out`, row-major, finite.
    pub b: Vec<f32>,
    /// alpha/r, or alpha/√r for rsLoRA; above 0.
    pub scaling: f64,
}

impl LoraAdapter {
    /// Reads the adapter that PEFT's `save_pretrained` wrote into `folder` (`adapter_config.json` and
    /// `adapter_model.safetensors`), for a base model with these [`projections`](crate::BaseModel::projections).
    ///
    /// Fails with [`Error::Adapter`] naming the setting, tensor or module if the adapter is anything but plain LoRA
    /// on these projections, or if it has tensors for other modules than its configuration targets: PEFT would then
    /// compute something other than the tensors say.
    pub fn open(folder: impl AsRef<Path>, projections: &[Projection]) -> Result<Self, Error> {
        let folder = folder.as_ref();
        read::folder(folder)?;
        let config = AdapterConfig::open(&folder.join("adapter_config.json"))?;
        let hint = if folder.join("adapter_model.bin").exists() {
            "only adapter_model.bin is there, a pickle, which can run code; load it with PEFT where you trust it, and \
             save_pretrained writes safetensors"
        } else {
            "it holds the adapter's weights"
        };
        let file = TensorFile::open(&folder.join("adapter_model.safetensors"), hint)?;

        let mut stored = StoredModules::read(&file, projections)?;
        let mut modules = Vec::with_capacity(stored.factors.len());
        for projection in projections {
            let name = stored.name_of(projection);
            match (stored.factors.remove(name), config.targets(name)) {
                (Some(factors), true) => {
                    modules.push(LoraModule::read(&file, &config, name, &factors, projection)?);
                }
                (Some(_), false) => {
                    return Err(Error::adapter(
                        config.path(),
                        format!(
                            "it does not target {name}, but adapter_model.safetensors has tensors for it, which \
                             PEFT would ignore; mend target_modules (with exclude_modules and layers_to_transform), or \
                             take the tensors out"
                        ),
                    ));
                }
                (None, true) => {
                    return Err(Error::adapter(
                        config.path(),
                        format!(
                            "it targets {name}, but adapter_model.safetensors has no tensors for it, and PEFT \
                             would leave LoRA there as it was initialised; mend target_modules, or get the whole adapter"
                        ),
                    ));
                }
                (None, false) => {}
            }
        }
        Ok(Self { modules, base_model_name: config.base_model })
    }
}

impl LoraModule {
    /// `stored` is the module's name in the adapter, `tensors` the names of its tensors by factor.
    fn read(
        file: &TensorFile,
        config: &AdapterConfig,
        stored: &str,
        tensors: &Factors,
        projection: &Projection,
    ) -> Result<Self, Error> {
        let &Projection { ref name, d_in, d_out } = projection;
        let rank = config.rank_of(stored)?;
        // PEFT stores both factors as the weights of torch.nn.Linear, output × input.
        let read_transposed = |factor: &str, outputs: usize, inputs: usize, meaning: &str| {
            let Some(tensor) = tensors.get(factor) else {
                return Err(Error::adapter(file.path(), format!("module {name} has no {factor}.weight")));
            };
            let found = file.shape(tensor)?;
            if found != [outputs, inputs] {
                return Err(Error::adapter(
                    file.path(),
                    format!(
                        "module {name}: {factor}.weight has shape {found:?}, expected [{outputs}, {inputs}], which is \
                         {meaning} by adapter_config.json and the base model"
                    ),
                ));
            }
            let values = file.read(tensor)?;
            // Sized beforehand: growing would leave copies of the weights in freed memory.
            let mut transposed = Zeroizing::new(Vec::with_capacity(values.len()));
            for input in 0..inputs {
                transposed.extend((0..outputs).map(|output| values[output * inputs + input]));
            }
            Ok(transposed)
        };
        let mut a = read_transposed("lora_A", rank, d_in, "rank × d_in")?;
        let mut b = read_transposed("lora_B", d_out, rank, "d_out × rank")?;
        Ok(Self {
            name: name.clone(),
            rank,
            d_in,
            d_out,
            scaling: config.scaling_of(stored)?,
            a: mem::take(&mut a),
            b: mem::take(&mut b),
        })
    }
}

impl LoraModule {
    /// Whether A·B is zero because one of them is: B is before it was trained.
    pub fn does_nothing(&self) -> bool {
        let is_zero = |factor: &[f32]| factor.iter().all(|value| *value == 0.0);
        is_zero(&self.b) || is_zero(&self.a)
    }
}

impl fmt::Debug for LoraModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoraModule")
            .field("name", &self.name)
            .field("rank", &self.rank)
            .field("d_in", &self.d_in)
            .field("d_out", &self.d_out)
            .field("scaling", &self.scaling)
            .finish_non_exhaustive()
    }
}

impl Drop for LoraModule {
    fn drop(&mut self) {
        self.a.zeroize();
        self.b.zeroize();
    }
}

/// What an adapter's file has for each module.
struct StoredModules {
    /// Whether PEFT was given the model without its head: the names then lack what the head puts before them.
    headless: bool,
    /// By the module's name in the file; never empty.
    factors: BTreeMap<String, Factors>,
}

/// The names of a module's tensors by factor, `lora_A` or `lora_B`.
type Factors = BTreeMap<&'static str, String>;

impl StoredModules {
    /// Refuses any tensor that is not a factor of one of the `projections`.
    fn read(file: &TensorFile, projections: &[Projection]) -> Result<Self, Error> {
        let with_head: HashSet<&str> = projections.iter().map(|p| p.name.as_str()).collect();
        let without: HashSet<&str> = projections.iter().map(|p| without_head(&p.name)).collect();
        let refuse = |reason: String| Err(Error::adapter(file.path(), reason));

        let mut headless = None;
        let mut factors: BTreeMap<String, Factors> = BTreeMap::new();
        for tensor in file.names() {
            let (module, factor) = match parse(&tensor) {
                Ok(parsed) => parsed,
                Err(why) => return refuse(format!("tensor {tensor}: {why}")),
            };
            if !with_head.contains(module) && !without.contains(module) {
                let examples: Vec<&str> = projections.iter().take(4).map(|p| p.name.as_str()).collect();
                return refuse(format!(
                    "it has LoRA on {module}, which is not a projection of the base model (those are {}, ...)",
                    examples.join(", ")
                ));
            }
            let lacks_head = !with_head.contains(module);
            if *headless.get_or_insert(lacks_head) != lacks_head {
                return refuse(format!(
                    "{module} {} what the model's head puts before its modules, and others do the contrary; save the \
                     adapter with PEFT's save_pretrained",
                    if lacks_head { "lacks" } else { "has" }
                ));
            }
            if let Some(other) = factors.entry(module.to_owned()).or_default().insert(factor, tensor.clone())
            {
                return refuse(format!("{tensor} and {other} mean the same; only one may be there"));
            }
        }
        match headless {
            Some(headless) => Ok(Self { headless, factors }),
            None => refuse("it holds no LoRA weights".to_owned()),
        }
    }

    /// What the file would call a projection.
    fn name_of<'a>(&self, projection: &'a Projection) -> &'a str {
        if self.headless { without_head(&projection.name) } else { &projection.name }
    }
}

/// The module and the factor that a tensor is, or why it is none.
fn parse(tensor: &str) -> Result<(&str, &'static str), &'static str> {
    if let Some(wrapper) = wrapper_in(tensor) {
        return Err(wrapper);
    }
    const NOT_A_FACTOR: &str = "not a factor of LoRA; PEFT's save_pretrained writes \
         base_model.model.<module>.lora_A.weight, and lora_B";
    if tensor.contains("lora_magnitude_vector") {
        return Err("a DoRA magnitude; DoRA rescales the base model's weights, its delta is not x·A·B");
    }
    if tensor.contains("lora_embedding_") {
        return Err("LoRA on an embedding is not supported, only on projections");
    }
    if tensor.contains(".trainable_tokens_") {
        return Err("retrained token embeddings are not LoRA deltas");
    }
    if EMBEDDINGS
        .iter()
        .any(|embedding| tensor.strip_suffix(embedding).is_some_and(|rest| rest.ends_with('.')))
    {
        return Err(
            "a whole embedding or head, which PEFT saves along when the vocabulary was changed or it cannot tell; if \
                    it was not trained, save with save_pretrained(..., save_embedding_layers=False), and if it was, make \
                    it part of the base model",
        );
    }
    let Some(name) = tensor.strip_suffix(".weight") else {
        return Err(match tensor.strip_suffix(".bias") {
            Some(layer) if layer.ends_with(".lora_A") || layer.ends_with(".lora_B") => {
                "a bias in LoRA's layers makes the delta more than x·A·B"
            }
            Some(_) => "a changed bias is not a LoRA delta; train with bias=\"none\"",
            None => NOT_A_FACTOR,
        });
    };
    // A state saved without save_pretrained names the adapter; PEFT loads it under this name only.
    let name = name.strip_suffix(".default").unwrap_or(name);
    let (layer, factor) = match (name.strip_suffix(".lora_A"), name.strip_suffix(".lora_B")) {
        (Some(layer), _) => (layer, "lora_A"),
        (_, Some(layer)) => (layer, "lora_B"),
        _ if name.contains(".lora_A.") || name.contains(".lora_B.") => {
            return Err(
                "it has the name of an adapter in it, which PEFT would not find; save it with save_pretrained",
            );
        }
        _ => return Err(NOT_A_FACTOR),
    };
    match layer.strip_prefix(PREFIX) {
        Some(module) => Ok((module, factor)),
        None => Err(
            "its name does not begin with base_model.model., so PEFT would not find it; save the adapter with \
                     PEFT's save_pretrained",
        ),
    }
}

/// A module's name in the model without its language-modelling head.
fn without_head(name: &str) -> &str {
    WITH_HEAD.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// What embeddings and heads are called in GPT-2 and Llama, whether LoRA is on them or not.
const EMBEDDINGS: [&str; 6] = [
    "wte.weight",
    "wpe.weight",
    "embed_tokens.weight",
    "lm_head.weight",
    "embed_tokens.base_layer.weight",
    "lm_head.base_layer.weight",
];

/// What PEFT puts before the base model's names.
const PREFIX: &str = "base_model.model.";

/// What a model with its head puts before the names of the one without: GPT-2, Llama.
const WITH_HEAD: [&str; 2] = ["transformer.", "model."];

#[cfg(test)]
mod tests;
