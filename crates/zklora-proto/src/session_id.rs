//! How a session gets its name.

use crate::{AdapterId, PublicKey, SessionId};

impl SessionId {
    /// The session that these nonces open between these keys for this adapter. Neither party chooses it alone.
    pub fn derive(
        client_nonce: &[u8; 32],
        contributor_nonce: &[u8; 32],
        client: &PublicKey,
        contributor: &PublicKey,
        adapter: &AdapterId,
    ) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 session");
        for part in
            [client_nonce, contributor_nonce, client.as_bytes(), contributor.as_bytes(), adapter.as_bytes()]
        {
            hasher.update(part);
        }
        Self::from_bytes(*hasher.finalize().as_bytes())
    }
}
