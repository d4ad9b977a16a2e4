//! Tells the linker where libtorch is, so that the binary and the tests find it again when they run, without
//! LD_LIBRARY_PATH: where it is now, or in the folder that ZKLORA_RPATH names, for a program that will be installed beside its
//! own libtorch.
#![allow(clippy::print_stdout, reason = "cargo reads it")]

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=ZKLORA_RPATH");
    // torch-sys says which libtorch it was linked with, but only to packages that depend on it directly.
    let folder = env::var("ZKLORA_RPATH")
        .or_else(|_| env::var("DEP_TCH_LIBTORCH_LIB"))
        .or_else(|_| env::var("LIBTORCH").map(|path| format!("{path}/lib")));
    if let Ok(folder) = folder {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
