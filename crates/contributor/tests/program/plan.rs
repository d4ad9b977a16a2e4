//! `zklora-contributor plan`, and adapters that do not fit.

use std::path::Path;
use std::process::Output;

use crate::fixtures;
use serde_json::Value;
use zklora_contributor::state::State;
use zklora_testing::schemas::read_document;

fn contributor(args: &[&str]) -> Output {
    crate::contributor().args(args).output().unwrap()
}

fn of_fixture(args: &[&str]) -> Output {
    let (base, lora) = (fixtures().join("gpt2-tiny"), fixtures().join("lora-es"));
    let adapter = ["plan", "--base-model", base.to_str().unwrap(), "--lora", lora.to_str().unwrap()];
    contributor(&[&adapter, args].concat())
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read_document(&output.stdout)
}

fn state(folder: &Path) -> String {
    let state = folder.join("state");
    State::create(&state, &fixtures().join("gpt2-tiny"), &fixtures().join("lora-es")).unwrap();
    state.to_str().unwrap().into()
}

#[test]
fn the_plan_of_an_adapter_is_told_to_programs() {
    let plan = json(&of_fixture(&["--memory", "8GiB", "--proving-threads", "2", "--json"]));
    assert_eq!((&plan["format"], &plan["security"]), (&"zklora-plan/1".into(), &"standard".into()));
    assert_eq!(
        (&plan["memory"], &plan["threads"], &plan["modules"]),
        (&(8usize << 30).into(), &2.into(), &12.into())
    );

    let batches = plan["batches"].as_array().unwrap();
    let circuits = plan["circuits"].as_array().unwrap();
    let mut modules: Vec<&str> = Vec::new();
    for batch in batches {
        modules.extend(batch["modules"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()));
        assert!((batch["circuit"].as_u64().unwrap() as usize) < circuits.len());
    }
    modules.sort_unstable();
    modules.dedup();
    assert_eq!(modules.len(), 12);
    assert!(modules[0].starts_with("transformer.h.0."));
    for circuit in circuits {
        let rows = circuit["rows"].as_u64().unwrap();
        assert!(rows <= 1 << circuit["degree_bits"].as_u64().unwrap());
        assert!(circuit["memory"]["proving"].as_u64() > Some(0) && circuit["proof_bytes"].as_u64() > Some(0));
    }
    assert!(plan["peak_memory"].as_u64().unwrap() <= 8 << 30);
    assert_eq!(plan["chosen"]["proofs"], batches.len());
    let cells = |cost: &Value| cost["cells"].as_u64().unwrap();
    assert!(plan["tried"].as_array().unwrap().iter().all(|cost| cells(cost) >= cells(&plan["chosen"])));
}

#[test]
fn a_state_gives_the_plan_of_its_adapter_and_people_are_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let state = state(folder.path());
    let options = ["--memory", "8GiB", "--proving-threads", "2"];
    let of_state = contributor(&[&["plan", "--state", &state], &options[..]].concat());
    assert_eq!(of_state.stdout, of_fixture(&options).stdout);
    let text = String::from_utf8(of_state.stdout).unwrap();
    for words in [
        "proof 0, circuit 0: transformer.h.",
        " rows (2^",
        "in all: ",
        "why: the cheapest was ",
        "1.00 times the cost: ",
    ] {
        assert!(text.contains(words), "{text} does not say {words}");
    }
}

#[test]
fn less_memory_never_means_that_more_is_taken() {
    let mut last = u64::MAX;
    for memory in ["8GiB", "1GiB", "200MiB"] {
        let plan = json(&of_fixture(&["--memory", memory, "--proving-threads", "2", "--json"]));
        let (peak, limit) = (plan["peak_memory"].as_u64().unwrap(), plan["memory"].as_u64().unwrap());
        assert!(peak <= limit && peak <= last, "{memory}: {peak}");
        last = peak;
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_before_it_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let state = state(folder.path());
    let out = folder.path().join("out");
    let serve =
        ["serve", "--open", "--state", &state, "--listen", "127.0.0.1:0", "--out-dir", out.to_str().unwrap()];
    for output in [
        contributor(&[&serve[..], &["--memory", "20MiB"]].concat()),
        contributor(&["plan", "--state", &state, "--memory", "20MiB"]),
    ] {
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        for words in [
            "cannot be proved",
            "module transformer.h.",
            "MiB of memory, expected at most 20 MiB",
            "allow more memory",
        ] {
            assert!(error.contains(words), "{error} does not say {words}");
        }
    }
    let output = contributor(&["plan", "--state", &state, "--memory", "some"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("expected one such as 2GiB"));
}
