use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::path::Path;

use zeroize::{Zeroize, Zeroizing};

use crate::adapter_config::AdapterConfig;
use crate::tensor_file::TensorFile;
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
    /// on these projections.
    pub fn open(folder: impl AsRef<Path>, projections: &[Projection]) -> Result<Self, Error> {
        let folder = folder.as_ref();
        read::folder(folder)?;
        let config = AdapterConfig::open(&folder.join("adapter_config.json"))?;
        let hint = if folder.join("adapter_model.bin").exists() {
            "only adapter_model.bin is there, a pickle, which can run code; convert it to safetensors"
        } else {
            "it holds the adapter's weights"
        };
        let file = TensorFile::open(&folder.join("adapter_model.safetensors"), hint)?;

        let mut targeted = targets(&file, projections)?;
        let mut modules = Vec::with_capacity(targeted.len());
        for projection in projections {
            if let Some(stored) = targeted.remove(projection.name.as_str()) {
                modules.push(LoraModule::read(&file, &config, &stored, projection)?);
            }
        }
        if modules.is_empty() {
            return Err(Error::adapter(file.path(), "it holds no LoRA weights"));
        }
        Ok(Self { modules, base_model_name: config.base_model })
    }
}

impl LoraModule {
    /// `stored` is the module's name in the adapter's tensors.
    fn read(
        file: &TensorFile,
        config: &AdapterConfig,
        stored: &str,
        projection: &Projection,
    ) -> Result<Self, Error> {
        let &Projection { ref name, d_in, d_out } = projection;
        let rank = config.rank_of(stored)?;
        // PEFT stores both factors as the weights of torch.nn.Linear, output × input.
        let read_transposed = |factor: &str, outputs: usize, inputs: usize, meaning: &str| {
            let tensor = format!("{PREFIX}{stored}.{factor}.weight");
            if !file.contains(&tensor) {
                return Err(Error::adapter(file.path(), format!("module {name} has no {factor}.weight")));
            }
            let found = file.shape(&tensor)?;
            if found != [outputs, inputs] {
                return Err(Error::adapter(
                    file.path(),
                    format!(
                        "module {name}: {factor}.weight has shape {found:?}, expected [{outputs}, {inputs}], which is \
                         {meaning} by adapter_config.json and the base model"
                    ),
                ));
            }
            file.check(&tensor, &[outputs, inputs])?;
            let values = file.read(&tensor)?;
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

/// Which projections the file's tensors belong to, each with its name in the file. Refuses any tensor that is not a
/// factor of one of the `projections`.
fn targets<'a>(file: &TensorFile, projections: &'a [Projection]) -> Result<BTreeMap<&'a str, String>, Error> {
    // What the model with its head puts before the names of the one without: `transformer.` or `model.`.
    let head = projections.first().map_or("", |p| &p.name[..=p.name.find('.').unwrap_or(0)]);
    let without_head = |name: &'a str| name.strip_prefix(head).unwrap_or(name);
    let known: BTreeMap<&str, &str> =
        projections.iter().map(|p| (without_head(&p.name), p.name.as_str())).collect();
    let mut targeted: BTreeMap<&str, String> = BTreeMap::new();
    for tensor in file.names() {
        let stored = module_of(&tensor)
            .map_err(|why| Error::adapter(file.path(), format!("tensor {tensor}: {why}")))?;
        // An adapter made for the model without its head has names without the prefix.
        let Some(&name) = known.get(stored.strip_prefix(head).unwrap_or(stored)) else {
            let examples: Vec<&str> = projections.iter().take(4).map(|p| p.name.as_str()).collect();
            return Err(Error::adapter(
                file.path(),
                format!(
                    "it targets {stored}, which is not a projection of the base model (those are {}, ...)",
                    examples.join(", ")
                ),
            ));
        };
        if let Some(other) = targeted.insert(name, stored.to_owned()).filter(|other| other != stored) {
            return Err(Error::adapter(
                file.path(),
                format!("{stored} and {other} both mean {name}; only one may be there"),
            ));
        }
    }
    Ok(targeted)
}

/// The module a LoRA factor belongs to, or why the tensor is not one.
fn module_of(tensor: &str) -> Result<&str, &'static str> {
    let factor = tensor
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(".lora_A.weight").or_else(|| rest.strip_suffix(".lora_B.weight")));
    match factor {
        Some(module) => Ok(module),
        None if tensor.contains("lora_magnitude_vector") => {
            Err("a DoRA magnitude; DoRA rescales the base model's weights, its delta is not x·A·B")
        }
        None if tensor.contains("lora_embedding") => {
            Err("LoRA on an embedding is not supported, only on projections")
        }
        None if tensor.ends_with(".lora_A.bias") || tensor.ends_with(".lora_B.bias") => {
            Err("a bias in LoRA's layers makes the delta more than x·A·B")
        }
        None if tensor.ends_with(".bias") => {
            Err("a changed bias is not a LoRA delta; train with bias=\"none\"")
        }
        None => Err("not a factor of LoRA; expected names like base_model.model.<module>.lora_A.weight"),
    }
}

/// What PEFT puts before the base model's names.
const PREFIX: &str = "base_model.model.";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Config;
    use crate::testing::{TestTensor, gpt2_config, write_json, write_tensors};

    #[test]
    fn factors_are_transposed_to_row_vector_convention() {
        for prefix in ["transformer.", ""] {
            let adapter = open(&config(), &tensors(prefix)).unwrap();
            assert_eq!(adapter.base_model_name.as_deref(), Some("gpt2"));
            let names: Vec<&str> = adapter.modules.iter().map(|m| m.name.as_str()).collect();
            assert_eq!(names, ["transformer.h.0.mlp.c_proj", "transformer.h.1.attn.c_attn"]);
            let module = &adapter.modules[1];
            assert_eq!((module.rank, module.d_in, module.d_out, module.scaling), (2, 4, 12, 4.0));
            // lora_A.weight[k][i] = 4k + i, so A[i][k] = 4k + i.
            assert_eq!(module.a, [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
            // lora_B.weight[j][k] = 2j + k, so B[k][j] = 2j + k.
            let b: Vec<f32> = (0..2).flat_map(|k| (0..12).map(move |j| (2 * j + k) as f32)).collect();
            assert_eq!(module.b, b);
        }
    }

    #[test]
    fn debug_does_not_print_weights() {
        let adapter = open(&config(), &tensors("")).unwrap();
        let text = format!("{adapter:?}");
        assert!(text.contains("c_attn") && text.contains("rank: 2"), "{text}");
        assert!(!text.contains("7.0") && !text.contains(" a:") && !text.contains(" b:"), "{text}");
    }

    #[test]
    fn tensors_that_are_not_plain_lora_are_refused() {
        for (tensor, why) in [
            ("h.1.attn.c_attn.lora_magnitude_vector", "a DoRA magnitude"),
            ("wte.lora_embedding_A", "LoRA on an embedding"),
            ("h.1.attn.c_attn.lora_B.bias", "a bias in LoRA's layers"),
            ("h.1.attn.c_attn.base_layer.bias", "a changed bias"),
            ("ln_f.modules_to_save.weight", "not a factor of LoRA"),
            ("h.1.attn.c_attn.lora_A.default.weight", "not a factor of LoRA"),
            ("lm_head.lora_A.weight", "it targets lm_head, which is not a projection of the base model"),
            ("h.9.attn.c_attn.lora_A.weight", "it targets h.9.attn.c_attn"),
            ("transformer.h.1.attn.c_attn.lora_A.weight", "both mean transformer.h.1.attn.c_attn"),
        ] {
            let mut tensors = tensors("");
            tensors.push(TestTensor::f32(&format!("{PREFIX}{tensor}"), &[1], &[0.0]));
            let message = open(&config(), &tensors).unwrap_err().to_string();
            assert!(message.contains(why), "{message:?} should contain {why:?}");
        }
        let mut unprefixed = tensors("");
        unprefixed[0].name = unprefixed[0].name.replace(PREFIX, "");
        assert!(open(&config(), &unprefixed).unwrap_err().to_string().contains("not a factor of LoRA"));
    }

    #[test]
    fn a_module_that_does_not_fit_is_named() {
        let refusal = |change: &dyn Fn(&mut Vec<TestTensor>)| {
            let mut tensors = tensors("");
            change(&mut tensors);
            open(&config(), &tensors).unwrap_err().to_string()
        };
        let shape = refusal(&|tensors| tensors[0].shape = vec![4, 2]);
        assert!(
            shape.contains(
                "module transformer.h.1.attn.c_attn: lora_A.weight has shape [4, 2], expected [2, 4], which is rank × d_in"
            ),
            "{shape}"
        );
        let half_missing = refusal(&|tensors| drop(tensors.remove(1)));
        assert!(
            half_missing.contains("module transformer.h.1.attn.c_attn has no lora_B.weight"),
            "{half_missing}"
        );
        let infinite =
            refusal(&|tensors| tensors[1].bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()));
        assert!(infinite.contains("expected finite values"), "{infinite}");
        let dtype = refusal(&|tensors| tensors[1].dtype = safetensors::Dtype::I32);
        assert!(dtype.contains("expected F32, F16 or BF16, found I32"), "{dtype}");
        assert!(refusal(&|tensors| tensors.clear()).contains("it holds no LoRA weights"));

        let mut other_rank = config();
        other_rank["r"] = json!(3);
        let message = open(&other_rank, &tensors("")).unwrap_err().to_string();
        assert!(
            message.contains("has shape [16, 2], expected") || message.contains("[2, 16], expected [3, 16]"),
            "{message}"
        );
    }

    #[test]
    fn a_pickle_is_refused_with_advice() {
        let folder = tempfile::tempdir().unwrap();
        let projections = projections();
        let message = || LoraAdapter::open(folder.path(), &projections).unwrap_err().to_string();
        assert!(message().contains("adapter_config.json is missing"));
        write_json(&folder.path().join("adapter_config.json"), &config());
        assert!(message().contains("adapter_model.safetensors is missing"));
        std::fs::write(folder.path().join("adapter_model.bin"), b"").unwrap();
        assert!(message().contains("convert it to safetensors"));
    }

    fn open(config: &Value, tensors: &[TestTensor]) -> Result<LoraAdapter, Error> {
        let folder = tempfile::tempdir().unwrap();
        write_json(&folder.path().join("adapter_config.json"), config);
        write_tensors(&folder.path().join("adapter_model.safetensors"), tensors);
        LoraAdapter::open(folder.path(), &projections())
    }

    fn projections() -> Vec<Projection> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        write_json(&path, &gpt2_config());
        Config::open(&path).unwrap().architecture().projections()
    }

    fn config() -> Value {
        json!({ "peft_type": "LORA", "base_model_name_or_path": "gpt2", "r": 2, "lora_alpha": 8, "bias": "none" })
    }

    /// LoRA of rank 2 on h.1.attn.c_attn (4 → 12) and h.0.mlp.c_proj (16 → 4).
    fn tensors(prefix: &str) -> Vec<TestTensor> {
        let counting = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<f32>>();
        [
            ("h.1.attn.c_attn.lora_A", [2, 4]),
            ("h.1.attn.c_attn.lora_B", [12, 2]),
            ("h.0.mlp.c_proj.lora_A", [2, 16]),
            ("h.0.mlp.c_proj.lora_B", [4, 2]),
        ]
        .map(|(name, shape)| {
            let values = counting(shape[0] * shape[1]);
            TestTensor::f32(&format!("{PREFIX}{prefix}{name}.weight"), &shape, &values)
        })
        .to_vec()
    }
}
