//! The schemas of the documents that other programs print.

use zklora_testing::schemas::check_file;
use zklora_verdict::{AcceptReport, AuditReport, EvalReport, ExactLossReport, LossReport};

#[test]
fn the_files_are_the_schemas_of_the_types() {
    check_file::<LossReport>();
    check_file::<EvalReport>();
    check_file::<ExactLossReport>();
    check_file::<AuditReport>();
    check_file::<AcceptReport>();
}
