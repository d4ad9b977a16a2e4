//! The test vectors of `fixtures/vectors`: what was valid stays valid, what was not is refused for the same reason.

mod common;

use common::{accepted, refused};
use zklora_testing::vectors::load;

#[test]
fn every_vector_has_its_verdict() {
    let (mut valid, mut invalid) = (0, 0);
    for vector in load() {
        match &vector.reason {
            None => {
                accepted(&vector.bytes);
                valid += 1;
            }
            Some(reason) => {
                refused(&vector.name, &vector.bytes, &reason.kind, &[&reason.says]);
                invalid += 1;
            }
        }
    }
    // A folder that is not there, or half of it, would pass, too.
    assert!(valid >= 3 && invalid >= 40, "{valid} valid and {invalid} invalid vectors");
}
