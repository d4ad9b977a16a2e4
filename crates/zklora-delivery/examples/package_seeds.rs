//! Makes the packages that fuzzing of the target `package` starts from:
//!
//!     cargo run --release -p zklora-delivery --example package_seeds -- fuzz/seeds/package

use std::fs;
use std::path::PathBuf;

use zklora_delivery::seal;
use zklora_testing::{World, known_key, rng, shape};

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("a folder"));
    fs::create_dir_all(&folder).unwrap();
    for (name, shapes) in
        [("small", &[shape(3, 1, 4)][..]), ("two-chunks", &[shape(5, 1, 3), shape(256, 80, 256)])]
    {
        let world = World::with_keys(known_key(1), known_key(2), shapes, 1);
        let mut package = Vec::new();
        let (manifest, openings) = (world.manifest(), world.openings());
        seal(
            &mut package,
            world.contributor(),
            manifest,
            openings,
            world.client().public(),
            &mut rng(1),
            |_| {},
        )
        .unwrap();
        fs::write(folder.join(name), package).unwrap();
    }
}
