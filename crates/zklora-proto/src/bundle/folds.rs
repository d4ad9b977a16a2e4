//! What a redacted bundle has in place of the transcript: its folds, as the client signed them.

use crate::SignedSession;
use crate::identity::{Purpose, SecretKey, Signature};
use crate::manifest::GOLDILOCKS;
use crate::receipt::SignedReceipt;

use super::BundleError;

/// An element x0 + x1·φ of the extension field E as its two parts, each below p.
pub type Element = [u64; 2];

/// The folds of a session's transcript, and the challenges that they are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folds {
    /// The challenge α.
    pub alpha: Element,
    /// The challenge β.
    pub beta: Element,
    /// Of each module, in the manifest's order.
    pub modules: Vec<FoldedModule>,
}

/// The folded transcript of one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldedModule {
    /// a_m, of length d_in; empty for a module without rows.
    pub a: Vec<Element>,
    /// s_m; zero for a module without rows.
    pub s: Element,
}

impl Folds {
    /// The client's signature over these folds of the session of a receipt.
    pub fn sign(&self, receipt: &SignedReceipt, client: &SecretKey) -> Signature {
        client.sign(Purpose::Folds, &message(receipt, &self.to_bytes()))
    }

    /// The blob: both challenges, then of each module with rows a_m and s_m, all as elements of eight bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let called = self.modules.iter().filter(|module| !module.a.is_empty());
        let folds = called.flat_map(|module| module.a.iter().chain([&module.s]));
        let elements = [&self.alpha, &self.beta].into_iter().chain(folds);
        elements.flatten().flat_map(|part| part.to_le_bytes()).collect()
    }

    /// Bytes of the blob of this session.
    pub(super) fn length(session: &SignedSession) -> u64 {
        let called = session.modules().filter(|(_, rows)| *rows > 0);
        let elements = 2 + called.map(|(module, _)| module.shape().d_in() as u64 + 1).sum::<u64>();
        // At most 2^12 modules of 2^14 inputs.
        elements * ELEMENT_BYTES
    }

    /// Reads a blob of the right length, and checks that the receipt's client signed it.
    pub(super) fn parse(
        blob: &[u8],
        signature: &Signature,
        session: &SignedSession,
    ) -> Result<Self, BundleError> {
        let client = session.receipt().receipt().client;
        if !client.verifies(Purpose::Folds, &message(session.receipt(), blob), signature) {
            return Err(BundleError::FoldsSignature(client));
        }
        let mut parts = blob.chunks_exact(8).map(|part| {
            // Chunks of exactly eight bytes.
            match u64::from_le_bytes(part.try_into().unwrap()) {
                part if part < GOLDILOCKS => Ok(part),
                part => Err(BundleError::Folds(format!("{part} is no canonical field element"))),
            }
        });
        // As many as there have to be: the blob has that length.
        let mut part = || parts.next().unwrap_or(Ok(0));
        let mut element = || Ok::<Element, BundleError>([part()?, part()?]);
        let (alpha, beta) = (element()?, element()?);
        let mut modules = Vec::with_capacity(session.rows().len());
        for (module, rows) in session.modules() {
            modules.push(match rows {
                0 => FoldedModule { a: Vec::new(), s: [0; 2] },
                _ => FoldedModule {
                    a: (0..module.shape().d_in()).map(|_| element()).collect::<Result<_, _>>()?,
                    s: element()?,
                },
            });
        }
        Ok(Self { alpha, beta, modules })
    }
}

/// What the client signs: the receipt and the folds.
fn message(receipt: &SignedReceipt, blob: &[u8]) -> Vec<u8> {
    let bytes = receipt.bytes();
    [&(bytes.len() as u64).to_le_bytes()[..], bytes, blob].concat()
}

const ELEMENT_BYTES: u64 = 16;
