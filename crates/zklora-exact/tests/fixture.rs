//! The integer model of the fixture: beside float32, and against a second implementation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use zklora_exact::{BuildError, ExactAdapter, ExactModel, LOSS_BITS, Module, Plan, Profile, Refusal};
use zklora_hf::{BaseModel, LoraAdapter, Quantised, quantise};

#[test]
fn losses_are_those_of_float32_within_what_the_page_says() {
    let fixture = Fixture::open();
    let model = fixture.model(Profile::Faithful);
    let adapter = fixture.adapter(&model);
    let mut differences = [Vec::new(), Vec::new()];
    for text in fixture.texts() {
        for (found, float) in [(None, text.base.loss), (Some(&adapter), text.adapter.loss)] {
            let difference = model.losses(&text.token_ids, found).unwrap().mean() - float;
            assert!(difference.abs() < 0.03, "{}: {difference}", text.name);
            differences[usize::from(found.is_some())].push(difference);
        }
    }
    for differences in differences {
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        assert!(mean.abs() < 0.005, "{mean}");
    }
}

#[test]
fn a_second_implementation_gets_the_same_to_the_last_unit() {
    let fixture = Fixture::open();
    let folder = tempfile::tempdir().unwrap();
    let [plan, texts, integers] =
        ["plan.json", "texts.json", "integers.safetensors"].map(|f| folder.path().join(f));
    let tokens: Vec<Vec<u32>> = fixture.texts().into_iter().map(|text| text.token_ids).collect();
    fs::write(&texts, serde_json::to_vec(&tokens).unwrap()).unwrap();
    fs::write(&integers, fixture.integers()).unwrap();
    for profile in [Profile::Faithful, Profile::Long] {
        let model = fixture.model(profile);
        let adapter = fixture.adapter(&model);
        fs::write(&plan, model.plan().to_bytes()).unwrap();
        for (adapter, arguments) in
            [(None, vec![]), (Some(&adapter), vec![Path::new("--adapter"), &integers])]
        {
            let found: Vec<Option<i64>> =
                tokens.iter().map(|tokens| model.losses(tokens, adapter).ok().map(|l| l.total())).collect();
            let mut command = Command::new(python());
            command.arg(repository().join("scripts/check_exact.py")).arg(fixture.base.folder());
            let output = command.args([&plan, &texts]).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let other: Vec<Option<i64>> = serde_json::from_slice(&output.stdout).unwrap();
            assert!(found.iter().all(Option::is_some));
            assert_eq!(found, other, "{profile:?}");
        }
    }
}

#[test]
fn scored_positions_are_those_of_the_whole_text_and_a_trace_changes_nothing() {
    let fixture = Fixture::open();
    let model = fixture.model(Profile::Faithful);
    let adapter = fixture.adapter(&model);
    let tokens = &fixture.texts()[0].token_ids;
    let all = model.losses(tokens, Some(&adapter)).unwrap();
    let (some, trace) = model.trace(tokens, &[1, 5, 7], Some(&adapter)).unwrap();
    assert_eq!(some.units, [0, 4, 6].map(|place| all.units[place]));
    assert_eq!(trace.layers.len(), 3);
    assert_eq!(trace.layers[0].attention_norm.normed.len(), tokens.len() * 128);
    assert_ne!(all, model.losses(tokens, None).unwrap());
    let nats: f64 = all.nats().sum();
    assert!(
        (nats - all.total() as f64 * 2f64.powi(-(LOSS_BITS as i32)) * std::f64::consts::LN_2).abs() < 1e-9
    );
    for scored in [&[][..], &[0, 1], &[3, 3], &[5, 2], &[tokens.len()]] {
        assert!(matches!(model.losses_at(tokens, scored, None), Err(Refusal::Tokens(_))), "{scored:?}");
    }
}

#[test]
fn texts_that_the_model_does_not_have_are_refused() {
    let fixture = Fixture::open();
    let model = fixture.model(Profile::Faithful);
    for (tokens, why) in
        [(vec![], "0 tokens"), (vec![1], "1 tokens"), (vec![1, 2048], "token 2048"), (vec![0; 257], "257")]
    {
        let refusal = model.losses(&tokens, None).unwrap_err().to_string();
        assert!(refusal.contains(why), "{refusal}");
    }
    assert_eq!(model.max_tokens(), 256);
}

#[test]
fn a_plan_is_made_again_as_it_is_and_only_for_its_model() {
    let fixture = Fixture::open();
    let plan = fixture.model(Profile::Faithful).plan().clone();
    let bytes = plan.to_bytes();
    assert_eq!(Plan::parse(&bytes).unwrap(), plan);
    assert_ne!(plan.digest(), fixture.model(Profile::Long).plan().digest());
    let text = String::from_utf8(bytes).unwrap();
    for (from, to) in [
        ("\"residual_bits\":10", "\"residual_bits\": 10"),
        ("zklora-exact/1", "zklora-exact/2"),
        ("\"profile\"", "\"more\":1,\"profile\""),
        ("\n", ""),
    ] {
        assert!(text.contains(from));
        assert!(
            matches!(Plan::parse(text.replacen(from, to, 1).as_bytes()), Err(BuildError::Plan(_))),
            "{to}"
        );
    }
    for (from, to) in [
        (&plan.base_model.to_string()[..8], "00000000"),
        ("\"residual_bits\":10", "\"residual_bits\":11"),
        ("\"hot\":[{\"attention\":[],\"mlp\":[]},", "\"hot\":["),
        ("\"attention\":[]", "\"attention\":[128]"),
        ("\"attention\":[]", "\"attention\":[5,5]"),
    ] {
        let changed = Plan::parse(text.replacen(from, to, 1).as_bytes()).unwrap();
        assert!(matches!(ExactModel::new(&fixture.base, changed), Err(BuildError::Plan(_))), "{to}");
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_name() {
    let fixture = Fixture::open();
    let model = fixture.model(Profile::Faithful);
    let good = fixture.modules();
    let refusal = |change: &dyn Fn(&mut Vec<Module<'_>>)| {
        let mut modules = fixture.modules();
        change(&mut modules);
        ExactAdapter::new(&model, &modules).err().unwrap().to_string()
    };
    assert!(refusal(&|m| m[1].name = m[0].name).contains("comes twice"));
    assert!(refusal(&|m| m[0].name = "transformer.h.3.attn.c_attn").contains("h.3.attn.c_attn"));
    assert!(refusal(&|m| m[0].b = &m[0].b[1..]).contains("expected A of 128 x 8"));
    assert!(refusal(&|m| m[0].scale = 1e12).contains("too large"));
    assert!(refusal(&|m| m[0].scale *= 1e-6).contains("could reach"));
    assert!(refusal(&|m| m[0].scale = f64::NAN).contains("scale"));
    assert!(refusal(&|m| m[0].a = &[2048; 1024]).contains("12 bits"));
    // A module may be missing.
    assert!(ExactAdapter::new(&model, &good[..3]).is_ok());
}

#[test]
fn a_value_out_of_its_range_is_a_refusal_that_says_where() {
    let fixture = Fixture::open();
    let model = fixture.model(Profile::Faithful);
    let mut modules = fixture.modules();
    // The strongest adapter that the formats admit.
    let (a, b) = (vec![2047; modules[0].a.len()], vec![2047; modules[0].b.len()]);
    (modules[0].a, modules[0].b, modules[0].scale) = (&a, &b, modules[0].scale * 1000.0);
    let adapter = ExactAdapter::new(&model, &modules).unwrap();
    let refusal = model.losses(&fixture.texts()[0].token_ids, Some(&adapter)).unwrap_err();
    assert!(matches!(&refusal, Refusal::OutOfRange { .. }), "{refusal}");
    assert!(refusal.to_string().starts_with("h.0.attn: "), "{refusal}");
}

struct Fixture {
    base: BaseModel,
    lora: LoraAdapter,
    quantised: Vec<Quantised>,
}

#[derive(Deserialize)]
struct Text {
    name: String,
    token_ids: Vec<u32>,
    base: Float,
    adapter: Float,
}

/// What transformers and PEFT compute.
#[derive(Deserialize)]
struct Float {
    loss: f64,
}

impl Fixture {
    fn open() -> Self {
        let fixtures = repository().join("fixtures");
        let base = BaseModel::open(fixtures.join("gpt2-tiny")).unwrap();
        let lora = LoraAdapter::open(fixtures.join("lora-es"), &base.projections()).unwrap();
        let quantised = lora.modules.iter().map(quantise).collect();
        Self { base, lora, quantised }
    }

    fn texts(&self) -> Vec<Text> {
        let json = fs::read(repository().join("fixtures/goldens.json")).unwrap();
        let goldens: Value = serde_json::from_slice(&json).unwrap();
        serde_json::from_value(goldens["texts"].clone()).unwrap()
    }

    fn model(&self, profile: Profile) -> ExactModel {
        let texts: Vec<Vec<u32>> = self.texts().into_iter().map(|text| text.token_ids).collect();
        ExactModel::new(&self.base, Plan::calibrate(&self.base, profile, &texts).unwrap()).unwrap()
    }

    fn modules(&self) -> Vec<Module<'_>> {
        self.lora
            .modules
            .iter()
            .zip(&self.quantised)
            .map(|(m, q)| Module { name: &m.name, a: &q.a, b: &q.b, rank: m.rank, scale: q.scale })
            .collect()
    }

    fn adapter(&self, model: &ExactModel) -> ExactAdapter {
        ExactAdapter::new(model, &self.modules()).unwrap()
    }

    /// The committed integers as the script reads them: safetensors with scales as metadata.
    fn integers(&self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let (mut data, mut scales) = (Vec::new(), serde_json::Map::new());
        for module in self.modules() {
            let columns = module.b.len() / module.rank;
            for (part, values, shape) in [
                ("a", module.a, [module.a.len() / module.rank, module.rank]),
                ("b", module.b, [module.rank, columns]),
            ] {
                let from = data.len();
                data.extend(values.iter().flat_map(|w| w.to_le_bytes()));
                let entry =
                    serde_json::json!({ "dtype": "I16", "shape": shape, "data_offsets": [from, data.len()] });
                header.insert(format!("{}.{part}", module.name), entry);
            }
            // As many digits as it takes.
            scales.insert(module.name.into(), format!("{:e}", module.scale).into());
        }
        header.insert("__metadata__".into(), scales.into());
        let header = serde_json::to_vec(&header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn python() -> PathBuf {
    let output = Command::new(repository().join("scripts/setup-python.sh")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}
