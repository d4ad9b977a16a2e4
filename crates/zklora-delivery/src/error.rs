//! Why a package is not taken.

use std::io;

use zklora_proto::limits::MAX_MANIFEST_BYTES;
use zklora_proto::manifest::ManifestError;
use zklora_proto::{AdapterId, Bytes, PublicKey};

use crate::MAX_CONTENT_BYTES;

/// Why a package is not taken. The first thing found wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// It could not be read.
    #[error("reading the package: {0}")]
    Io(io::Error),
    /// It ends too early.
    #[error("the package ends in its {0}: it was cut off")]
    CutOff(&'static str),
    /// It goes on.
    #[error("the package goes on after its signature: it was extended")]
    Extended,
    /// Another format or version.
    #[error("this is no package of the format zklora-delivery/2")]
    Format,
    /// More than a manifest may have.
    #[error("by the package its manifest has {}, expected at most {}", Bytes(*.0), Bytes(MAX_MANIFEST_BYTES as u64))]
    ManifestLength(u64),
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The head names another adapter than the manifest in it is of.
    #[error("the package names adapter {named}, but its manifest is of adapter {found}")]
    Adapter {
        /// What the head says.
        named: AdapterId,
        /// The id of the manifest.
        found: AdapterId,
    },
    /// More than is read.
    #[error("the manifest's modules have {}, expected at most {}", Bytes(*.0), Bytes(MAX_CONTENT_BYTES))]
    TooLarge(u64),
    /// It is for somebody else.
    #[error("the package is for {recipient}, but the identity is {identity}; --identity names another")]
    Recipient {
        /// Whom it is for.
        recipient: PublicKey,
        /// Whose key was tried.
        identity: PublicKey,
    },
    /// The encapsulated key is none.
    #[error("the package's encapsulated key is none")]
    Encapsulated,
    /// A chunk cannot be decrypted.
    #[error(
        "chunk {chunk} of {chunks} cannot be decrypted: it was changed or moved, or encrypted for another key or adapter"
    )]
    Chunk {
        /// Its number, from 0.
        chunk: u64,
        /// How many there are.
        chunks: u64,
    },
    /// A module's weights or salt cannot be such.
    #[error("module {module}: a word of its weights or its salt is not below 2^60")]
    Content {
        /// The module.
        module: String,
    },
    /// Not signed by the contributor.
    #[error("the package is not signed by the contributor {0} that its manifest names")]
    Signature(PublicKey),
    /// What was delivered is not what was committed to.
    #[error(
        "module {module}: the weights and the salt in the package do not open the commitment in the manifest. The contributor \
         {contributor} signed this package, and it does not hold what the proofs are about"
    )]
    Commitment {
        /// The first such module.
        module: String,
        /// Who signed for it.
        contributor: PublicKey,
    },
}
