//! Randomness of the operating system, for keys and nonces.

use rand::TryRng;
use rand::rngs::SysRng;

/// 32 bytes from the operating system.
pub(crate) fn system_random() -> [u8; 32] {
    let mut bytes = [0; 32];
    SysRng
        .try_fill_bytes(&mut bytes)
        // Without randomness there is nothing safe to go on with.
        .expect("the operating system gives randomness");
    bytes
}
