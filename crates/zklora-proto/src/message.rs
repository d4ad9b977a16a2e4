//! What the two programs say to each other, one request and one response for each QUIC stream.
//!
//! A frame is a `u32` length and that many bytes of JSON (the header), then a `u64` length and that many bytes of
//! payload; lengths are little-endian and bounded by [`crate::limits`].

use std::fmt;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Serialize};

use crate::digest::hex_text;
use crate::{AdapterId, BaseModelDigest, Bytes, CommitmentSeed, SessionId, Signature, TranscriptDigest};

/// The ALPN protocol name.
pub const ALPN: &[u8] = b"zklora/1";

/// The message whose header this is.
///
/// One message has one header: fields in their order, no white space, lower-case digits. What is read is written again and
/// compared, since serde by itself takes much more: unknown fields beside a type that has no fields, arrays of the values in
/// place of objects, numbers in place of the names of states.
pub fn parse_header<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let message = serde_json::from_slice(bytes)?;
    if serde_json::to_vec(&message)? != bytes {
        return Err(serde_json::Error::custom("it is not in its canonical form"));
    }
    Ok(message)
}

/// From the base-model user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Opens a session.
    Hello {
        /// [`crate::PROTOCOL_VERSION`] of the client.
        version: u32,
        /// The adapter that the client pins.
        adapter: AdapterId,
        /// The base model that the client runs.
        base_model: BaseModelDigest,
        /// 32 random bytes in hexadecimal.
        nonce: Nonce,
        /// What the commitments of the session's calls are salted with.
        commitment_seed: CommitmentSeed,
    },
    /// Asks for deltas. The payload is the activations, int16, row-major.
    Forward {
        /// The session.
        session: SessionId,
        /// 0 for the first call of the session, then 1, and so on.
        call: u64,
        /// Rows of the activations.
        rows: usize,
        /// Modules that read this input, by index in the manifest.
        modules: Vec<usize>,
    },
    /// Ends the calls and asks for the receipt.
    Finish {
        /// The session.
        session: SessionId,
        /// Calls as the client counts them.
        calls: u64,
        /// The transcript as the client hashed it.
        transcript: TranscriptDigest,
    },
    /// Hands over the client's signature of the receipt; proving begins.
    Countersign {
        /// The session.
        session: SessionId,
        /// Over the receipt's exact bytes.
        signature: Signature,
    },
    /// Asks how far proving is.
    Status {
        /// The session.
        session: SessionId,
    },
    /// Asks for a part of a proved session's bundle.
    Fetch {
        /// The session.
        session: SessionId,
        /// Bytes of the bundle that the client has.
        offset: u64,
    },
}

/// What a [`Request`] is, without what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// [`Request::Hello`].
    Hello,
    /// [`Request::Forward`].
    Forward,
    /// [`Request::Finish`].
    Finish,
    /// [`Request::Countersign`].
    Countersign,
    /// [`Request::Status`].
    Status,
    /// [`Request::Fetch`].
    Fetch,
}

impl RequestKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Hello, Self::Forward, Self::Finish, Self::Countersign, Self::Status, Self::Fetch];

    /// Its name in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Forward => "forward",
            Self::Finish => "finish",
            Self::Countersign => "countersign",
            Self::Status => "status",
            Self::Fetch => "fetch",
        }
    }

    /// Whether the same request may be sent once more when its answer was lost with the connection, since it is answered as it was the
    /// first time (docs/protocol.md).
    pub const fn is_repeatable(self) -> bool {
        match self {
            // Another session would be opened.
            Self::Hello => false,
            // The call's number tells that it is the same.
            Self::Forward => true,
            Self::Finish | Self::Countersign | Self::Status | Self::Fetch => true,
        }
    }

    /// Whether it has a payload.
    pub const fn has_payload(self) -> bool {
        match self {
            Self::Forward => true,
            Self::Hello | Self::Finish | Self::Countersign | Self::Status | Self::Fetch => false,
        }
    }
}

impl Request {
    /// Which kind it is of.
    pub const fn kind(&self) -> RequestKind {
        match self {
            Self::Hello { .. } => RequestKind::Hello,
            Self::Forward { .. } => RequestKind::Forward,
            Self::Finish { .. } => RequestKind::Finish,
            Self::Countersign { .. } => RequestKind::Countersign,
            Self::Status { .. } => RequestKind::Status,
            Self::Fetch { .. } => RequestKind::Fetch,
        }
    }

    /// The session that it is about, if there is one yet.
    pub const fn session(&self) -> Option<SessionId> {
        match self {
            Self::Hello { .. } => None,
            Self::Forward { session, .. }
            | Self::Finish { session, .. }
            | Self::Countersign { session, .. }
            | Self::Status { session }
            | Self::Fetch { session, .. } => Some(*session),
        }
    }
}

/// From the contributor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Response {
    /// The session is open. The payload is the manifest's exact bytes.
    Welcome {
        /// 32 random bytes in hexadecimal.
        nonce: Nonce,
        /// The contributor's signature of the manifest.
        signature: Signature,
        /// Most bytes of a call of more than one row, as [`CallShape::bytes`](crate::transcript::CallShape::bytes) counts them.
        max_call_bytes: usize,
        /// For each module of the manifest, linearly independent rows that it may still answer, to all clients together.
        left: Vec<u64>,
        /// Name of the parameter set of the session's proofs, as in the plan of its bundle.
        security: String,
    },
    /// Deltas. The payload is the deltas of each module in the order of the request, each packed to its width.
    Deltas {
        /// Bytes of each entry, module by module.
        widths: Vec<u8>,
    },
    /// The receipt, signed by the contributor. The payload is its exact bytes.
    Receipt {
        /// The contributor's signature of the receipt.
        signature: Signature,
    },
    /// The countersignature is good; the session is in the queue for proving.
    Accepted,
    /// How far proving is.
    Status {
        /// The state.
        state: ProofState,
    },
    /// A part of a bundle, from the offset that was asked for; [`MAX_BUNDLE_PART_BYTES`](crate::limits::MAX_BUNDLE_PART_BYTES)
    /// at most. The payload is empty at the bundle's end, and nowhere else.
    Bundle {
        /// Bytes of the whole bundle.
        bytes: u64,
    },
    /// The request was refused.
    Error {
        /// What kind of refusal.
        code: ErrorCode,
        /// In words, for people.
        message: String,
    },
}

impl Response {
    /// What kind of answer it is, in words for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Welcome { .. } => "a welcome",
            Self::Deltas { .. } => "deltas",
            Self::Receipt { .. } => "a receipt",
            Self::Accepted => "that it accepts",
            Self::Status { .. } => "how far proving is",
            Self::Bundle { .. } => "a part of a bundle",
            Self::Error { .. } => "a refusal",
        }
    }
}

/// How far a session is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ProofState {
    /// Forward calls may still come, or the receipt waits for its second signature.
    Open,
    /// Waiting for its turn.
    Queued,
    /// Being proved.
    Proving {
        /// Batches done.
        done: usize,
        /// Batches in all.
        total: usize,
    },
    /// The bundle is written.
    Proved {
        /// Its size in bytes.
        bytes: u64,
    },
    /// Proving failed; the contributor's log says why.
    Failed,
}

impl fmt::Display for ProofState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("not begun: the session is not finished"),
            Self::Queued => f.write_str("waiting for its turn"),
            Self::Proving { done, total } => write!(f, "under way, {done} of {total} parts done"),
            Self::Proved { bytes } => write!(f, "done, a bundle of {}", Bytes(*bytes)),
            Self::Failed => f.write_str("failed"),
        }
    }
}

/// Kinds of refusal that a program may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The frame or its header is malformed or out of bounds.
    BadRequest,
    /// The peer speaks another version.
    Version,
    /// Another adapter is served here.
    Adapter,
    /// The adapter belongs to another base model.
    BaseModel,
    /// No such session for this client, or not in the state that the request needs.
    Session,
    /// The client's transcript differs from the contributor's.
    Transcript,
    /// A signature does not verify.
    Signature,
    /// A limit of the contributor is reached.
    Limit,
    /// A module has answered as much as it may without giving the adapter away.
    Exposure,
    /// The bundle was there, and is not any more.
    Gone,
    /// The contributor failed; its log says why.
    Internal,
}

/// 32 random bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce([u8; 32]);

impl Nonce {
    /// From the operating system's randomness.
    pub fn random() -> Self {
        Self(crate::random::system_random())
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::str::FromStr for Nonce {
    type Err = crate::digest::HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        crate::digest::parse_hex(text).map(Self)
    }
}

hex_text!(Nonce, 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_tagged_json_without_unknown_fields() {
        let request = Request::Status { session: SessionId::from_bytes([0; 32]) };
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.starts_with(r#"{"type":"status","session":"00"#), "{text}");
        assert_eq!(parse_header::<Request>(text.as_bytes()).unwrap(), request);
        let extra = text.replace('}', r#","x":1}"#);
        assert!(parse_header::<Request>(extra.as_bytes()).is_err());
    }

    #[test]
    fn a_kind_has_the_name_that_is_in_the_header() {
        let session = SessionId::from_bytes([0; 32]);
        let requests = [
            Request::Hello {
                version: 1,
                adapter: AdapterId::from_bytes([0; 32]),
                base_model: BaseModelDigest::from_bytes([0; 32]),
                nonce: Nonce::random(),
                commitment_seed: "5a".repeat(32).parse().unwrap(),
            },
            Request::Forward { session, call: 0, rows: 1, modules: vec![0] },
            Request::Finish { session, calls: 1, transcript: TranscriptDigest::from_bytes([0; 32]) },
            Request::Countersign { session, signature: "00".repeat(64).parse().unwrap() },
            Request::Status { session },
            Request::Fetch { session, offset: 0 },
        ];
        assert_eq!(requests.each_ref().map(Request::kind), RequestKind::ALL);
        for request in requests {
            let header = serde_json::to_value(&request).unwrap();
            assert_eq!(header["type"], request.kind().name());
            assert_eq!(header.get("session").is_some(), request.session().is_some(), "{header}");
        }
    }

    #[test]
    fn a_request_that_is_logged_does_not_tell_its_seed() {
        let seed = "5a".repeat(32);
        let hello = Request::Hello {
            version: 1,
            adapter: AdapterId::from_bytes([0; 32]),
            base_model: BaseModelDigest::from_bytes([0; 32]),
            nonce: Nonce::random(),
            commitment_seed: seed.parse().unwrap(),
        };
        assert!(serde_json::to_string(&hello).unwrap().contains(&seed));
        assert!(!format!("{hello:?}").contains("5a5a"));
    }

    #[test]
    fn a_message_has_one_header() {
        let messages = [
            (Response::Accepted, r#"{"type":"accepted"}"#),
            (
                Response::Welcome {
                    nonce: "ab".repeat(32).parse().unwrap(),
                    signature: "cd".repeat(64).parse().unwrap(),
                    max_call_bytes: 7,
                    left: vec![1, 0],
                    security: "standard".into(),
                },
                &format!(
                    r#"{{"type":"welcome","nonce":"{}","signature":"{}","max_call_bytes":7,"left":[1,0],"security":"standard"}}"#,
                    "ab".repeat(32),
                    "cd".repeat(64)
                ),
            ),
            (Response::Deltas { widths: vec![1, 2] }, r#"{"type":"deltas","widths":[1,2]}"#),
            (Response::Status { state: ProofState::Open }, r#"{"type":"status","state":{"state":"open"}}"#),
            (
                Response::Status { state: ProofState::Proved { bytes: 3 } },
                r#"{"type":"status","state":{"state":"proved","bytes":3}}"#,
            ),
            (
                Response::Error { code: ErrorCode::Session, message: "m".into() },
                r#"{"type":"error","code":"session","message":"m"}"#,
            ),
        ];
        for (message, header) in messages {
            assert_eq!(parse_header::<Response>(header.as_bytes()).unwrap(), message);
        }
        for header in [
            r#"{"type":"accepted","x":1}"#,
            r#"{"type":"accepted","type":"accepted"}"#,
            r#"["accepted"]"#,
            r#"{"type":"accepted" }"#,
            r#"["deltas",[1,2]]"#,
            r#"{"widths":[1,2],"type":"deltas"}"#,
            r#"{"type":"status","state":{"state":"open","x":1}}"#,
            r#"{"type":"status","state":{"state":0}}"#,
            r#"{"type":"status","state":["proved",3]}"#,
            r#"{"type":"error","code":{"session":null},"message":"m"}"#,
            r#"{"type":"error","code":"session","message":"\u006d"}"#,
        ] {
            assert!(parse_header::<Response>(header.as_bytes()).is_err(), "{header}");
        }
    }
}
