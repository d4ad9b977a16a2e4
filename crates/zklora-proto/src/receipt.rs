//! The receipt: what both parties sign at the end of a session, so that neither can later deny what was sent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::identity::{PublicKey, Purpose, Signature};
use crate::json::Object;
use crate::limits::{MAX_CALLS, MAX_MODULES, MAX_RECEIPT_BYTES, MAX_SESSION_ROWS};
use crate::{AdapterId, BaseModelDigest, CommitmentsDigest, SessionId, TranscriptDigest};

const FORMAT: &str = "zklora-receipt/1";

/// What happened in one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    format: String,
    /// The session.
    pub session: SessionId,
    /// The adapter that was served.
    pub adapter: AdapterId,
    /// The base model that the client said it runs.
    pub base_model: BaseModelDigest,
    /// Who served.
    pub contributor: PublicKey,
    /// Who asked.
    pub client: PublicKey,
    /// Number of forward calls.
    pub calls: u64,
    /// Rows of each module, in the manifest's order.
    pub rows: Vec<u64>,
    /// The digest of every activation and delta.
    pub transcript: TranscriptDigest,
    /// What commits to every module's part of every call, so that it can be shown without the others.
    pub commitments: CommitmentsDigest,
    /// When the session began, in seconds since 1970, by the contributor's clock.
    pub started: u64,
    /// When it ended.
    pub finished: u64,
}

impl Receipt {
    /// A receipt of the current format.
    #[allow(
        clippy::too_many_arguments,
        reason = "one argument for each field; a builder would only repeat them"
    )]
    pub fn new(
        session: SessionId,
        adapter: AdapterId,
        base_model: BaseModelDigest,
        contributor: PublicKey,
        client: PublicKey,
        calls: u64,
        rows: Vec<u64>,
        transcript: TranscriptDigest,
        commitments: CommitmentsDigest,
        started: u64,
        finished: u64,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            session,
            adapter,
            base_model,
            contributor,
            client,
            calls,
            rows,
            transcript,
            commitments,
            started,
            finished,
        }
    }

    /// The bytes that both parties sign.
    pub fn to_bytes(&self) -> Vec<u8> {
        // A plain struct of strings and integers always serialises.
        serde_json::to_vec(self).expect("a receipt always serialises")
    }

    /// Parses the bytes of a receipt from anywhere; signatures are checked by [`SignedReceipt::parse`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ReceiptError> {
        if bytes.len() > MAX_RECEIPT_BYTES {
            return Err(ReceiptError::TooLarge(bytes.len()));
        }
        let Object(receipt): Object<Self> =
            serde_json::from_slice(bytes).map_err(|e| ReceiptError::Json(e.to_string()))?;
        if receipt.format != FORMAT {
            return Err(ReceiptError::Format(receipt.format.chars().take(80).collect()));
        }
        if receipt.calls > MAX_CALLS {
            return Err(ReceiptError::Calls(receipt.calls));
        }
        if receipt.rows.len() > MAX_MODULES || receipt.rows.iter().any(|&r| r > MAX_SESSION_ROWS) {
            return Err(ReceiptError::Rows);
        }
        if receipt.finished < receipt.started {
            return Err(ReceiptError::Times { started: receipt.started, finished: receipt.finished });
        }
        Ok(receipt)
    }
}

/// A receipt with its exact bytes and both parties' valid signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedReceipt {
    receipt: Receipt,
    bytes: Vec<u8>,
    contributor: Signature,
    client: Signature,
}

impl SignedReceipt {
    /// Parses bytes and checks both signatures.
    pub fn parse(bytes: Vec<u8>, contributor: Signature, client: Signature) -> Result<Self, ReceiptError> {
        let receipt = Receipt::from_bytes(&bytes)?;
        if !receipt.contributor.verifies(Purpose::ReceiptContributor, &bytes, &contributor) {
            return Err(ReceiptError::Signature { party: "contributor", key: receipt.contributor });
        }
        if !receipt.client.verifies(Purpose::ReceiptClient, &bytes, &client) {
            return Err(ReceiptError::Signature { party: "client", key: receipt.client });
        }
        Ok(Self { receipt, bytes, contributor, client })
    }

    /// What the receipt says.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// The exact bytes that were signed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The contributor's signature.
    pub fn contributor_signature(&self) -> &Signature {
        &self.contributor
    }

    /// The client's signature.
    pub fn client_signature(&self) -> &Signature {
        &self.client
    }
}

/// Why bytes are no valid receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// More bytes than a receipt may have.
    #[error("the receipt has {}, expected at most {}", crate::Bytes(*.0 as u64), crate::Bytes(MAX_RECEIPT_BYTES as u64))]
    TooLarge(usize),
    /// No such JSON.
    #[error("the receipt is not valid JSON of its format: {0}")]
    Json(String),
    /// Another format or version.
    #[error("the receipt's format is {0:?}, expected {FORMAT:?}")]
    Format(String),
    /// More calls than a session may have.
    #[error("the receipt counts {0} calls, expected at most {MAX_CALLS}")]
    Calls(u64),
    /// More modules or rows than a session may have.
    #[error("the receipt counts more modules or rows than a session may have")]
    Rows,
    /// A session that ends before it begins.
    #[error(
        "the receipt has {finished} as the session's end, expected no time before its start at {started}"
    )]
    Times {
        /// The start.
        started: u64,
        /// The end.
        finished: u64,
    },
    /// A party did not sign these bytes.
    #[error("the receipt's signature of the {party} is missing or not one of {key} over these bytes")]
    Signature {
        /// Which party.
        party: &'static str,
        /// The key it should have signed with.
        key: PublicKey,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;

    #[test]
    fn both_signatures_are_needed() {
        let (a, b) = (SecretKey::generate(), SecretKey::generate());
        let receipt = Receipt::new(
            SessionId::from_bytes([1; 32]),
            AdapterId::from_bytes([2; 32]),
            BaseModelDigest::from_bytes([3; 32]),
            a.public(),
            b.public(),
            4,
            vec![5, 6],
            TranscriptDigest::from_bytes([7; 32]),
            CommitmentsDigest::from_bytes([10; 32]),
            8,
            9,
        );
        // Whatever both parties sign, no session ends before it begins.
        let reversed = Receipt { started: 10, ..receipt.clone() }.to_bytes();
        let by_both = [Purpose::ReceiptContributor, Purpose::ReceiptClient];
        let [by_a, by_b] =
            [(&a, by_both[0]), (&b, by_both[1])].map(|(key, purpose)| key.sign(purpose, &reversed));
        let refused = SignedReceipt::parse(reversed, by_a, by_b);
        assert_eq!(refused, Err(ReceiptError::Times { started: 10, finished: 9 }));

        let bytes = receipt.to_bytes();
        let by_a = a.sign(Purpose::ReceiptContributor, &bytes);
        let by_b = b.sign(Purpose::ReceiptClient, &bytes);
        assert_eq!(SignedReceipt::parse(bytes.clone(), by_a, by_b).unwrap().receipt(), &receipt);
        for (contributor, client) in [
            (by_b, by_b),
            (by_a, by_a),
            (Signature::from_bytes([0; 64]), by_b),
            (by_a, Signature::from_bytes([0; 64])),
            (a.sign(Purpose::ReceiptClient, &bytes), by_b),
        ] {
            assert!(matches!(
                SignedReceipt::parse(bytes.clone(), contributor, client),
                Err(ReceiptError::Signature { .. })
            ));
        }
        let mut changed = bytes.clone();
        let position = changed.len() - 2;
        changed[position] ^= 1;
        assert!(SignedReceipt::parse(changed, by_a, by_b).is_err());
    }
}
