//! The command `zklora-verifier`.

fn main() -> std::process::ExitCode {
    zklora_verifier::cli::main()
}
