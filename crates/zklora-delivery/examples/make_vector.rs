//! Writes `fixtures/vectors/delivery` anew: `cargo run --release -p zklora-delivery --example make_vector`.
//!
//! The recipient's key and the weights are fixed; salts and the contributor's key are random, so that the files differ from run to run.

use std::fs;
use std::path::Path;

use serde_json::json;
use zklora_delivery::seal;
use zklora_proto::SecretKey;
use zklora_testing::{World, known_key, rng, shape};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/vectors/delivery");
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    // More than a chunk in all, and the first module ends within it.
    let shapes = [shape(9, 3, 41), shape(512, 48, 512)];
    let world = World::with_keys(SecretKey::generate(), known_key(0x42), &shapes, 6);
    let mut package = Vec::new();
    let to = world.client().public();
    let digest =
        seal(&mut package, world.contributor(), world.manifest(), world.openings(), to, &mut rng(6), |_| {})
            .unwrap();
    fs::write(folder.join("package.zkd"), package).unwrap();
    let opening = &world.openings()[0];
    let expected = json!({
        "recipient_secret": "42".repeat(32),
        "recipient": to,
        "adapter": world.manifest().adapter_id(),
        "digest": digest,
        // Text, for JSON's numbers need not hold 64 bits.
        "salt": opening.salt().words().map(|word| word.to_string()),
        "a": opening.a(),
        "b": opening.b(),
    });
    fs::write(folder.join("expected.json"), format!("{expected}\n")).unwrap();
}
