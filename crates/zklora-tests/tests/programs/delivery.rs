//! An adapter that is delivered, from the contributor's state to a folder that is used instead of the contributor.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use zklora_circuit::commitment::{Opening, Salt};
use zklora_contributor::state::State;
use zklora_delivery::seal;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_proto::{Manifest, ModuleEntry, SecretKey, SignedManifest};
use zklora_testing::schemas::read_document;
use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, failure, program, success};

use crate::exact;

const TEXT: &str = "El administrador debe comprobar la configuración de la red.";

/// A contributor with a proved session, and the client of that session.
struct Sold {
    world: Programs,
    bundle: PathBuf,
    /// The loss of [`TEXT`] with the contributor's deltas.
    loss: f64,
    rows: u64,
    client: String,
}

impl Sold {
    fn new() -> Self {
        let world = Programs::new();
        let server = world.serve();
        let said = success(world.loss(&server.address, TEXT).arg("--wait"));
        server.stop();
        let session = &said["sessions"][0];
        let client = session["client"].as_str().unwrap().to_owned();
        let bundle = world.path("out").join(format!("{}.pf", session["session"].as_str().unwrap()));
        let rows = session["rows"].as_array().unwrap().iter().map(|rows| rows.as_u64().unwrap()).sum();
        Self { bundle, loss: said["adapter_loss"].as_f64().unwrap(), rows, client, world }
    }

    fn deliver(&self, to: &str, out: &str) -> Command {
        let mut command = program("zklora-contributor");
        command
            .args(["deliver", "--json", "--adapter", &self.world.adapter, "--to", to, "--state"])
            .arg(self.world.path("state"))
            .arg("--out")
            .arg(self.world.path(out));
        command
    }

    /// `accept --json` with all pins, into the folder `bought`.
    fn accept(&self, package: &str) -> Command {
        let mut command = self.accept_unpinned(package);
        command.args(["--adapter", &self.world.adapter, "--contributor", &self.world.contributor]);
        command.arg("--bundle").arg(&self.bundle);
        command
    }

    fn accept_unpinned(&self, package: &str) -> Command {
        let mut command = program("zklora-base-user");
        command
            .args(["accept", "--json"])
            .arg(self.world.path(package))
            .arg("--out")
            .arg(self.world.path("bought"))
            .arg("--identity")
            .arg(self.world.path("client.key"));
        command
    }

    /// Refused, and nothing is written.
    fn refused(&self, command: &mut Command) -> String {
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(self.world.folder.path())
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let before = names();
        let said = failure(command);
        assert_eq!(names(), before);
        said
    }

    fn state(&self) -> State {
        State::open(&self.world.path("state")).unwrap()
    }

    /// Writes a package as somebody would who has the contributor's key.
    fn seal(&self, manifest: &SignedManifest, openings: &[Opening], out: &str) {
        let (file, to) = (std::fs::File::create(self.world.path(out)).unwrap(), self.client.parse().unwrap());
        let mut rng: rand::rngs::StdRng = rand::make_rng();
        seal(file, &self.state().key, manifest, openings, to, &mut rng, |_| {}).unwrap();
    }
}

/// A delivered folder in which one weight was changed by as little as float32 can.
fn copy_changed(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let tensors = to.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&tensors).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&tensors, bytes).unwrap();
}

#[test]
fn what_is_accepted_is_what_was_proved_and_serves_in_its_place() {
    let sold = Sold::new();
    let said = success(&mut sold.deliver(&sold.client, "package"));
    assert_eq!(
        (&said["adapter"], &said["recipient"]),
        (&sold.world.adapter.clone().into(), &sold.client.clone().into())
    );
    assert_eq!(said["bytes"], std::fs::metadata(sold.world.path("package")).unwrap().len());
    let error = failure(&mut sold.deliver(&sold.client, "package"));
    assert!(error.contains("is there already"), "{error}");

    let base = fixtures().join("gpt2-tiny");
    let accepted = success(sold.accept("package").arg("--base-model").arg(&base));
    for (field, expected) in [
        ("adapter", sold.world.adapter.clone().into()),
        ("contributor", sold.world.contributor.clone().into()),
        ("digest", said["digest"].clone()),
        ("modules", 12.into()),
        ("rows", sold.rows.into()),
        ("format", "zklora-accept/1".into()),
        ("pinned", true.into()),
        ("pins", json!({ "adapter": true, "contributor": true, "base_model": true, "client": false })),
    ] {
        assert_eq!(accepted[field], expected, "{field}");
    }
    assert_eq!(accepted["bundles"].as_array().unwrap().len(), 1);

    // What `zklora-hf` enforces is what PEFT needs; `scripts/check_peft.py` asks PEFT itself.
    let bought = sold.world.path("bought");
    let adapter = LoraAdapter::open(&bought, &BaseModel::open(&base).unwrap().projections()).unwrap();
    let original =
        LoraAdapter::open(fixtures().join("lora-es"), &BaseModel::open(&base).unwrap().projections())
            .unwrap();
    assert_eq!(adapter.modules.len(), original.modules.len());
    assert!(adapter.modules.iter().all(|module| module.scaling == 1.0));
    assert_eq!(adapter.base_model_name.as_deref(), base.to_str());

    // In integers it is the very adapter that was committed to: the buyer gets the seller's losses to the last digit.
    let plan = sold.world.path("plan.json");
    success(&mut exact::calibrate("gpt2-tiny", "en-heldout.txt", &plan));
    let loss = |lora: &Path| {
        success(exact::loss(&plan, "Un texto de prueba para el adaptador.").arg("--lora").arg(lora))
    };
    let (of_buyer, of_seller) = (loss(&bought), loss(&fixtures().join("lora-es")));
    assert_eq!(of_buyer["adapter"], of_seller["adapter"]);
    assert_eq!(of_buyer["adapter_id"], sold.world.adapter.as_str());
    let changed = sold.world.path("changed");
    copy_changed(&bought, &changed);
    let error = failure(exact::loss(&plan, "Un texto").arg("--lora").arg(&changed));
    assert!(error.contains("has other weights than were delivered"), "{error}");

    let local = success(
        program("zklora-base-user")
            .args(["loss", "--json", "--text", TEXT, "--base-model"])
            .arg(&base)
            .arg("--lora")
            .arg(&bought),
    );
    let local = local["adapter_loss"].as_f64().unwrap();
    // The session rounded its activations to 15 bits and a sign.
    assert!((local - sold.loss).abs() < 2e-3, "{local} {}", sold.loss);

    let error = sold.refused(&mut sold.accept("package"));
    assert!(error.contains("bought is there already"), "{error}");
}

#[test]
fn what_was_not_proved_is_refused_by_name_and_nothing_is_written() {
    let sold = Sold::new();
    let state = sold.state();
    let entries = state.manifest.manifest().modules();

    // One weight of one module, in a package that is otherwise as it should be.
    let copy = |opening: &Opening, edit: &dyn Fn(&mut [i16], &mut [u64; 8])| {
        let (mut a, mut salt) = (opening.a().to_vec(), *opening.salt().words());
        edit(&mut a, &mut salt);
        Opening::new(opening.shape(), a, opening.b().to_vec(), Salt::from_words(salt).unwrap()).unwrap()
    };
    let change = |module: usize, edit: &dyn Fn(&mut [i16], &mut [u64; 8])| -> Vec<Opening> {
        let edit_one = |(i, opening)| copy(opening, if i == module { edit } else { &|_, _| {} });
        state.openings.iter().enumerate().map(edit_one).collect()
    };
    let weight = change(7, &|a, _| a[100] ^= 1);
    let salt = change(3, &|_, salt| salt[0] ^= 1);
    for (openings, module) in [(weight, 7), (salt, 3)] {
        sold.seal(&state.manifest, &openings, "false");
        for mut accept in [sold.accept("false"), sold.accept_unpinned("false")] {
            let said = sold.refused(&mut accept);
            let name = entries[module].name();
            assert!(said.contains(&format!("module {name}: the weights and the salt")), "{said}");
        }
    }

    // Another scale is another manifest, and so another adapter.
    let entry = |(i, entry): (usize, &ModuleEntry)| {
        let scale = entry.scale() * if i == 5 { 2.0 } else { 1.0 };
        ModuleEntry::new(entry.name().into(), entry.shape(), scale, *entry.commitment()).unwrap()
    };
    let old = state.manifest.manifest();
    let scaled = Manifest::new(
        *old.contributor(),
        *old.base_model(),
        old.created(),
        entries.iter().enumerate().map(entry).collect(),
    );
    let scaled = scaled.unwrap().sign(&state.key);
    sold.seal(&scaled, &state.openings, "scaled");
    let named = format!("module {}: its scale is", entries[5].name());
    let said = sold.refused(&mut sold.accept("scaled"));
    assert!(said.contains("the package is of adapter") && said.contains(&named), "{said}");
    let said = sold.refused(sold.accept_unpinned("scaled").arg("--bundle").arg(&sold.bundle));
    assert!(said.contains("the package is of another adapter than") && said.contains(&named), "{said}");

    // What holds by itself, but is not what was asked for.
    sold.seal(&state.manifest, &change(0, &|_, _| {}), "true");
    let foreign = fixtures().join("vectors/valid");
    let foreign = std::fs::read_dir(foreign).unwrap().map(|file| file.unwrap().path());
    let foreign = foreign.filter(|path| path.extension() == Some("pf".as_ref())).min().unwrap();
    let said = sold.refused(sold.accept_unpinned("true").arg("--bundle").arg(&foreign));
    assert!(said.contains("the contributor is"), "{said}");
    let said = sold.refused(sold.accept_unpinned("true").args(["--contributor", &sold.client]));
    assert!(said.contains("the package is of contributor"), "{said}");
    let llama = fixtures().join("llama-tiny");
    let said = sold.refused(sold.accept_unpinned("true").arg("--base-model").arg(&llama));
    assert!(said.contains("the package is for the base model"), "{said}");

    // A bundle whose proof was damaged.
    let mut bytes = std::fs::read(&sold.bundle).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(sold.world.path("damaged.pf"), bytes).unwrap();
    let damaged = sold.world.path("damaged.pf");
    let said = sold.refused(sold.accept_unpinned("true").arg("--bundle").arg(&damaged));
    assert!(said.contains("damaged.pf"), "{said}");

    let output = sold.accept_unpinned("true").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = zklora_tests::programs::text(&output.stderr);
    assert!(said.contains("NOT PINNED: nothing says that"), "{said}");
    let said: serde_json::Value = read_document(&output.stdout);
    assert_eq!((&said["pinned"], &said["pins"]["adapter"]), (&json!(false), &json!(false)));
    std::fs::remove_dir_all(sold.world.path("bought")).unwrap();
    // Not even with a bundle, which says which adapter it is of by itself.
    let output = sold.accept_unpinned("true").arg("--bundle").arg(&sold.bundle).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", zklora_tests::programs::text(&output.stderr));
    std::fs::remove_dir_all(sold.world.path("bought")).unwrap();
    success(sold.accept_unpinned("true").arg("--unpinned"));
}

#[test]
fn an_identity_is_not_made_for_a_package() {
    let sold_to = Programs::new();
    let state = State::open(&sold_to.path("state")).unwrap();
    let key = SecretKey::generate();
    let mut rng: rand::rngs::StdRng = rand::make_rng();
    let file = std::fs::File::create(sold_to.path("package")).unwrap();
    seal(file, &state.key, &state.manifest, &state.openings, key.public(), &mut rng, |_| {}).unwrap();
    let accept = |identity: &Path| {
        let mut command = program("zklora-base-user");
        command.arg("accept").arg(sold_to.path("package")).arg("--out").arg(sold_to.path("bought"));
        command.arg("--identity").arg(identity);
        command
    };
    let missing = sold_to.path("missing.key");
    failure(&mut accept(&missing));
    assert!(!missing.exists() && !sold_to.path("bought").exists());
    let other = sold_to.path("other.key");
    SecretKey::generate().save(&other).unwrap();
    let said = failure(&mut accept(&other));
    assert!(said.contains(&format!("the package is for {}", key.public())), "{said}");
    let mut deliver = program("zklora-contributor");
    deliver.args(["deliver", "--adapter", &"0".repeat(64), "--to", &key.public().to_string(), "--state"]);
    let said = failure(deliver.arg(sold_to.path("state")).arg("--out").arg(sold_to.path("none")));
    assert!(said.contains(&format!("is the state of adapter {}", sold_to.adapter)), "{said}");
}
