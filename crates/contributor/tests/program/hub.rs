//! `zklora-contributor init` with names in place of folders: over a network, and without one.

#[path = "../../../zklora-hub/tests/fake_hub/mod.rs"]
mod fake_hub;

use std::path::{Path, PathBuf};
use std::process::Output;

use fake_hub::{FakeHub, Repository};
use serde_json::Value;
use zklora_contributor::state::State;
use zklora_testing::schemas::read_document;

const BASE: &str = "distilgpt2";
const LORA: &str = "ng0-k1/distilgpt2-finetuned-es";
const TOKEN: &str = "hf_nobodyMaySeeThis";

#[test]
fn an_adapter_is_committed_to_by_name_and_then_without_a_network() {
    let base = Repository::of_folder(BASE, &fixture("gpt2-tiny"));
    let lora = Repository::of_folder(LORA, &fixture("lora-es"));
    let hub =
        FakeHub::start(
            move |request| {
                if request.path.contains(LORA) { lora.answer(request) } else { base.answer(request) }
            },
        );
    let folder = tempfile::tempdir().unwrap();
    let init = |state: &str, endpoint: &str, offline: &str| {
        let args = ["init", "--json", "--base-model", BASE, "--lora", LORA, "--state", state];
        contributor(folder.path(), &args, endpoint, offline)
    };

    let summary = summary(&init("online", &hub.url(), "0"));
    let direct =
        State::create(&folder.path().join("direct"), &fixture("gpt2-tiny"), &fixture("lora-es")).unwrap();
    assert_eq!(summary["base_model"], direct.manifest.manifest().base_model().to_string());
    assert_eq!(summary["modules"].as_array().unwrap().len(), 12);
    assert!(State::open(&folder.path().join("online")).is_ok());

    let endpoint = hub.url();
    drop(hub);
    let unreachable = init("nowhere", &endpoint, "0");
    let stderr = String::from_utf8_lossy(&unreachable.stderr);
    assert!(!unreachable.status.success() && stderr.contains("error: cannot reach 127.0.0.1"), "{stderr}");
    assert!(!folder.path().join("nowhere").exists());

    let offline = self::summary(&init("offline", &endpoint, "1"));
    assert_eq!(offline["base_model"], summary["base_model"]);
    let plan = ["plan", "--json", "--base-model", BASE, "--lora", LORA];
    assert_eq!(self::summary(&contributor(folder.path(), &plan, &endpoint, "1"))["modules"], 12);
}

#[test]
fn what_is_neither_a_folder_nor_a_name_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["init", "--base-model", "./nowhere", "--lora", LORA, "--state", "state"];
    let output = contributor(folder.path(), &args, "http://127.0.0.1:1", "0");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("\"./nowhere\": there is no such folder"), "{stderr}");
}

/// Runs the program in `folder`, which is its HF_HOME, too, with all that can be logged, and makes sure that it keeps
/// the token to itself.
fn contributor(folder: &Path, args: &[&str], endpoint: &str, offline: &str) -> Output {
    let mut command = crate::contributor();
    for proxy in
        ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy", "HF_HUB_CACHE"]
    {
        command.env_remove(proxy);
    }
    let output = command
        .args(args)
        .current_dir(folder)
        .envs([("HF_HOME", folder.to_str().unwrap()), ("HF_ENDPOINT", endpoint), ("HF_HUB_OFFLINE", offline)])
        .envs([("HF_TOKEN", TOKEN), ("RUST_LOG", "trace")])
        .output()
        .unwrap();
    for text in [&output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(text).contains(TOKEN));
    }
    output
}

fn summary(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read_document(&output.stdout)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}
