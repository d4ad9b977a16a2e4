//! What a proof is worth: every way in which a false statement may slip through, with its probability and its source.

use std::io::{self, BufReader, Write};
use std::path::PathBuf;

use clap::Args;
use zklora_circuit::circuit::BatchVerifier;
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::DEFAULT_DEGREE_BITS;
use zklora_circuit::security::Soundness;
use zklora_proto::bundle::Bundle;
use zklora_proto::{ModuleShape, counted};
use zklora_verdict::{Pins, Refusal, Verifier, open};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A bundle; without one, every parameter set at the planner's largest circuit
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Explains a bundle or the parameter sets, or says why there is nothing to explain: a bundle that is not valid is worth nothing.
/// Fails only if `out` does.
pub fn explain(args: &ExplainArgs, out: &mut dyn Write) -> io::Result<Result<(), Refusal>> {
    match &args.file {
        Some(file) => explain_file(file, out),
        None => explain_sets(out).map(Ok),
    }
}

fn explain_file(file: &std::path::Path, out: &mut dyn Write) -> io::Result<Result<(), Refusal>> {
    // Whatever the level: it is what is asked for.
    let client = open(file).ok().and_then(|file| Bundle::from_reader(BufReader::new(file)).ok());
    // Whoever folded: what is explained are the proofs.
    let pins = match client.map(|bundle| bundle.receipt().receipt().client) {
        Some(client) => Pins { clients: vec![client], redacted: true, ..Pins::default() },
        None => Pins::default(),
    };
    let verdict = Verifier::new(pins).with_min_security(0).check_file(file);
    let session = match verdict.outcome {
        Ok(session) => session,
        Err(refusal) => return Ok(Err(refusal)),
    };
    for (index, batch) in session.batches.iter().enumerate() {
        writeln!(
            out,
            "proof {index}: parameter set {:?}, {}, 2^{} rows",
            session.security.name(),
            counted(batch.modules.len(), "module"),
            batch.degree_bits
        )?;
        writeln!(out, "{}", batch.soundness)?;
    }
    Ok(Ok(()))
}

fn explain_sets(out: &mut dyn Write) -> io::Result<()> {
    for security in Security::ALL {
        // The terms depend on the circuit's size alone, so that a small one stands for all.
        let shape = ModuleShape::new(16, 2, 16).map_err(io::Error::other)?;
        let verifier = BatchVerifier::build(security, &[shape]).map_err(io::Error::other)?;
        let parameters = verifier.parameters(&[1 << 20]);
        let largest = parameters.with_degree(DEFAULT_DEGREE_BITS, &security.config().fri_config);
        writeln!(
            out,
            "parameter set {:?}: a circuit of 2^{DEFAULT_DEGREE_BITS} rows, a module of 2^20 rows of transcript",
            security.name()
        )?;
        writeln!(out, "{}", Soundness::new(&largest))?;
    }
    Ok(())
}
