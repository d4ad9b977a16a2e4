//! HPKE (RFC 9180) in base mode, with the suite and the context of this format: chunks sealed one after another.

use hpke::aead::{AeadCtxR, AeadCtxS, ChaCha20Poly1305};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::CryptoRng;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, setup_receiver, setup_sender_with_rng};
use zeroize::Zeroizing;
use zklora_proto::{AdapterId, PublicKey, SecretKey};

/// Bytes of the encapsulated key.
pub(crate) const ENCAPSULATED: usize = 32;
/// Bytes that a chunk is longer than its plaintext.
pub(crate) const TAG: usize = 16;

type Sender = AeadCtxS<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>;
type Receiver = AeadCtxR<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>;

/// Seals chunks for one recipient, in order.
pub(crate) struct Sealer(Sender);

impl Sealer {
    /// A fresh context and the encapsulated key that goes before the chunks. `None` if nothing can be encrypted to this key.
    pub(crate) fn new(
        to: PublicKey,
        adapter: AdapterId,
        rng: &mut impl CryptoRng,
    ) -> Option<(Self, [u8; ENCAPSULATED])> {
        let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&to.to_x25519()?).ok()?;
        let (encapsulated, context): (<X25519HkdfSha256 as Kem>::EncappedKey, Sender) =
            setup_sender_with_rng(&OpModeS::Base, &key, &info(to, adapter), rng).ok()?;
        let mut bytes = [0; ENCAPSULATED];
        bytes.copy_from_slice(&encapsulated.to_bytes());
        Some((Self(context), bytes))
    }

    /// The next chunk; `last` says that none comes after it.
    pub(crate) fn seal(&mut self, plaintext: &[u8], last: bool) -> Option<Vec<u8>> {
        self.0.seal(plaintext, associated(last)).ok()
    }
}

/// Opens the chunks that a [`Sealer`] made, in their order.
pub(crate) struct Opener(Receiver);

impl Opener {
    /// `None` if the encapsulated key is none.
    pub(crate) fn new(
        key: &SecretKey,
        adapter: AdapterId,
        encapsulated: &[u8; ENCAPSULATED],
    ) -> Option<Self> {
        let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&*key.to_x25519()).ok()?;
        let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).ok()?;
        let info = info(key.public(), adapter);
        setup_receiver(&OpModeR::Base, &secret, &encapsulated, &info).ok().map(Self)
    }

    /// The plaintext of the next chunk; `None` if it is another one, of another place, or for somebody else.
    pub(crate) fn open(&mut self, chunk: &[u8], last: bool) -> Option<Zeroizing<Vec<u8>>> {
        self.0.open(chunk, associated(last)).ok().map(Zeroizing::new)
    }
}

/// What the context is bound to: this use of the key, who it is for, and what is delivered.
fn info(to: PublicKey, adapter: AdapterId) -> Vec<u8> {
    [b"zklora v1 delivery content", &to.as_bytes()[..], adapter.as_bytes()].concat()
}

/// The place of a chunk is in its nonce, by HPKE's sequence number. Whether it is the last one is here.
fn associated(last: bool) -> &'static [u8] {
    if last { &[1] } else { &[0] }
}
