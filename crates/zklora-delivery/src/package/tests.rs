use zklora_circuit::commitment::Salt;
use zklora_testing::{World, rng, shape};

use super::*;
use crate::peft::PeftError;
use crate::{DeliveryMismatch, PeftFolder, difference};

/// Two modules of one chunk together.
fn small() -> World {
    World::new(&[shape(16, 2, 24), shape(24, 3, 8)], 1)
}

/// Two modules of three chunks, the first of which ends within the second chunk.
fn large() -> World {
    World::new(&[shape(1024, 24, 1024), shape(1024, 24, 1024)], 2)
}

fn sealed_for(world: &World, openings: &[Opening], to: PublicKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    seal(&mut bytes, world.contributor(), world.manifest(), openings, to, &mut rng(7), |_| {}).unwrap();
    bytes
}

/// A package of what the contributor has, for the client.
fn sealed(world: &World) -> Vec<u8> {
    sealed_for(world, world.openings(), world.client().public())
}

fn decrypt(bytes: &[u8], key: &SecretKey) -> Result<Delivery, PackageError> {
    Package::open(bytes)?.decrypt(key, |_| {})
}

fn refusal(bytes: &[u8], key: &SecretKey) -> String {
    decrypt(bytes, key).unwrap_err().to_string()
}

/// Where the content begins.
fn content_start(world: &World) -> usize {
    FORMAT.len() + 32 + 32 + 8 + world.manifest().bytes().len() + 64 + ENCAPSULATED
}

/// Signs changed bytes anew, as the contributor could.
fn sign(world: &World, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - 64);
    let digest = DeliveryDigest::finish(DeliveryDigest::hasher().update(&bytes));
    bytes.extend_from_slice(world.contributor().sign(Purpose::Delivery, digest.as_bytes()).as_bytes());
    bytes
}

#[test]
fn what_is_sealed_is_delivered() {
    for world in [small(), large()] {
        let mut told = Vec::new();
        let bytes = sealed(&world);
        let package = Package::open(&bytes[..]).unwrap();
        assert_eq!(package.recipient(), world.client().public());
        let total = package.content_bytes();
        let delivery = package.decrypt(world.client(), |bytes| told.push(bytes)).unwrap();
        assert_eq!(told.last(), Some(&total));
        assert_eq!(told.len() as u64, total.div_ceil(CHUNK as u64));
        assert_eq!(bytes.len(), content_start(&world) + total as usize + told.len() * TAG + 64);
        assert_eq!(delivery.manifest(), world.manifest());
        for (found, sent) in delivery.openings().iter().zip(world.openings()) {
            assert_eq!((found.a(), found.b(), found.salt()), (sent.a(), sent.b(), sent.salt()));
        }
        assert_eq!(sign(&world, bytes.clone()), bytes, "the signature is over the digest of all before it");
        assert!(!format!("{delivery:?}").contains(&world.openings()[0].a()[0].to_string().repeat(2)));
    }
}

#[test]
fn only_the_recipient_reads_it() {
    let world = small();
    let bytes = sealed(&world);
    let other = SecretKey::generate();
    let said = refusal(&bytes, &other);
    assert!(said.contains(&format!("is for {}", world.client().public())), "{said}");
    // With another name on it, it is no more readable; nor if the contributor signs that.
    let mut readdressed = bytes.clone();
    readdressed[18..50].copy_from_slice(other.public().as_bytes());
    let said = refusal(&sign(&world, readdressed), &other);
    assert!(said.contains("chunk 0 of 1 cannot be decrypted"), "{said}");
    // Neither weights nor salts are in it as they are.
    let block = world.openings()[0].blocks().nth(1).unwrap();
    let weights: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
    let salt: Vec<u8> = world.openings()[0].salt().words().iter().flat_map(|w| w.to_le_bytes()).collect();
    for secret in [&weights[..16], &salt[..16]] {
        assert!(!bytes.windows(16).any(|window| window == secret));
    }
}

#[test]
fn nothing_is_encrypted_to_a_key_that_is_none() {
    let world = small();
    for (first, fill) in [(0, 0), (1, 0), (2, 0)] {
        let mut key = [fill; 32];
        key[0] = first;
        let to = PublicKey::from_bytes(key);
        let error = seal(
            Vec::new(),
            world.contributor(),
            world.manifest(),
            world.openings(),
            to,
            &mut rng(1),
            |_| {},
        );
        assert!(matches!(error, Err(SealError::Recipient(_))));
    }
    let seal =
        |key, openings| seal(Vec::new(), key, world.manifest(), openings, key.public(), &mut rng(1), |_| {});
    assert!(matches!(seal(world.client(), world.openings()), Err(SealError::Foreign)));
    assert!(matches!(seal(world.contributor(), &world.openings()[..1]), Err(SealError::Foreign)));
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let world = small();
    let bytes = sealed(&world);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(decrypt(&changed, world.client()).is_err(), "byte {at}");
    }
    let world = large();
    let bytes = sealed(&world);
    for at in (0..8).map(|i| content_start(&world) + i * CHUNK / 2).filter(|&at| at < bytes.len()) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let said = refusal(&changed, world.client());
        assert!(said.contains("cannot be decrypted"), "{said}");
    }
}

#[test]
fn it_has_neither_fewer_nor_more_bytes() {
    let world = small();
    let bytes = sealed(&world);
    for length in 0..bytes.len() {
        let said = refusal(&bytes[..length], world.client());
        assert!(said.contains("cut off"), "{length}: {said}");
    }
    let said = refusal(&[&bytes[..], &[0]].concat(), world.client());
    assert!(said.contains("goes on after its signature"), "{said}");
}

#[test]
fn chunks_have_their_places() {
    let world = large();
    let bytes = sealed(&world);
    let start = content_start(&world);
    let chunk = |index: usize| start + index * (CHUNK + TAG)..start + (index + 1) * (CHUNK + TAG);
    let mut swapped = bytes.clone();
    swapped[chunk(0)].copy_from_slice(&bytes[chunk(1)]);
    swapped[chunk(1)].copy_from_slice(&bytes[chunk(0)]);
    let mut repeated = bytes.clone();
    repeated.copy_within(chunk(0), chunk(1).start);
    for (changed, at) in [(swapped, 0), (repeated, 1)] {
        let said = refusal(&sign(&world, changed), world.client());
        assert!(said.contains(&format!("chunk {at} of 3 cannot be decrypted")), "{said}");
    }
    // The manifest tells the length.
    let mut dropped = bytes.clone();
    dropped.drain(chunk(1));
    assert!(refusal(&sign(&world, dropped), world.client()).contains("ends in its content: it was cut off"));
}

#[test]
fn a_last_chunk_is_marked_as_such() {
    let world = small();
    let (adapter, to) = (world.manifest().adapter_id(), world.client());
    let (mut sealer, encapsulated) = Sealer::new(to.public(), adapter, &mut rng(1)).unwrap();
    let chunk = sealer.seal(b"chunk", false).unwrap();
    let open = |last| Opener::new(to, adapter, &encapsulated).unwrap().open(&chunk, last);
    assert!(open(true).is_none());
    assert_eq!(**open(false).unwrap(), *b"chunk");
    // Nor is it one of another adapter, under the same keys.
    let other = AdapterId::from_bytes([1; 32]);
    assert!(Opener::new(to, other, &encapsulated).unwrap().open(&chunk, false).is_none());
    assert!(Opener::new(to, adapter, &[0; ENCAPSULATED]).is_none(), "a point of small order");
}

#[test]
fn it_is_signed_by_the_contributor_for_this_purpose() {
    let world = small();
    let bytes = sealed(&world);
    let signed = |key: &SecretKey, purpose| {
        let mut bytes = bytes[..bytes.len() - 64].to_vec();
        let digest = DeliveryDigest::finish(DeliveryDigest::hasher().update(&bytes));
        bytes.extend_from_slice(key.sign(purpose, digest.as_bytes()).as_bytes());
        bytes
    };
    assert!(decrypt(&signed(world.contributor(), Purpose::Delivery), world.client()).is_ok());
    for bytes in [
        signed(world.client(), Purpose::Delivery),
        signed(world.contributor(), Purpose::Manifest),
        signed(world.contributor(), Purpose::ReceiptContributor),
    ] {
        let said = refusal(&bytes, world.client());
        assert!(
            said.contains(&format!("not signed by the contributor {}", world.contributor().public())),
            "{said}"
        );
    }
}

/// The openings with one changed.
fn changed(
    world: &World,
    module: usize,
    edit: impl FnOnce(&mut Vec<i16>, &mut Vec<i16>, &mut [u64; 8]),
) -> Vec<Opening> {
    let mut openings = world.copy_openings();
    let opening = &openings[module];
    let (mut a, mut b, mut salt) = (opening.a().to_vec(), opening.b().to_vec(), *opening.salt().words());
    edit(&mut a, &mut b, &mut salt);
    openings[module] = Opening::new(opening.shape(), a, b, Salt::from_words(salt).unwrap()).unwrap();
    openings
}

#[test]
fn a_wrong_weight_or_salt_is_refused_by_the_module_s_name() {
    let world = small();
    let step = |weight: &mut i16| *weight += if *weight < 2047 { 1 } else { -1 };
    for (openings, module) in [
        (changed(&world, 0, |a, _, _| step(&mut a[31])), "m.0"),
        (changed(&world, 1, |_, b, _| step(&mut b[0])), "m.1"),
        (changed(&world, 1, |_, _, salt| salt[3] ^= 1), "m.1"),
        // The same product.
        (changed(&world, 0, |a, b, _| a.iter_mut().chain(b).for_each(|w| *w = (-*w).min(2047))), "m.0"),
    ] {
        let said = refusal(&sealed_for(&world, &openings, world.client().public()), world.client());
        assert!(said.starts_with(&format!("module {module}: the weights and the salt")), "{said}");
        assert!(said.contains(&format!("{} signed this package", world.contributor().public())), "{said}");
    }
}

#[test]
fn weights_and_salts_out_of_range_are_refused_by_the_module_s_name() {
    let world = small();
    let (adapter, to) = (world.manifest().adapter_id(), world.client().public());
    let mut plain = Vec::new();
    content::write::<()>(world.openings(), |piece| {
        plain.extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    let first = 64 * Opening::block_count(world.openings()[0].shape());
    for (at, value, said_to_be) in [
        (0, 1u64 << 60, "module m.0: a word of its weights or its salt"),
        (64, u64::MAX, "module m.0: a word of its weights or its salt"),
        (first + 56, 0xffff_ffff_0000_0001, "module m.1: a word of its weights or its salt"),
        (plain.len() - 8, 1 << 63, "module m.1: a word of its weights or its salt"),
    ] {
        let mut plain = plain.clone();
        plain[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let (mut sealer, encapsulated) = Sealer::new(to, adapter, &mut rng(1)).unwrap();
        let mut bytes = sealed(&world)[..content_start(&world) - ENCAPSULATED].to_vec();
        bytes.extend_from_slice(&encapsulated);
        bytes.extend_from_slice(&sealer.seal(&plain, true).unwrap());
        bytes.extend_from_slice(&[0; 64]);
        let said = refusal(&sign(&world, bytes), world.client());
        assert!(said.starts_with(said_to_be), "{said}");
    }
}

/// A contributor may commit to any salt and any padding that the circuit takes, and prove with it: then it can deliver it, too. What
/// it delivers has to be that.
#[test]
fn whatever_can_be_proved_can_be_delivered() {
    let honest = small();
    let unusual: Vec<Opening> = honest
        .openings()
        .iter()
        .map(|opening| {
            let mut blocks: Vec<[u64; 8]> = opening.blocks().collect();
            blocks[0] = [(1 << 60) - 1; 8];
            let with_salt = Opening::from_blocks(opening.shape(), &blocks).unwrap();
            // Every weight of the last word of each row that can be padding is made another; entries of A and B stay.
            blocks[1..].iter_mut().for_each(|block| block[7] ^= 0x5a5);
            let shape = opening.shape();
            let other = Opening::from_blocks(shape, &blocks).unwrap();
            match (other.a(), other.b()) == (opening.a(), opening.b()) {
                true => other,
                false => with_salt,
            }
        })
        .collect();
    assert!(unusual.iter().zip(honest.openings()).all(|(a, b)| a.commitment() != b.commitment()));
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (opening, honest) in unusual.iter().zip(honest.openings()) {
        from.push(honest.commitment().to_string());
        to.push(opening.commitment().to_string());
    }
    let world = honest.with_manifest(|text| {
        from.iter().zip(&to).fold(text.to_owned(), |text, (from, to)| text.replacen(from, to, 1))
    });
    let delivery = decrypt(&sealed_for(&world, &unusual, world.client().public()), world.client()).unwrap();
    for (found, sent) in delivery.openings().iter().zip(&unusual) {
        assert!(found.blocks().eq(sent.blocks()));
    }
    // The same weights under another salt or with zeros as padding are not what was committed to.
    let plain: Vec<Opening> = unusual
        .iter()
        .map(|o| Opening::new(o.shape(), o.a().to_vec(), o.b().to_vec(), o.salt().clone()).unwrap())
        .collect();
    for openings in [honest.copy_openings(), plain] {
        let said = refusal(&sealed_for(&world, &openings, world.client().public()), world.client());
        assert!(said.contains("do not open the commitment"), "{said}");
    }
}

#[test]
fn the_head_and_the_manifest_belong_together() {
    let world = small();
    let bytes = sealed(&world);
    // Another adapter's id.
    let mut named = bytes.clone();
    named[50] ^= 1;
    assert!(refusal(&sign(&world, named), world.client()).contains("the package names adapter"));
    // Another manifest of the same contributor, with an id to match.
    let other = world.with_manifest(|text| text.replacen("1e-6", "2e-6", 1));
    let mut exchanged = bytes.clone();
    let length = world.manifest().bytes().len();
    assert_eq!(other.manifest().bytes().len(), length);
    exchanged[50..82].copy_from_slice(other.manifest().adapter_id().as_bytes());
    exchanged[90..90 + length].copy_from_slice(other.manifest().bytes());
    exchanged[90 + length..90 + length + 64].copy_from_slice(other.manifest().signature().as_bytes());
    assert!(refusal(&sign(&world, exchanged), world.client()).contains("chunk 0 of 1"));
}

#[test]
fn hostile_lengths_take_no_memory() {
    let world = small();
    let bytes = sealed(&world);
    for length in [u64::MAX, 1 << 40, MAX_MANIFEST_BYTES as u64 + 1] {
        let mut hostile = bytes.clone();
        hostile[82..90].copy_from_slice(&length.to_le_bytes());
        assert!(
            matches!(decrypt(&hostile, world.client()), Err(PackageError::ManifestLength(found)) if found == length)
        );
    }
    // The largest shapes that a manifest can name, in more modules than are read.
    let world = World::new(&[shape(16, 2, 24)], 3).with_manifest(|text| {
        let (head, module) = text.trim_end_matches("]}").split_once("\"modules\":[").unwrap();
        let module = module
            .replace("\"d_in\":16,\"rank\":2,\"d_out\":24", "\"d_in\":16384,\"rank\":256,\"d_out\":65536");
        let modules: Vec<_> = (0..600).map(|i| module.replace("m.0", &format!("m.{i}"))).collect();
        format!("{head}\"modules\":[{}]}}", modules.join(","))
    });
    let mut hostile = FORMAT.to_vec();
    hostile.extend_from_slice(world.client().public().as_bytes());
    hostile.extend_from_slice(world.manifest().adapter_id().as_bytes());
    hostile.extend_from_slice(&(world.manifest().bytes().len() as u64).to_le_bytes());
    hostile.extend_from_slice(world.manifest().bytes());
    hostile.extend_from_slice(world.manifest().signature().as_bytes());
    assert!(matches!(Package::open(&hostile[..]), Err(PackageError::TooLarge(_))));
    for junk in [&b""[..], b"zklora-delivery/1\n", b"zklora-delivery/3\n", b"\x80\x02}q\x00", &[0xff; 200]] {
        assert!(Package::open(junk).is_err());
    }
}

#[test]
fn every_delta_is_compared() {
    let world = small();
    let delivery = decrypt(&sealed(&world), world.client()).unwrap();
    let mut rng = rng(4);
    let calls =
        [world.call(5, &[0], &mut rng), world.call(3, &[1], &mut rng), world.call(70, &[0], &mut rng)];
    let open =
        |bytes: &[u8]| zklora_proto::bundle::Bundle::from_reader(io::Cursor::new(bytes.to_vec())).unwrap();
    let raw = world.bundle(&calls);
    let mut bundle = open(&raw.to_bytes());
    let receipt = bundle.receipt().clone();
    let compared = delivery.check_bundle(&mut bundle, &receipt, |_| {}).unwrap();
    assert_eq!((compared.calls, compared.rows, compared.deltas), (3, 78, 5 * 24 + 3 * 8 + 70 * 24));

    // Deltas that both parties signed, and that no proof can be about.
    let mut false_calls = calls.clone();
    false_calls[2].deltas[0].values[69 * 24 + 23] += 1;
    let mut bundle = open(&world.forge(&false_calls).to_bytes());
    let forged = bundle.receipt().clone();
    let said = delivery.check_bundle(&mut bundle, &forged, |_| {}).unwrap_err().to_string();
    assert_eq!(said, "call 2, module m.0, row 69: the delta is not that of the delivered weights");
    // Another session than was verified.
    assert!(matches!(delivery.check_bundle(&mut bundle, &receipt, |_| {}), Err(DeliveryMismatch::Receipt)));

    // A session of other weights under the same names and shapes.
    let other = world.another_adapter(9);
    let mut bundle = open(
        &other
            .bundle(
                &calls[..1]
                    .iter()
                    .map(|call| other.answer(call.rows, call.activations.clone(), &[0]))
                    .collect::<Vec<_>>(),
            )
            .to_bytes(),
    );
    let receipt = bundle.receipt().clone();
    let said = delivery.check_bundle(&mut bundle, &receipt, |_| {}).unwrap_err().to_string();
    assert!(
        said.starts_with("it proves another adapter than was delivered: module m.0: its commitment is"),
        "{said}"
    );
}

#[test]
fn a_difference_of_manifests_is_said_by_module_and_field() {
    let world = small();
    for (from, to, said) in [
        ("\"m.1\"", "\"m.2\"", "the name of module 1 is m.2, expected m.1"),
        ("\"d_in\":24", "\"d_in\":25", "module m.1: its d_in is 25, expected 24"),
        ("\"created\":0", "\"created\":1", "the time of making is 1, expected 0"),
        ("\"scale\":1e-6", "\"scale\":2.5", "module m.1: its scale is 2.5e0, expected 1e-6"),
    ] {
        let changed = world.with_manifest(|text| {
            let at = text.rfind(from).unwrap();
            format!("{}{to}{}", &text[..at], &text[at + from.len()..])
        });
        let found = difference(changed.manifest().manifest(), world.manifest().manifest());
        assert!(found.contains(said), "{found}");
    }
    assert!(difference(world.manifest().manifest(), world.manifest().manifest()).contains("in other bytes"));
}

#[test]
fn the_folder_is_plain_lora_and_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    // Three ranks, and names of GPT-2.
    let names = ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_attn"];
    let world =
        World::new(&[shape(16, 2, 48), shape(16, 3, 64), shape(16, 2, 48)], 5).with_manifest(|text| {
            names
                .iter()
                .enumerate()
                .fold(text.to_owned(), |text, (i, name)| text.replace(&format!("m.{i}"), name))
        });
    let delivery = decrypt(&sealed(&world), world.client()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/b");
    PeftFolder::new(&delivery, Some("gpt2")).unwrap().write(&out).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&out), 0o700);
    for file in std::fs::read_dir(&out).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    assert_eq!(std::fs::read(out.join("manifest.json")).unwrap(), world.manifest().bytes());
    assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1, "nothing else is left");

    let projections = names.map(|name| zklora_hf::Projection {
        name: name.into(),
        d_in: 16,
        d_out: if name.ends_with("c_fc") { 64 } else { 48 },
    });
    let adapter = zklora_hf::LoraAdapter::open(&out, &projections).unwrap();
    assert_eq!(adapter.base_model_name.as_deref(), Some("gpt2"));
    for (module, (opening, entry)) in
        adapter.modules.iter().zip(world.openings().iter().zip(world.manifest().manifest().modules()))
    {
        assert_eq!(
            (module.name.as_str(), module.rank, module.scaling),
            (entry.name(), opening.shape().rank(), 1.0)
        );
        // 2^-20 is next to the scale 1e-6.
        let unit = 2f32.powi(-10);
        assert!(module.a.iter().zip(opening.a()).all(|(&found, &a)| found == f32::from(a) * unit));
        let unit = 1e-6 / f64::from(unit);
        assert!(module.b.iter().zip(opening.b()).all(|(&found, &b)| found == (f64::from(b) * unit) as f32));
    }

    // Never over anything, be it empty or a dangling link.
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
    for taken in [&out, &folder.path().join("empty"), &folder.path().join("link")] {
        let written = PeftFolder::new(&delivery, None).unwrap().write(taken);
        assert!(matches!(written, Err(PeftError::Exists(_))));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn names_and_scales_that_peft_cannot_have_are_refused() {
    for (from, to, said) in [
        ("\"m.0\"", "\"m.0|m.1\"", "module m.0|m.1: its name"),
        ("\"m.0\"", "\"../m\"", "module ../m: its name"),
        ("\"scale\":1e-6", "\"scale\":1e-300", "no ordinary numbers"),
        ("\"scale\":1e-6", "\"scale\":1e300", "no ordinary numbers"),
    ] {
        let world = small().with_manifest(|text| text.replacen(from, to, 1));
        let delivery = decrypt(&sealed(&world), world.client()).unwrap();
        let error = PeftFolder::new(&delivery, None).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn the_vector_is_read_as_what_it_is() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/vectors/delivery");
    let bytes = std::fs::read(folder.join("package.zkd")).unwrap();
    let expected = std::fs::read(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let key = zklora_testing::known_key(0x42);
    assert_eq!(expected["recipient"], key.public().to_string());
    let delivery = decrypt(&bytes, &key).unwrap();
    assert_eq!(expected["adapter"], delivery.manifest().adapter_id().to_string());
    assert_eq!(expected["digest"], delivery.digest().to_string());
    let opening = &delivery.openings()[0];
    assert_eq!(expected["salt"], serde_json::json!(opening.salt().words().map(|word| word.to_string())));
    assert_eq!(expected["a"], serde_json::json!(opening.a()));
    assert_eq!(expected["b"], serde_json::json!(opening.b()));
}
