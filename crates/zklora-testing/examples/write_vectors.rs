//! Writes every vector of `fixtures/vectors` as a whole file, and `verdicts.json` with what a verifier has to say of each: for
//! implementations that do not apply patches.
//!
//!     cargo run --release -p zklora-testing --example write_vectors -- FOLDER

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{env, fs};

use serde_json::json;
use zklora_testing::vectors::{client_of_redacted, load};

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).expect("usage: write_vectors FOLDER"));
    fs::create_dir_all(&folder)?;
    let mut verdicts = BTreeMap::new();
    for vector in load() {
        let name = vector.name.replace(['/', '\\'], "-").replace(".json", ".pf");
        fs::write(folder.join(&name), &vector.bytes)?;
        // Redacted bundles are valid for who takes their client's word.
        let redacted = client_of_redacted(&vector.bytes);
        verdicts.insert(name, json!({ "reason": vector.reason, "redacted_by": redacted }));
    }
    fs::write(folder.join("verdicts.json"), serde_json::to_vec_pretty(&verdicts)?)
}
