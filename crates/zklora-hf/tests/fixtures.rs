//! The model and the adapters in `fixtures/`, as transformers and PEFT wrote them.

use std::path::PathBuf;

use zklora_hf::{BaseModel, LoraAdapter};

#[test]
fn the_tiny_model_and_its_adapter_open() {
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    let adapter = LoraAdapter::open(fixtures().join("lora-es"), &base.projections()).unwrap();
    let targeted: Vec<&String> = adapter.modules.iter().map(|module| &module.name).collect();
    let projections = base.projections();
    let all: Vec<&String> = projections.iter().map(|projection| &projection.name).collect();
    assert_eq!(targeted, all, "the fixture targets every projection");
}

#[test]
fn adapters_that_are_more_than_lora_are_refused() {
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    for (adapter, why) in [
        ("dora", "use_dora is set: DoRA rescales the base model's weights"),
        ("bias", "bias is \"lora_only\", only \"none\" is supported"),
        ("modules-to-save", "modules_to_save is set: whole retrained modules come with the adapter"),
    ] {
        let folder = fixtures().join("unsupported").join(adapter);
        let message = LoraAdapter::open(folder, &base.projections()).unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}
