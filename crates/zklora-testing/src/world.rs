//! A contributor, a client and an adapter between them.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use curve25519_dalek::scalar::clamp_integer;
use curve25519_dalek::{EdwardsPoint, Scalar};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha512};
use zklora_circuit::CircuitId;
use zklora_circuit::challenge::Challenges;
use zklora_circuit::circuit::BatchCircuit;
use zklora_circuit::commitment::{Opening, Salt};
use zklora_circuit::fold::{Fold, Folder, canonical};
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::{DEFAULT_DEGREE_BITS, Planner, plan};
use zklora_circuit::prove::prove;
use zklora_circuit::session::{Circuits, ProveSessionError, prove_session};
use zklora_proto::bundle::{Bundle, BundleError, FoldedModule, Folds, Plan};
use zklora_proto::identity::Purpose;
use zklora_proto::{
    BaseModelDigest, Call, CommitmentSeed, Delta, Manifest, ModuleEntry, ModuleShape, Receipt, SecretKey,
    SessionHasher, SessionId, Signature, SignedManifest, SignedReceipt, SignedSession, secret_file,
};

use crate::raw::SEED;
use crate::{FOLDS, FOLDS_SIGNATURE, RECEIPT, REDACTED, RawBundle};

/// Circuits of honest provers, shared by all tests of a process.
static CIRCUITS: LazyLock<Circuits<BatchCircuit>> = LazyLock::new(Circuits::default);

/// Everything that two parties know, secrets included.
#[derive(Clone)]
pub struct World {
    contributor: Arc<SecretKey>,
    client: Arc<SecretKey>,
    openings: Arc<Vec<Opening>>,
    manifest: SignedManifest,
    max_bits: usize,
    security: Security,
}

impl World {
    /// What all of these worlds' sessions are salted with. Anyone can have it.
    pub const SEED: CommitmentSeed = SEED;

    /// Two parties and an adapter of these shapes, with modules `m.0`, `m.1`, ... and weights that follow from the seed.
    /// Keys and salts are random.
    pub fn new(shapes: &[ModuleShape], seed: u64) -> Self {
        Self::with_keys(SecretKey::generate(), SecretKey::generate(), shapes, seed)
    }

    /// The same between the holders of these two keys.
    pub fn with_keys(contributor: SecretKey, client: SecretKey, shapes: &[ModuleShape], seed: u64) -> Self {
        Self::with_people(Arc::new(contributor), Arc::new(client), shapes, seed)
    }

    /// The same two parties with another adapter of the same shapes.
    pub fn another_adapter(&self, seed: u64) -> Self {
        let shapes: Vec<_> = self.openings.iter().map(Opening::shape).collect();
        Self::with_people(self.contributor.clone(), self.client.clone(), &shapes, seed)
    }

    /// The same parties, who prove with another parameter set.
    pub fn with_security(&self, security: Security) -> Self {
        Self { security, ..self.clone() }
    }

    /// The same manifest, whose contributor serves and proves these weights instead of those it committed to.
    pub fn serving(&self, openings: Vec<Opening>) -> Self {
        Self { openings: Arc::new(openings), ..self.clone() }
    }

    /// The same weights under a manifest whose text was edited and then signed by the contributor.
    pub fn with_manifest(&self, edit: impl FnOnce(&str) -> String) -> Self {
        let text = std::str::from_utf8(self.manifest.bytes()).unwrap();
        let edited = edit(text);
        assert_ne!(edited, text, "the edit changes the manifest");
        let signature = self.contributor.sign(Purpose::Manifest, edited.as_bytes());
        Self { manifest: SignedManifest::parse(edited.into_bytes(), signature).unwrap(), ..self.clone() }
    }

    fn with_people(
        contributor: Arc<SecretKey>,
        client: Arc<SecretKey>,
        shapes: &[ModuleShape],
        seed: u64,
    ) -> Self {
        let mut rng = rng(seed);
        let mut weights = |n: usize| (0..n).map(|_| rng.random_range(-2048..2048)).collect::<Vec<i16>>();
        let openings: Vec<Opening> = shapes
            .iter()
            .map(|s| {
                let (a, b) = (weights(s.d_in() * s.rank()), weights(s.rank() * s.d_out()));
                Opening::new(*s, a, b, Salt::random(&mut rand::make_rng::<StdRng>())).unwrap()
            })
            .collect();
        let modules = openings
            .iter()
            .enumerate()
            .map(|(i, o)| ModuleEntry::new(format!("m.{i}"), o.shape(), 1e-6, o.commitment()).unwrap())
            .collect();
        let manifest = Manifest::new(contributor.public(), BaseModelDigest::from_bytes([9; 32]), 0, modules)
            .unwrap()
            .sign(&contributor);
        Self {
            contributor,
            client,
            openings: Arc::new(openings),
            manifest,
            max_bits: DEFAULT_DEGREE_BITS,
            security: Security::default(),
        }
    }

    /// The contributor's key.
    pub fn contributor(&self) -> &SecretKey {
        &self.contributor
    }

    /// The client's key.
    pub fn client(&self) -> &SecretKey {
        &self.client
    }

    /// A copy of [`World::openings`].
    pub fn copy_openings(&self) -> Vec<Opening> {
        let copy = |o: &Opening| Opening::new(o.shape(), o.a().to_vec(), o.b().to_vec(), o.salt().clone());
        self.openings.iter().map(|opening| copy(opening).unwrap()).collect()
    }

    /// The weights and salts that the contributor serves and proves, in the manifest's order.
    pub fn openings(&self) -> &[Opening] {
        &self.openings
    }

    /// The adapter's manifest.
    pub fn manifest(&self) -> &SignedManifest {
        &self.manifest
    }

    /// A call with random activations and true deltas.
    pub fn call(&self, rows: usize, modules: &[usize], rng: &mut StdRng) -> Call {
        let d_in = self.openings[modules[0]].shape().d_in();
        let activations: Vec<i16> = (0..rows * d_in).map(|_| rng.random_range(-32767..=32767)).collect();
        self.answer(rows, activations, modules)
    }

    /// The call that an honest contributor makes of these activations.
    pub fn answer(&self, rows: usize, activations: Vec<i16>, modules: &[usize]) -> Call {
        let deltas = modules
            .iter()
            .map(|&module| Delta { module, values: delta(&self.openings[module], &activations) })
            .collect();
        Call { rows, activations, deltas }
    }

    /// The receipt of these calls, true or not, with no signature yet.
    pub fn receipt(&self, calls: &[Call]) -> Receipt {
        let mut hasher = SessionHasher::new(self.openings.len(), Self::SEED);
        assert!(calls.iter().all(|call| hasher.add(call)));
        Receipt::new(
            SessionId::from_bytes([1; 32]),
            self.manifest.adapter_id(),
            *self.manifest.manifest().base_model(),
            self.contributor.public(),
            self.client.public(),
            hasher.calls(),
            hasher.rows().to_vec(),
            hasher.digest(),
            hasher.commitments(),
            1,
            2,
        )
    }

    /// The receipt with both parties' signatures.
    pub fn sign(&self, receipt: &Receipt) -> SignedReceipt {
        let bytes = receipt.to_bytes();
        let contributor = self.contributor.sign(Purpose::ReceiptContributor, &bytes);
        let client = self.client.sign(Purpose::ReceiptClient, &bytes);
        SignedReceipt::parse(bytes, contributor, client).unwrap()
    }

    /// The session of a receipt of this world's adapter.
    pub fn session(&self, receipt: SignedReceipt) -> SignedSession {
        SignedSession::new(self.manifest.clone(), receipt).unwrap()
    }

    /// The same receipt under another signature of the client: valid, too, and one that only the client can make. Ed25519 as it is
    /// specified has one for each message, by a nonce that follows from it; this is another nonce's.
    pub fn sign_again(&self, receipt: &SignedReceipt, nonce: u64) -> SignedReceipt {
        let secret = Scalar::from_bytes_mod_order(clamp_integer(*self.client.to_x25519()));
        let nonce = Scalar::from_hash(Sha512::new().chain_update(nonce.to_le_bytes()));
        let commitment = EdwardsPoint::mul_base(&nonce).compress();
        let message = blake3::derive_key("zklora v1 signature: receipt, client", receipt.bytes());
        let public = self.client.public();
        let challenge = [&commitment.as_bytes()[..], public.as_bytes(), &message].concat();
        let answer = nonce + Scalar::from_hash(Sha512::new().chain_update(challenge)) * secret;
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(commitment.as_bytes());
        signature[32..].copy_from_slice(answer.as_bytes());
        let (bytes, contributor) = (receipt.bytes().to_vec(), *receipt.contributor_signature());
        SignedReceipt::parse(bytes, contributor, Signature::from_bytes(signature)).unwrap()
    }

    /// The same world, whose contributor plans circuits of at most `2^max_bits` rows, for proofs of many batches.
    pub fn with_max_bits(self, max_bits: usize) -> Self {
        Self { max_bits, ..self }
    }

    /// Proves as the contributor's daemon does.
    pub fn prove(
        &self,
        receipt: &SignedReceipt,
        calls: &[Call],
    ) -> Result<(Plan, Vec<Vec<u8>>), ProveSessionError> {
        prove_session(
            &self.session(receipt.clone()),
            Self::SEED.transcript_salt(),
            calls,
            &self.openings,
            &Planner { max_bits: self.max_bits, ..Planner::new(self.security) },
            &CIRCUITS,
        )
    }

    /// An honest bundle of a session with these calls.
    pub fn bundle(&self, calls: &[Call]) -> RawBundle {
        let receipt = self.sign(&self.receipt(calls));
        let (plan, proofs) = self.prove(&receipt, calls).unwrap();
        RawBundle::new(&self.session(receipt), calls, &plan, &proofs)
    }

    /// The best bundle that a contributor can make of a false transcript that the client signs too: the proofs are real
    /// ones, under the false receipt's challenges, for the claimed activations. They differ from what a verifier wants only
    /// where truth does: in the deltas, which are those that the weights at hand give, or in the commitments of other
    /// weights than the manifest's.
    pub fn forge(&self, claimed: &[Call]) -> RawBundle {
        let receipt = self.sign(&self.receipt(claimed));
        let rows = &receipt.receipt().rows;
        let plan = plan(self.security, self.manifest.manifest(), rows, self.max_bits).unwrap();
        self.forge_under(&receipt, claimed, plan)
    }

    /// The same under any receipt of these calls and any plan for it.
    pub fn forge_under(&self, receipt: &SignedReceipt, claimed: &[Call], plan: Plan) -> RawBundle {
        let manifest = self.manifest.manifest();
        let security: Security = plan.security.parse().unwrap();
        let challenges = Challenges::derive(receipt);
        let mut folder = Folder::new(manifest, challenges);
        for call in claimed {
            let modules: Vec<usize> = call.deltas.iter().map(|delta| delta.module).collect();
            folder.add(&self.answer(call.rows, call.activations.clone(), &modules)).unwrap();
        }
        let folds = folder.finish();
        let proofs: Vec<_> = plan
            .batches
            .iter()
            .map(|batch| {
                prove(
                    &circuit(security, &self.shapes(batch)),
                    &batch.iter().map(|&m| &self.openings[m]).collect::<Vec<_>>(),
                    &batch.iter().map(|&m| &folds[m]).collect::<Vec<_>>(),
                    challenges.beta,
                    &mut rand::make_rng::<StdRng>(),
                )
                .unwrap()
            })
            .collect();
        RawBundle::new(&self.session(receipt.clone()), claimed, &plan, &proofs)
    }
}

impl World {
    /// The folds of a bundle's transcript under the challenges of its receipt, where `of` says what is folded of a call.
    pub fn folds(&self, bundle: &RawBundle, of: impl Fn(&Call) -> Call) -> Folds {
        let mut bundle = Bundle::from_reader(Cursor::new(bundle.to_bytes())).unwrap();
        let challenges = Challenges::derive(bundle.receipt());
        let mut folder = Folder::new(self.manifest.manifest(), challenges);
        bundle
            .calls(|call| {
                folder.add(&of(&call)).unwrap();
                Ok::<_, BundleError>(())
            })
            .unwrap();
        let module = |fold: Fold| FoldedModule {
            a: fold.a.into_iter().map(canonical).collect(),
            s: canonical(fold.s),
        };
        Folds {
            alpha: canonical(challenges.alpha),
            beta: canonical(challenges.beta),
            modules: folder.finish().into_iter().map(module).collect(),
        }
    }

    fn shapes(&self, modules: &[usize]) -> Vec<ModuleShape> {
        modules.iter().map(|&module| self.manifest.manifest().modules()[module].shape()).collect()
    }

    /// The bundle with these folds in place of the transcript, signed by the client.
    pub fn redact(&self, bundle: &RawBundle, folds: &Folds) -> RawBundle {
        self.redact_bytes(bundle, folds.to_bytes())
    }

    /// The same with any bytes in the place of the folds.
    pub fn redact_bytes(&self, bundle: &RawBundle, folds: Vec<u8>) -> RawBundle {
        let mut redacted = bundle.clone();
        redacted.format = REDACTED.into();
        let receipt = &bundle.blobs[RECEIPT];
        let message = [&(receipt.len() as u64).to_le_bytes()[..], receipt, &folds].concat();
        redacted.blobs[FOLDS_SIGNATURE] = self.client.sign(Purpose::Folds, &message).as_bytes().to_vec();
        redacted.blobs[FOLDS] = folds;
        redacted
    }
}

/// A shape that is known to be within its bounds.
pub fn shape(d_in: usize, rank: usize, d_out: usize) -> ModuleShape {
    ModuleShape::new(d_in, rank, d_out).unwrap()
}

/// A key that is the same in every run. Anyone can have it.
pub fn known_key(seed: u8) -> SecretKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.key");
    // Keys are made from randomness or read from a file, and from nothing else.
    secret_file::create(&path, format!("{seed:02x}").repeat(32).as_bytes()).unwrap();
    SecretKey::load(&path).unwrap()
}

/// A generator whose values follow from the seed.
pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// The circuit of a forger's batch, built once in a process.
fn circuit(security: Security, shapes: &[ModuleShape]) -> Arc<BatchCircuit> {
    static BUILT: LazyLock<Mutex<HashMap<CircuitId, Arc<BatchCircuit>>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built
        .entry(CircuitId::new(security, shapes))
        .or_insert_with(|| Arc::new(BatchCircuit::build(security, shapes).unwrap()))
        .clone()
}

/// X·A·B over the integers.
fn delta(opening: &Opening, x: &[i16]) -> Vec<i64> {
    let (d_in, rank, d_out) = (opening.shape().d_in(), opening.shape().rank(), opening.shape().d_out());
    x.chunks_exact(d_in)
        .flat_map(|row| {
            let xa: Vec<i64> = (0..rank)
                .map(|k| {
                    row.iter()
                        .zip(opening.a().chunks_exact(rank))
                        .map(|(&x, a)| i64::from(x) * i64::from(a[k]))
                        .sum()
                })
                .collect();
            (0..d_out)
                .map(|j| {
                    xa.iter().enumerate().map(|(k, xa)| xa * i64::from(opening.b()[k * d_out + j])).sum()
                })
                .collect::<Vec<i64>>()
        })
        .collect()
}
