//! No secret leaves the state folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use zklora_circuit::gate::weight::BIAS;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, text};

/// A secret that is searched for: a name for people, and bytes.
type Needle = (String, Vec<u8>);

/// Weights in a row of which enough to be no coincidence: 8 of them.
const RUN: usize = 8;

#[test]
fn secrets_stay_in_the_state_folder() {
    let world = Programs::new();
    let server = world.serve();
    let spanish = fs::read_to_string(fixtures().join("text/es-heldout.txt")).unwrap();
    let client = world.loss(&server.address, spanish.lines().next().unwrap()).arg("--wait").output().unwrap();
    assert!(client.status.success(), "{}", text(&client.stderr));
    let rest = server.stop();

    let needles = needles(&world);
    assert_eq!(needles.iter().filter(|(name, _)| name.starts_with("a commitment seed")).count(), 2);
    assert!(needles.len() > 1000);
    // The search finds a secret where it is: otherwise it would prove nothing.
    let state = fs::read(world.path("state/openings.safetensors")).unwrap();
    let found = needles.iter().filter(|(_, needle)| contains(&state, needle)).count();
    assert!(found > 50, "only {found} of {} secrets were found where they belong", needles.len());

    let mut searched = vec![
        ("the contributor's output".to_owned(), rest.into_bytes()),
        ("the client's output".to_owned(), client.stdout),
        ("the client's log".to_owned(), client.stderr),
        ("the contributor's log".to_owned(), fs::read(world.path("contributor.log")).unwrap()),
        ("the manifest".to_owned(), fs::read(world.path("state/manifest.json")).unwrap()),
    ];
    let mut bundles = 0;
    for entry in fs::read_dir(world.path("out")).unwrap() {
        let path = entry.unwrap().path();
        bundles += usize::from(path.extension().is_some_and(|e| e == "pf"));
        searched.push((path.display().to_string(), fs::read(&path).unwrap()));
    }
    assert_eq!((bundles, searched.len()), (1, 6), "nothing but one bundle is in the out folder");
    for (place, bytes) in &searched {
        for (name, needle) in &needles {
            assert!(!contains(bytes, needle), "{name} is in {place}");
        }
    }
}

#[test]
fn secret_files_are_for_their_owner_only() {
    let world = Programs::new();
    let server = world.serve();
    assert!(world.loss(&server.address, "Debian es libre.").status().unwrap().success());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for secret in ["state/identity.key", "state/openings.safetensors", "client.key"] {
        assert_eq!(mode(&world.path(secret)), 0o600, "{secret}");
    }
    let records: Vec<_> = fs::read_dir(world.path("sessions")).unwrap().map(|r| r.unwrap().path()).collect();
    assert_eq!((records.len(), mode(&records[0])), (1, 0o600));
    for folder in ["state", "sessions"] {
        assert_eq!(mode(&world.path(folder)), 0o700, "{folder}");
    }
}

/// Every secret in every form in which it might leak: floats of the adapter, quantised weights in rows and columns, in 16,
/// 32 and 64 bits, as floats and in the packed words of the commitment, salts, and private keys in bytes and in text.
fn needles(world: &Programs) -> Vec<Needle> {
    let mut needles = Vec::new();
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    let adapter = LoraAdapter::open(fixtures().join("lora-es"), &base.projections()).unwrap();
    for module in &adapter.modules {
        for (matrix, weights, columns) in [("A", &module.a, module.rank), ("B", &module.b, module.d_out)] {
            for (at, run) in runs(weights, columns) {
                let bytes = run.iter().flat_map(|w| w.to_le_bytes()).collect();
                needles.push((format!("{} {matrix} float {at}", module.name), bytes));
            }
        }
    }
    let state = fs::read(world.path("state/openings.safetensors")).unwrap();
    for (name, tensor) in SafeTensors::deserialize(&state).unwrap().tensors() {
        if name.ends_with("salt") {
            for (i, element) in tensor.data().chunks_exact(8).enumerate() {
                needles.push((format!("{name} {i}"), element.to_vec()));
                let number = u64::from_le_bytes(element.try_into().unwrap());
                needles.push((format!("{name} {i} in decimal"), number.to_string().into_bytes()));
                needles.push((format!("{name} {i} in hexadecimal"), hex(element)));
            }
            continue;
        }
        let weights: Vec<i16> =
            tensor.data().chunks_exact(2).map(|w| i16::from_le_bytes([w[0], w[1]])).collect();
        for (at, run) in runs(&weights, tensor.shape()[1]) {
            // Runs of small or equal numbers may come about by chance.
            if run.iter().filter(|w| w.unsigned_abs() > 16).count() < RUN / 2 {
                continue;
            }
            let mut push = |form: &str, bytes: Vec<u8>| needles.push((format!("{name} {form} {at}"), bytes));
            push("int16", run.iter().flat_map(|w| w.to_le_bytes()).collect());
            push("int64", run.iter().flat_map(|w| i64::from(*w).to_le_bytes()).collect());
            push("float", run.iter().flat_map(|w| f32::from(*w).to_le_bytes()).collect());
            push("double", run.iter().flat_map(|w| f64::from(*w).to_le_bytes()).collect());
            let texts: Vec<String> = run.iter().map(i16::to_string).collect();
            push("text", texts.join(",").into_bytes());
            push("text", texts.join(", ").into_bytes());
            let word =
                run[..5].iter().rev().fold(0u64, |word, w| word << 12 | (*w as i64 + BIAS as i64) as u64);
            push("packed", word.to_le_bytes().to_vec());
        }
    }
    for record in fs::read_dir(world.path("sessions")).unwrap() {
        let record: Value = serde_json::from_slice(&fs::read(record.unwrap().path()).unwrap()).unwrap();
        let seed = record["seed"].as_str().unwrap();
        needles.push(("a commitment seed".to_owned(), seed.as_bytes().to_vec()));
        let bytes = (0..32).map(|i| u8::from_str_radix(&seed[2 * i..2 * i + 2], 16).unwrap()).collect();
        needles.push(("a commitment seed in bytes".to_owned(), bytes));
    }
    for key in ["state/identity.key", "client.key"] {
        let text = fs::read_to_string(world.path(key)).unwrap();
        let text = text.trim_end();
        needles.push((key.to_owned(), text.as_bytes().to_vec()));
        let bytes = (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect();
        needles.push((format!("{key} in bytes"), bytes));
    }
    needles
}

/// Runs of neighbours in the rows and in the columns of a matrix, some from each.
fn runs<T: Copy>(matrix: &[T], columns: usize) -> Vec<(String, Vec<T>)> {
    let rows = matrix.len() / columns;
    let mut runs = Vec::new();
    for row in (0..rows).step_by(rows.div_ceil(8)) {
        for column in (0..columns.saturating_sub(RUN - 1)).step_by(columns.div_ceil(8)) {
            let start = row * columns + column;
            runs.push((format!("row {row}"), matrix[start..start + RUN].to_vec()));
        }
    }
    for column in (0..columns).step_by(columns.div_ceil(8)) {
        for row in (0..rows.saturating_sub(RUN - 1)).step_by(rows.div_ceil(8)) {
            let run = (row..row + RUN).map(|row| matrix[row * columns + column]).collect();
            runs.push((format!("column {column}"), run));
        }
    }
    runs
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into_bytes()
}
