//! QUIC between a base-model user and a contributor.
//!
//! An endpoint is its Ed25519 key: both ends show it as a raw public key (RFC 7250) in TLS 1.3, the dialling end pins the
//! one in the address, and there is no certificate and no authority. 0-RTT and session resumption are off, so that every
//! connection proves both keys anew.
//!
//! [`endpoint`] opens connections; [`frame`] puts the messages of `zklora_proto::message` on streams.

pub mod endpoint;
pub mod frame;
mod tls;

pub use endpoint::{Connection, DialError, Incoming, ListenError, Listener, deliver};
pub use frame::{Arriving, FrameError, read_frame, read_header, read_payload, write_frame};
pub use quinn::{RecvStream, SendStream};
