//! The test vectors of `fixtures/vectors`: what was valid stays valid, what was not is refused for the same reason.

use std::io::Cursor;

use crate::common::{client_of_redacted, refused_pinned};
use zklora_testing::vectors::load;
use zklora_verdict::{Pins, Verifier};

#[test]
fn every_vector_has_its_verdict() {
    let (mut valid, mut invalid) = (0, 0);
    for vector in load() {
        let mut pins = Pins::default();
        if let Some(client) = client_of_redacted(&vector.bytes) {
            (pins.redacted, pins.clients) = (true, vec![client]);
        }
        match &vector.reason {
            None => {
                // One of them is of the set `compact`.
                let verifier = Verifier::new(pins).with_min_security(65);
                let verdict = verifier.check(Cursor::new(&vector.bytes));
                assert!(verdict.outcome.is_ok(), "{}: {}", vector.name, verdict.outcome.unwrap_err());
                valid += 1;
            }
            Some(reason) => {
                refused_pinned(pins, &vector.name, &vector.bytes, &reason.kind, &[&reason.says]);
                invalid += 1;
            }
        }
    }
    // A folder that is not there, or half of it, would pass, too.
    assert!(valid >= 4 && invalid >= 50, "{valid} valid and {invalid} invalid vectors");
}
