//! The package: a head that everybody can read, the encrypted content, and the contributor's signature over both.

use std::io::{self, Read, Write};

use hpke::rand_core::CryptoRng;
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};
use zklora_circuit::commitment::Opening;
use zklora_proto::identity::Purpose;
use zklora_proto::limits::MAX_MANIFEST_BYTES;
use zklora_proto::{AdapterId, Bytes, DeliveryDigest, PublicKey, SecretKey, Signature, SignedManifest};

use crate::cipher::{ENCAPSULATED, Opener, Sealer, TAG};
use crate::error::PackageError;
use crate::{MAX_CONTENT_BYTES, content};

const FORMAT: &[u8; 18] = b"zklora-delivery/2\n";
/// Bytes of a chunk of the content; the last one may have fewer.
pub const CHUNK: usize = 1 << 16;

/// Why a package cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// No key, or one to which anybody could read.
    #[error("{0} is no key that can be encrypted to; expected what `zklora-base-user identity` prints")]
    Recipient(PublicKey),
    /// The parts given do not belong together.
    #[error("the openings are not of the shapes in the manifest, or the key is not that of its contributor")]
    Foreign,
    /// More than a reader takes.
    #[error("the adapter has {}, expected at most {}", Bytes(*.0), Bytes(MAX_CONTENT_BYTES))]
    TooLarge(u64),
    /// The cipher gave up, which it does not do within these bounds.
    #[error("internal error: the cipher refused a chunk")]
    Cipher,
    /// It could not be written.
    #[error("writing the package: {0}")]
    Io(#[from] io::Error),
}

/// Writes a package of this adapter for the holder of `to`, signed with the contributor's key, and gives its digest. `progress` hears
/// how many bytes of the content are written. That the openings open the manifest's commitments is the caller's to know.
pub fn seal(
    mut out: impl Write,
    key: &SecretKey,
    manifest: &SignedManifest,
    openings: &[Opening],
    to: PublicKey,
    rng: &mut impl CryptoRng,
    mut progress: impl FnMut(u64),
) -> Result<DeliveryDigest, SealError> {
    let shapes = manifest.manifest().modules().iter().map(|entry| entry.shape());
    if !openings.iter().map(Opening::shape).eq(shapes) || key.public() != *manifest.manifest().contributor() {
        return Err(SealError::Foreign);
    }
    let total = content::bytes(manifest.manifest());
    if total > MAX_CONTENT_BYTES {
        return Err(SealError::TooLarge(total));
    }
    let adapter = manifest.adapter_id();
    let (mut sealer, encapsulated) = Sealer::new(to, adapter, rng).ok_or(SealError::Recipient(to))?;
    let mut hasher = DeliveryDigest::hasher();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        out.write_all(bytes)
    };
    put(FORMAT)?;
    put(to.as_bytes())?;
    put(adapter.as_bytes())?;
    put(&(manifest.bytes().len() as u64).to_le_bytes())?;
    put(manifest.bytes())?;
    put(manifest.signature().as_bytes())?;
    put(&encapsulated)?;

    let mut chunk = Zeroizing::new(Vec::with_capacity(CHUNK));
    let mut done = 0;
    content::write(openings, |mut piece| {
        while !piece.is_empty() {
            let (now, rest) = piece.split_at(piece.len().min(CHUNK - chunk.len()));
            chunk.extend_from_slice(now);
            piece = rest;
            done += now.len() as u64;
            if chunk.len() == CHUNK || done == total {
                put(&sealer.seal(&chunk, done == total).ok_or(SealError::Cipher)?)?;
                chunk.zeroize();
                progress(done);
            }
        }
        Ok::<_, SealError>(())
    })?;
    let digest = DeliveryDigest::finish(&hasher);
    out.write_all(key.sign(Purpose::Delivery, digest.as_bytes()).as_bytes())?;
    out.flush()?;
    Ok(digest)
}

/// A package whose head has been read: valid is the manifest, nothing more.
pub struct Package<R> {
    reader: R,
    hasher: blake3::Hasher,
    recipient: PublicKey,
    manifest: SignedManifest,
    encapsulated: [u8; ENCAPSULATED],
}

impl<R: Read> Package<R> {
    /// Reads the head.
    pub fn open(reader: R) -> Result<Self, PackageError> {
        let mut hashed = Hashed { reader, hasher: DeliveryDigest::hasher() };
        if hashed.array("format")? != *FORMAT {
            return Err(PackageError::Format);
        }
        let recipient = PublicKey::from_bytes(hashed.array("head")?);
        let named = AdapterId::from_bytes(hashed.array("head")?);
        let length = u64::from_le_bytes(hashed.array("head")?);
        if length > MAX_MANIFEST_BYTES as u64 {
            return Err(PackageError::ManifestLength(length));
        }
        let mut manifest = vec![0; length as usize];
        hashed.fill(&mut manifest, "manifest")?;
        let manifest = SignedManifest::parse(manifest, Signature::from_bytes(hashed.array("head")?))?;
        let found = manifest.adapter_id();
        if found != named {
            return Err(PackageError::Adapter { named, found });
        }
        let total = content::bytes(manifest.manifest());
        if total > MAX_CONTENT_BYTES {
            return Err(PackageError::TooLarge(total));
        }
        let encapsulated = hashed.array("head")?;
        Ok(Self { reader: hashed.reader, hasher: hashed.hasher, recipient, manifest, encapsulated })
    }

    /// Whom it is for.
    pub fn recipient(&self) -> PublicKey {
        self.recipient
    }

    /// The adapter's manifest. Its signature is valid; whether it is the right adapter, only a pin or a bundle tells.
    pub fn manifest(&self) -> &SignedManifest {
        &self.manifest
    }

    /// Bytes of the content.
    pub fn content_bytes(&self) -> u64 {
        content::bytes(self.manifest.manifest())
    }

    /// Decrypts the rest, checks the contributor's signature over all, and that every module opens its commitment. `progress` hears
    /// how many bytes of the content are read.
    pub fn decrypt(self, key: &SecretKey, mut progress: impl FnMut(u64)) -> Result<Delivery, PackageError> {
        if self.recipient != key.public() {
            return Err(PackageError::Recipient { recipient: self.recipient, identity: key.public() });
        }
        let total = self.content_bytes();
        let adapter = self.manifest.adapter_id();
        let mut opener = Opener::new(key, adapter, &self.encapsulated).ok_or(PackageError::Encapsulated)?;
        let mut hashed = Hashed { reader: self.reader, hasher: self.hasher };
        let (mut taken, mut chunk, chunks) = (0u64, 0u64, total.div_ceil(CHUNK as u64));
        let (mut plain, mut at) = (Zeroizing::new(Vec::new()), 0);
        let mut sealed = vec![0; CHUNK + TAG];
        let openings = content::read(self.manifest.manifest(), |mut wanted| {
            while !wanted.is_empty() {
                if at == plain.len() {
                    // The content is as long as the manifest says, and no more than that is wanted.
                    let length = (total - taken).min(CHUNK as u64) as usize;
                    hashed.fill(&mut sealed[..length + TAG], "content")?;
                    taken += length as u64;
                    plain = opener
                        .open(&sealed[..length + TAG], taken == total)
                        .ok_or(PackageError::Chunk { chunk, chunks })?;
                    (at, chunk) = (0, chunk + 1);
                    progress(taken);
                }
                let count = wanted.len().min(plain.len() - at);
                let (now, rest) = wanted.split_at_mut(count);
                now.copy_from_slice(&plain[at..at + count]);
                (wanted, at) = (rest, at + count);
            }
            Ok(())
        })?;
        let digest = DeliveryDigest::finish(&hashed.hasher);
        let signature = Signature::from_bytes(hashed.array("signature")?);
        let mut more = [0];
        match hashed.fill(&mut more, "signature") {
            Err(PackageError::CutOff(_)) => {}
            Err(error) => return Err(error),
            Ok(()) => return Err(PackageError::Extended),
        }
        let contributor = *self.manifest.manifest().contributor();
        if !contributor.verifies(Purpose::Delivery, digest.as_bytes(), &signature) {
            return Err(PackageError::Signature(contributor));
        }
        let entries = self.manifest.manifest().modules();
        let wrong = openings
            .par_iter()
            .zip(entries)
            .find_first(|(opening, entry)| opening.commitment() != *entry.commitment());
        if let Some((_, entry)) = wrong {
            return Err(PackageError::Commitment { module: entry.name().to_owned(), contributor });
        }
        Ok(Delivery { manifest: self.manifest, openings, digest })
    }
}

/// An adapter that was delivered: every module opens its commitment in the manifest, and the contributor has signed the package.
#[derive(Debug)]
pub struct Delivery {
    manifest: SignedManifest,
    openings: Vec<Opening>,
    digest: DeliveryDigest,
}

impl Delivery {
    /// The adapter's manifest.
    pub fn manifest(&self) -> &SignedManifest {
        &self.manifest
    }

    /// Weights and salts, in the manifest's order. Secret.
    pub fn openings(&self) -> &[Opening] {
        &self.openings
    }

    /// What the contributor signed.
    pub fn digest(&self) -> DeliveryDigest {
        self.digest
    }
}

/// Hashes what is read through it.
struct Hashed<R> {
    reader: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Hashed<R> {
    fn fill(&mut self, bytes: &mut [u8], part: &'static str) -> Result<(), PackageError> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => PackageError::CutOff(part),
            _ => PackageError::Io(error),
        })?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], PackageError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, part)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
