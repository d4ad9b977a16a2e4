//! What people get wrong, and what they are told.

use std::fs;
use std::process::Command;

use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, failure, init, program, text};

/// Asserts that a text says all of these.
fn says(found: &str, expected: &[&str]) {
    for part in expected {
        assert!(found.contains(part), "{found:?} does not say {part:?}");
    }
}

#[test]
fn init_says_what_is_wrong_with_its_input() {
    let folder = tempfile::tempdir().unwrap();
    let (base, lora) = (fixtures().join("gpt2-tiny"), fixtures().join("lora-es"));
    let refused_with = |code, base: &std::path::Path, lora: &std::path::Path, expected: &[&str]| {
        let output = init(base, lora, &folder.path().join("state"));
        assert_eq!(output.status.code(), Some(code));
        says(&text(&output.stderr), expected);
        assert!(!folder.path().join("state/manifest.json").exists());
    };
    // Neither a folder nor a name: wrong usage.
    refused_with(2, &folder.path().join("nowhere"), &lora, &["nowhere"]);
    let refused = |base: &std::path::Path, lora: &std::path::Path, expected: &[&str]| {
        refused_with(1, base, lora, expected);
    };
    refused(&fixtures().join("text"), &lora, &["config.json"]);
    refused(&base, &base, &["adapter_config.json"]);
    refused(&base, &fixtures().join("unsupported/dora"), &["DoRA"]);
    refused(&base, &fixtures().join("unsupported/bias"), &["bias"]);
    refused(&base, &fixtures().join("unsupported/modules-to-save"), &["modules_to_save"]);

    let state = folder.path().join("state");
    assert!(init(&base, &lora, &state).status.success());
    let again = init(&base, &lora, &state);
    assert_eq!(again.status.code(), Some(1));
    says(&text(&again.stderr), &["manifest.json is there already", "--state"]);
}

/// An adapter that was never trained has a B of zeros.
#[test]
fn init_warns_of_an_adapter_that_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let zeroed = |name: &str, is_zeroed: &dyn Fn(&str) -> bool| {
        let lora = folder.path().join(name);
        copy_folder(&fixtures().join("lora-es"), &lora);
        let path = lora.join("adapter_model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors: Vec<_> = file
            .iter()
            .map(|(name, view)| {
                let data = if is_zeroed(name) { vec![0; view.data().len()] } else { view.data().to_vec() };
                (name, view.dtype(), view.shape().to_vec(), data)
            })
            .collect();
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::tensor::serialize_to_file(views, None, &path).unwrap();
        let output = init(&fixtures().join("gpt2-tiny"), &lora, &folder.path().join(format!("{name}-state")));
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    says(&zeroed("none", &|name| name.contains("lora_B")), &["WARN", "this adapter does nothing"]);
    let some = zeroed("some", &|name| name.contains("h.0.attn.c_attn.lora_B"));
    says(&some, &["1 of the adapter's 12 modules do nothing, transformer.h.0.attn.c_attn"]);
    assert!(!zeroed("all", &|_| false).contains("nothing"));
}

/// Causes are said once, and name the file and the setting.
#[test]
fn causes_are_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    copy_folder(&fixtures().join("gpt2-tiny"), &base);
    let said = |file: &str, content: &[u8], cause: &str| {
        let kept = fs::read(base.join(file)).unwrap_or_default();
        fs::write(base.join(file), content).unwrap();
        let mut command = program("zklora-base-user");
        let said = failure(command.args(["loss", "--text", "Debian es libre.", "--base-model"]).arg(&base));
        fs::write(base.join(file), kept).unwrap();
        says(&said, &[file, cause]);
        assert_eq!(said.matches(cause).count(), 1, "{said}");
    };
    said("config.json", b"{", "EOF while parsing");
    said("tokenizer.json", b"{", "EOF while parsing");
    said("tokenizer_config.json", b"{", "EOF while parsing");
    said("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull");
    said("config.json", b"\xef\xbb\xbf{}", "byte order mark");
}

#[test]
fn wrong_usage_has_a_code_of_its_own() {
    for program_name in ["zklora-contributor", "zklora-base-user", "zklora-verifier"] {
        assert_eq!(program(program_name).arg("--nonsense").output().unwrap().status.code(), Some(2));
        assert_eq!(program(program_name).arg("--help").output().unwrap().status.code(), Some(0));
    }
}

#[test]
fn serve_says_what_is_wrong() {
    let world = Programs::new();
    let serve = |state: &str, listen: &str| -> Command {
        let mut command = program("zklora-contributor");
        command.args(["serve", "--open", "--listen", listen, "--state"]).arg(world.path(state));
        command.arg("--out-dir").arg(world.path("out"));
        command
    };
    says(&failure(&mut serve("nowhere", "127.0.0.1:0")), &["nowhere", "zklora-contributor init"]);

    let server = world.serve();
    let taken = server.address.rsplit_once('@').unwrap().1;
    says(&failure(&mut serve("state", taken)), &["--listen", taken]);
    drop(server);

    fs::write(world.path("file"), "").unwrap();
    let mut command = program("zklora-contributor");
    command.args(["serve", "--open", "--listen", "127.0.0.1:0", "--state"]).arg(world.path("state"));
    command.arg("--out-dir").arg(world.path("file/out"));
    says(&failure(&mut command), &["making", "file/out"]);

    // A secret that others may read, and weights that were damaged.
    let openings = world.path("state/openings.safetensors");
    let mode =
        |mode| fs::set_permissions(&openings, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o640);
    says(&failure(&mut serve("state", "127.0.0.1:0")), &["0640", "0600", "chmod"]);
    mode(0o600);
    let mut bytes = fs::read(&openings).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&openings, bytes).unwrap();
    says(&failure(&mut serve("state", "127.0.0.1:0")), &["do not open the manifest's commitment"]);
}

#[test]
fn loss_says_what_is_wrong() {
    let world = Programs::new();
    let server = world.serve();
    let text = "Debian es libre.";
    let other_key = "11".repeat(32);
    let port = server.address.rsplit_once(':').unwrap().1;

    let foreign = format!("zklora://{other_key}@127.0.0.1:{port}");
    says(&failure(&mut world.loss(&foreign, text)), &["holds key", &world.contributor, &other_key]);

    let mut other_adapter = program("zklora-base-user");
    other_adapter
        .args(["loss", "--text", text, "--contributor", &server.address, "--adapter", &other_key])
        .arg("--base-model")
        .arg(fixtures().join("gpt2-tiny"))
        .arg("--identity")
        .arg(world.path("client.key"));
    says(&failure(&mut other_adapter), &["you pin adapter", &world.adapter]);

    // Another base model: the same with one weight changed.
    let other_base = world.path("other-base");
    copy_folder(&fixtures().join("gpt2-tiny"), &other_base);
    let weights = other_base.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let mut command = program("zklora-base-user");
    command
        .args(["loss", "--text", text, "--contributor", &server.address, "--adapter", &world.adapter])
        .arg("--base-model")
        .arg(&other_base)
        .arg("--identity")
        .arg(world.path("client.key"));
    says(&failure(&mut command), &["the adapter belongs to base model", "but you run base model"]);

    says(&failure(&mut world.loss(&server.address, "a")), &["at least 2 tokens"]);
    says(&failure(&mut world.loss(&server.address, &"palabra ".repeat(2000))), &["256"]);
    says(
        &failure(&mut world.loss(&format!("zklora://{}@no-such-host.invalid:1", world.contributor), text)),
        &["no-such-host.invalid", "no such host"],
    );
    let usage = world.loss("http://127.0.0.1", text).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    says(&zklora_tests::programs::text(&usage.stderr), &["zklora://"]);
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
