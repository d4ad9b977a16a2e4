//! Stated maxima. Everything that a peer or a file may claim is compared with these before anything is allocated.

/// Bits of a quantised weight: entries of A and B lie in `[-2^11, 2^11)`.
pub const WEIGHT_BITS: u32 = 12;
/// Largest magnitude of a quantised activation: `|X| <= 2^15 - 1`.
pub const MAX_ACTIVATION: i16 = i16::MAX;
/// Largest input dimension of a module. With it, [`MAX_RANK`] and [`WEIGHT_BITS`], `|Y| < 2^59`, which fits an `i64`. A
/// claimed delta is an `i64` too, and 2^63 + 2^59 is below the Goldilocks prime, so that equality mod p is equality over the
/// integers.
pub const MAX_D_IN: usize = 1 << 14;
/// Largest output dimension of a module.
pub const MAX_D_OUT: usize = 1 << 16;
/// Largest rank of a module.
pub const MAX_RANK: usize = 256;
/// Most modules of one adapter.
pub const MAX_MODULES: usize = 4096;
/// Longest module name in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Most rows of one forward call.
pub const MAX_CALL_ROWS: usize = 1 << 17;
/// Most entries of one tensor of a call: rows times the module's dimension.
pub const MAX_TENSOR_ENTRIES: usize = 1 << 26;
/// Most modules that one call may address, all with the same input.
pub const MAX_CALL_MODULES: usize = 64;
/// Most deltas of one call, in all its modules together: at eight bytes each they still fit [`MAX_PAYLOAD_BYTES`].
/// Whoever reads a call, from a peer or from a bundle, holds no more than this many at a time.
pub const MAX_CALL_DELTAS: usize = (MAX_PAYLOAD_BYTES / 8) as usize;
/// Most calls of one session.
pub const MAX_CALLS: u64 = 1 << 24;
/// Most rows of one module in one session.
pub const MAX_SESSION_ROWS: u64 = 1 << 32;
/// Largest signed manifest in bytes.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Largest signed receipt in bytes.
pub const MAX_RECEIPT_BYTES: usize = 1 << 20;
/// Most seconds by which the times in a receipt may differ from the client's clock: `started` when it asked for the session,
/// `finished` when it got the receipt. Clocks that nobody sets drift by seconds a day; a receipt that is dated otherwise than it was
/// made is off by more.
pub const MAX_CLOCK_SKEW: u64 = 600;
/// Largest JSON header of a message in bytes.
pub const MAX_MESSAGE_HEADER_BYTES: usize = 64 << 10;
/// Largest payload of a message in bytes: the deltas of one call.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 30;
/// Most bytes of a bundle in one answer.
pub const MAX_BUNDLE_PART_BYTES: u64 = 4 << 20;
/// Largest disclosure of a call in bytes, as a file.
pub const MAX_DISCLOSURE_BYTES: u64 = 1 << 28;
/// Largest JSON header of a bundle in bytes.
pub const MAX_BUNDLE_HEADER_BYTES: u64 = 4 << 20;
/// Largest single proof in bytes.
pub const MAX_PROOF_BYTES: u64 = 16 << 20;
/// Largest bundle in bytes.
pub const MAX_BUNDLE_BYTES: u64 = 1 << 40;
