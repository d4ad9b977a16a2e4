//! Base models and adapters by name, from a server that speaks the hub's API, and from its cache.

mod fake_hub;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use fake_hub::{Answer, FakeHub, Repository, Request, sha256};
use serde_json::json;
use tempfile::TempDir;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_hub::{Error, Options, Source};

const BASE: &str = "distilgpt2";
const LORA: &str = "ng0-k1/distilgpt2-finetuned-es";
const TOKEN: &str = "hf_nobodyMaySeeThis";

#[test]
fn a_base_model_and_an_adapter_are_fetched_and_opened() {
    let (base, lora) = fixtures();
    let cdn = FakeHub::start({
        let (base, lora) = (base.clone(), lora.clone());
        move |request| {
            let repository = if request.path.starts_with("/adapter") { &lora } else { &base };
            repository.answer_of_cdn(request)
        }
    });
    let (base, lora) = (with_cdn(base, &cdn.url()), with_cdn(lora, &cdn.url()));
    let hub = FakeHub::start({
        let (base, lora) = (base.clone(), lora.clone());
        move |request| if request.path.contains(LORA) { lora.answer(request) } else { base.answer(request) }
    });
    let user = User::of(&hub);

    let folder = user.base_model(BASE).unwrap();
    let model = BaseModel::open(&folder).unwrap();
    let original = BaseModel::open(fixture("gpt2-tiny")).unwrap();
    assert_eq!(model.digest(), original.digest());
    let adapter_folder = user.adapter(LORA).unwrap();
    let adapter = LoraAdapter::open(&adapter_folder, &model.projections()).unwrap();
    assert_eq!(adapter.modules.len(), 12);

    // The layout of huggingface_hub.
    let repository = user.cache().join("models--ng0-k1--distilgpt2-finetuned-es");
    assert_eq!(adapter_folder, repository.join("snapshots").join(&lora.commit));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), lora.commit);
    let weights = "adapter_model.safetensors";
    let blob = format!("../../blobs/{}", sha256(&lora.files[weights]));
    assert_eq!(fs::read_link(adapter_folder.join(weights)).unwrap(), Path::new(&blob));

    // Only what is read, each once.
    let mut there: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    there.sort();
    assert_eq!(
        there,
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let asked = hub.asked();
    assert_eq!(asked.iter().filter(|asked| asked.starts_with("HEAD")).count(), 5 + 2, "{asked:?}");
    assert_eq!(cdn.asked().len(), 2);

    // The second time it only asks what the revision means.
    assert_eq!(user.base_model(BASE).unwrap(), folder);
    assert_eq!(hub.asked(), ["GET /api/models/distilgpt2/revision/main"]);
    assert_eq!(user.base_model(&format!("{BASE}@{}", base.commit)).unwrap(), folder);
}

#[test]
fn offline_the_cache_is_enough_and_nothing_is_asked() {
    let (base, _) = fixtures();
    let commit = base.commit.clone();
    let hub = FakeHub::start(move |request| base.answer(request));
    let mut user = User::of(&hub);
    let folder = user.base_model(BASE).unwrap();
    hub.asked();

    user.set("HF_HUB_OFFLINE", "1");
    assert_eq!(user.base_model(BASE).unwrap(), folder);
    assert_eq!(user.base_model(&format!("{BASE}@{commit}")).unwrap(), folder);
    for (name, file) in [
        (BASE, "config.json"),
        (BASE, "model.safetensors"),
        ("gpt2", "the revision of gpt2@main"),
        ("distilgpt2@v2", "the revision of distilgpt2@v2"),
        ("distilgpt2@0123456789012345678901234567890123456789", "the revision"),
    ] {
        if name == BASE {
            fs::rename(folder.join(file), user.home.path().join("aside")).unwrap();
        }
        let message = user.base_model(name).unwrap_err().to_string();
        assert!(message.starts_with(file) && message.contains("HF_HUB_OFFLINE is set"), "{message}");
        if name == BASE {
            fs::rename(user.home.path().join("aside"), folder.join(file)).unwrap();
        }
    }
    assert!(hub.asked().is_empty());
}

#[test]
fn a_cache_that_huggingface_hub_has_filled_is_used() {
    let (_, lora) = fixtures();
    let hub = FakeHub::start({
        let lora = lora.clone();
        move |request| lora.answer(request)
    });
    let mut user = User::of(&hub);
    let repository = user.cache().join("models--ng0-k1--distilgpt2-finetuned-es");
    let snapshot = repository.join("snapshots").join(&lora.commit);
    for folder in [&repository.join("blobs"), &repository.join("refs"), &snapshot] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repository.join("refs/main"), &lora.commit).unwrap();
    for (file, content) in &lora.files {
        let blob = sha256(content);
        fs::write(repository.join("blobs").join(&blob), content).unwrap();
        symlink(Path::new("../../blobs").join(blob), snapshot.join(file)).unwrap();
    }
    // Online, without asking for a file.
    assert_eq!(user.adapter(LORA).unwrap(), snapshot);
    assert_eq!(hub.asked().len(), 1);
    user.set("HF_HUB_OFFLINE", "yes");
    assert_eq!(user.adapter(LORA).unwrap(), snapshot);

    // A link whose blob is gone is not a file, and is mended.
    let weights = &lora.files["adapter_model.safetensors"];
    fs::remove_file(repository.join("blobs").join(sha256(weights))).unwrap();
    let message = user.adapter(LORA).unwrap_err().to_string();
    assert!(message.starts_with("adapter_model.safetensors of ng0-k1/"), "{message}");
    user.set("HF_HUB_OFFLINE", "0");
    user.adapter(LORA).unwrap();
    assert_eq!(fs::read(snapshot.join("adapter_model.safetensors")).unwrap(), *weights);

    // What a damaged ref says does not lead elsewhere.
    user.set("HF_HUB_OFFLINE", "1");
    fs::write(repository.join("refs/main"), "../../../..").unwrap();
    assert!(matches!(user.adapter(LORA), Err(Error::NotCached { .. })));
}

#[test]
fn a_folder_needs_no_hub_and_no_environment() {
    let options = Options::from_variables(|_| None);
    let folder = fixture("gpt2-tiny");
    let source: Source = folder.to_str().unwrap().parse().unwrap();
    assert_eq!(source.base_model(&options).unwrap(), folder);
    assert_eq!(source.adapter(&options).unwrap(), folder);
}

#[test]
fn the_shards_of_an_index_are_fetched_and_no_others() {
    let index = |names: &[&str]| {
        let map: BTreeMap<String, &str> =
            names.iter().enumerate().map(|(i, &name)| (format!("h.{i}.weight"), name)).collect();
        json!({ "metadata": {}, "weight_map": map }).to_string().into_bytes()
    };
    let model = |index: Vec<u8>| {
        let mut files = BTreeMap::from([
            ("config.json".to_owned(), b"{}".to_vec()),
            ("model.safetensors.index.json".to_owned(), index),
        ]);
        for shard in
            ["model-1.safetensors", "model-2.safetensors", "other.safetensors", "../../escape.safetensors"]
        {
            files.insert(shard.to_owned(), shard.as_bytes().to_vec());
        }
        Repository::new("o/sharded", files)
    };

    let good = model(index(&["model-2.safetensors", "model-1.safetensors", "model-2.safetensors"]));
    let hub = FakeHub::start(move |request| good.answer(request));
    let mut user = User::of(&hub);
    let folder = user.base_model("o/sharded").unwrap();
    assert_eq!(fs::read(folder.join("model-2.safetensors")).unwrap(), b"model-2.safetensors");
    assert!(!folder.join("other.safetensors").exists());
    user.set("HF_HUB_OFFLINE", "1");
    assert_eq!(user.base_model("o/sharded").unwrap(), folder);
    fs::remove_file(folder.join("model-1.safetensors")).unwrap();
    let message = user.base_model("o/sharded").unwrap_err().to_string();
    assert!(message.starts_with("model-1.safetensors of o/sharded@main"), "{message}");

    let many: Vec<String> = (0..1025).map(|i| format!("m{i}.safetensors")).collect();
    for (names, why) in [
        (vec!["../../escape.safetensors"], "\"../../escape.safetensors\""),
        (vec!["/etc/escape.safetensors"], "\"/etc/escape.safetensors\""),
        (vec!["sub/escape.safetensors"], "\"sub/escape.safetensors\""),
        (vec![".safetensors"], "\".safetensors\""),
        (vec!["model-1.safetensors", "config.json"], "\"config.json\""),
        (vec!["model-9.safetensors"], "has no model-9.safetensors"),
        (many.iter().map(String::as_str).collect(), "1025 files"),
    ] {
        let bad = model(index(&names));
        let hub = FakeHub::start(move |request| bad.answer(request));
        let message = User::of(&hub).base_model("o/sharded").unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} should contain {why:?}");
        assert!(!hub.asked().iter().any(|asked| asked.contains("escape")));
    }
}

#[test]
fn only_the_hub_gets_the_token() {
    let (_, lora) = fixtures();
    let cdn = FakeHub::start({
        let lora = lora.clone();
        move |request| lora.answer_of_cdn(request)
    });
    // Another port is another origin, and so is another name of the same machine.
    for cdn_url in [cdn.url(), format!("http://localhost:{}", cdn.port())] {
        let lora = with_cdn(lora.clone(), &cdn_url);
        // It was renamed: the old name leads to the new one on the same host, by a path.
        let hub = FakeHub::start(move |request| match request.path.strip_prefix("/api/models/old/") {
            Some(rest) => Answer::new(307).header("location", format!("/api/models/{LORA}/{rest}")),
            None => match request.path.strip_prefix("/old/") {
                Some(rest) => Answer::new(307).header("location", format!("/{LORA}/{rest}")),
                None => lora.answer(request),
            },
        });
        let mut user = User::of(&hub);
        user.set("HF_TOKEN", TOKEN);
        user.adapter("old").unwrap();
        let bearer = format!("Bearer {TOKEN}");
        for request in hub.requests() {
            assert_eq!(request.header("authorization"), Some(&bearer[..]), "{request:?}");
        }
        assert!(hub.asked().iter().any(|asked| asked.contains(LORA)));
        let at_cdn = cdn.requests();
        assert!(!at_cdn.is_empty());
        for request in &at_cdn {
            assert!(!format!("{request:?}").contains(TOKEN), "{request:?}");
        }
        cdn.asked();
    }
}

#[test]
fn a_token_is_read_from_the_file_in_hf_home() {
    let (_, lora) = fixtures();
    let hub = FakeHub::start(move |request| match request.header("authorization") {
        Some("Bearer hf_fromTheFile") => lora.answer(request),
        _ => Answer::error(401, "GatedRepo"),
    });
    let user = User::of(&hub);
    assert!(matches!(user.adapter(LORA), Err(Error::Denied { status: 401, with_token: false, .. })));
    fs::write(user.home.path().join("token"), "hf_fromTheFile\n").unwrap();
    user.adapter(LORA).unwrap();
}

#[test]
fn what_the_hub_says_cannot_lead_out_of_the_cache() {
    let (_, lora) = fixtures();
    let evil = ["../../../evil", "/tmp/evil", "..", "", ".hidden", "a/b", "a\\b", "\u{e9}vil"];
    for evil in evil {
        for header in ["etag", "x-repo-commit", "sha"] {
            let lora = lora.clone();
            let hub = FakeHub::start(move |request| {
                let answer = lora.answer(request);
                if header == "sha" && request.path.starts_with("/api") {
                    return Repository { commit: evil.to_owned(), ..lora.clone() }.info();
                }
                match header {
                    "etag" => answer.header("x-linked-etag", evil).header("etag", evil),
                    _ if header == "x-repo-commit" => answer.header(header, evil),
                    _ => answer,
                }
            });
            let user = User::of(&hub);
            match user.adapter(LORA) {
                Err(Error::Answer { .. }) => {}
                // Not text, so as if it were not there.
                Ok(_) if header == "x-repo-commit" && !evil.is_ascii() => continue,
                other => panic!("{header}: {evil:?}: {other:?}"),
            }
            assert_eq!(user.files(), [""; 0], "{header}: {evil:?}");
        }
    }
}

#[test]
fn a_commit_that_was_asked_for_is_the_one_that_is_given() {
    let (_, lora) = fixtures();
    let other = "0123456789012345678901234567890123456789";
    let hub = FakeHub::start(move |request| match request.path.contains("/api/") {
        true => lora.info(),
        false => lora.answer(request),
    });
    let message = User::of(&hub).adapter(&format!("{LORA}@{other}")).unwrap_err().to_string();
    assert!(message.contains("expected the commit that was asked for"), "{message}");
}

#[test]
fn what_is_too_large_is_not_downloaded() {
    let (base, _) = fixtures();
    for (file, size, limit) in [
        ("config.json", (4u64 << 20) + 1, 4u64 << 20),
        ("tokenizer.json", (64 << 20) + 1, 64 << 20),
        ("model.safetensors", (64 << 30) + 1, 64 << 30),
        ("config.json", u64::MAX, 4 << 20),
    ] {
        let base = base.clone();
        let hub = FakeHub::start(move |request| {
            let answer = base.answer(request);
            if request.path.ends_with(file) {
                answer.header("x-linked-size", size.to_string())
            } else {
                answer
            }
        });
        let message = User::of(&hub).base_model(BASE).unwrap_err().to_string();
        let expected = format!("{file} of {BASE}@main has {size} bytes, at most {limit} are accepted");
        assert_eq!(message, expected);
        assert!(!hub.asked().iter().any(|asked| asked.starts_with("GET") && asked.ends_with(file)));
    }
    let endless = FakeHub::start(|_| Answer { body: vec![b' '; 17 << 20], ..Answer::new(200) });
    let message = User::of(&endless).base_model(BASE).unwrap_err().to_string();
    assert!(message.contains("expected at most 16 MiB, found more"), "{message}");
}

#[test]
fn a_file_of_another_size_than_announced_is_refused() {
    let (base, _) = fixtures();
    for change in [-1i64, 1] {
        let base = base.clone();
        let hub = FakeHub::start(move |request| match &request.method[..] {
            "HEAD" => {
                let answer = base.answer(request);
                let size = answer.body.len() as i64 + change;
                answer.header("content-length", size.to_string())
            }
            _ => base.answer(request),
        });
        let user = User::of(&hub);
        let message = user.base_model(BASE).unwrap_err().to_string();
        assert!(message.contains("expected the size announced"), "{message}");
        assert!(user.blobs().iter().all(|blob| blob.ends_with(".incomplete")));
    }
}

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_stopped() {
    let (base, _) = fixtures();
    let size = base.files["model.safetensors"].len();
    let hub = FakeHub::start({
        let base = base.clone();
        move |request| {
            let answer = base.answer(request);
            if weights(request) && request.from() == Some(0) {
                return Answer { cut: Some(1000), ..answer };
            }
            answer
        }
    });
    let user = User::of(&hub);
    let folder = user.base_model(BASE).unwrap();
    let parts: Vec<_> = hub.requests().iter().filter(|r| weights(r)).filter_map(Request::from).collect();
    assert_eq!(parts, [0, 1000]);
    assert!(size > 1000);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), base.files["model.safetensors"]);
}

#[test]
fn a_server_that_knows_no_ranges_is_asked_again_from_the_start() {
    let (base, _) = fixtures();
    let times = AtomicUsize::new(0);
    let hub = FakeHub::start({
        let base = base.clone();
        move |request| {
            if !weights(request) {
                return base.answer(request);
            }
            let mut whole = request.clone();
            whole.headers.remove("range");
            let cut = (times.fetch_add(1, Ordering::SeqCst) == 0).then_some(1000);
            Answer { cut, ..base.answer(&whole) }
        }
    });
    let user = User::of(&hub);
    let folder = user.base_model(BASE).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), base.files["model.safetensors"]);
}

#[test]
fn half_a_file_never_has_its_name_and_a_later_run_completes_it() {
    let (base, _) = fixtures();
    let broken = FakeHub::start({
        let base = base.clone();
        move |request| {
            let cut = weights(request).then(|| if request.from() == Some(0) { 1000 } else { 0 });
            Answer { cut, ..base.answer(request) }
        }
    });
    let mut user = User::of(&broken);
    let message = user.base_model(BASE).unwrap_err().to_string();
    assert!(message.contains("model.safetensors broke off after 1000 of"), "{message}");
    let digest = sha256(&base.files["model.safetensors"]);
    assert!(user.blobs().contains(&format!("{digest}.incomplete")) && !user.blobs().contains(&digest));
    user.set("HF_HUB_OFFLINE", "1");
    assert!(matches!(user.base_model(BASE), Err(Error::NotCached { .. })));

    let hub = FakeHub::start({
        let base = base.clone();
        move |request| base.answer(request)
    });
    user.set("HF_HUB_OFFLINE", "0");
    user.set("HF_ENDPOINT", &hub.url());
    user.base_model(BASE).unwrap();
    let parts: Vec<_> = hub.requests().iter().filter(|r| weights(r)).filter_map(Request::from).collect();
    assert_eq!(parts, [1000]);
    assert!(user.blobs().contains(&digest) && !user.blobs().contains(&format!("{digest}.incomplete")));
}

#[test]
fn weights_that_are_not_those_announced_are_thrown_away() {
    let (base, _) = fixtures();
    let hub = FakeHub::start(move |request| {
        let mut answer = base.answer(request);
        if weights(request) {
            answer.body[0] ^= 1;
        }
        answer
    });
    let user = User::of(&hub);
    let message = user.base_model(BASE).unwrap_err().to_string();
    assert!(
        message.contains("model.safetensors has SHA-256") && message.contains("thrown away"),
        "{message}"
    );
    assert!(!user.blobs().iter().any(|blob| blob.len() >= 64), "{:?}", user.blobs());
}

#[test]
fn what_the_hub_refuses_is_told_with_what_to_do() {
    let (_, lora) = fixtures();
    let refusal = |name: &str, token: bool, answer: fn() -> Answer| {
        let hub = FakeHub::start(move |_| answer());
        let mut user = User::of(&hub);
        if token {
            user.set("HF_TOKEN", TOKEN);
        }
        let error = user.adapter(name).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(TOKEN));
        error.to_string().replace(&hub.url(), "HUB")
    };
    let missing = refusal("o/nothing", false, || Answer::error(404, "RepoNotFound"));
    assert!(missing.starts_with("HUB has no model repository o/nothing"), "{missing}");
    assert!(missing.contains("check the name"), "{missing}");
    let mirror = refusal("o/nothing", false, || Answer::new(404));
    assert_eq!(mirror, missing);
    let revision = refusal("o/name@v9", false, || Answer::error(404, "RevisionNotFound"));
    assert!(revision.starts_with("o/name has no revision \"v9\""), "{revision}");
    let hidden = refusal("o/name", false, || Answer::error(401, "RepoNotFound"));
    assert!(hidden.contains("it does not exist, or it is private or gated"), "{hidden}");
    assert!(hidden.ends_with("accept its terms at HUB/o/name and set HF_TOKEN"), "{hidden}");
    let gated = refusal("o/name", true, || Answer::error(403, "GatedRepo"));
    assert!(
        gated.contains("(status 403)") && gated.contains("as the user whose token HF_TOKEN is"),
        "{gated}"
    );
    let broken = refusal("o/name", true, || Answer::new(503));
    assert!(broken.contains("status 503 when asked for o/name@main; try again later"), "{broken}");
    let html = refusal("o/name", true, || Answer { body: b"<html>".to_vec(), ..Answer::new(200) });
    assert!(html.contains("expected the description of a repository in JSON"), "{html}");
    let ring = refusal("o/name", true, || Answer::redirect("/again"));
    assert!(ring.contains("found one address after another"), "{ring}");
    let ftp = refusal("o/name", true, || Answer::redirect("ftp://elsewhere/very-secret"));
    assert!(ftp.contains("not one of HTTP") && !ftp.contains("very-secret"), "{ftp}");

    // Only the files of it are gated.
    let hub = FakeHub::start(move |request| match request.path.starts_with("/api/") {
        true => lora.answer(request),
        false => Answer::error(403, "GatedRepo"),
    });
    assert!(matches!(User::of(&hub).adapter(LORA), Err(Error::Denied { status: 403, .. })));
}

#[test]
fn without_a_network_it_is_told_what_works_without() {
    let hub = FakeHub::start(|_| Answer::new(500));
    let mut user = User::of(&hub);
    user.set("HF_TOKEN", TOKEN);
    drop(hub);
    let message = user.base_model(BASE).unwrap_err().to_string();
    assert!(message.starts_with("cannot reach 127.0.0.1"), "{message}");
    assert!(message.contains("HF_HUB_OFFLINE=1") && message.contains("give a folder"), "{message}");
    for endpoint in ["huggingface.co", "ftp://huggingface.co", "https://me:secret@huggingface.co", "/x"] {
        user.set("HF_ENDPOINT", endpoint);
        let message = user.base_model(BASE).unwrap_err().to_string();
        assert!(message.starts_with("HF_ENDPOINT: expected an address"), "{message}");
        assert!(!message.contains("secret"));
    }
}

#[test]
fn a_proxy_is_asked_or_refused_and_never_passed_over() {
    let (base, _) = fixtures();
    let hub = FakeHub::start(move |request| base.answer(request));
    let proxy = FakeHub::start(|_| Answer::new(502));
    let mut user = User::of(&hub);
    user.set("HTTP_PROXY", &proxy.url());
    assert!(matches!(user.base_model(BASE), Err(Error::Unreachable { .. } | Error::Status { .. })));
    assert!(hub.asked().is_empty());
    assert!(!proxy.asked().is_empty());

    user.set("NO_PROXY", "example.org, 127.0.0.1");
    user.base_model(BASE).unwrap();
    assert!(proxy.asked().is_empty());

    user.set("NO_PROXY", "example.org");
    user.set("HTTP_PROXY", "socks5://me:secret@127.0.0.1:1080");
    hub.asked();
    let message = user.base_model(BASE).unwrap_err().to_string();
    assert!(message.starts_with("HTTP_PROXY: expected the address of a proxy"), "{message}");
    assert!(!message.contains("secret") && hub.asked().is_empty());
    // Where no network is used, it does not matter.
    user.set("TRANSFORMERS_OFFLINE", "1");
    user.base_model(BASE).unwrap();
}

#[test]
fn the_cache_is_where_expanded_variables_say() {
    let (base, _) = fixtures();
    let hub = FakeHub::start(move |request| base.answer(request));
    let mut user = User::of(&hub);
    let home = user.home.path().to_str().unwrap().to_owned();
    user.variables.remove("HF_HOME");
    user.set("HOME", &home);
    for (name, value, folder) in [
        ("HF_HOME", "~/a", "a/hub"),
        ("HF_HUB_CACHE", "$HOME/b", "b"),
        ("HUGGINGFACE_HUB_CACHE", "${HOME}/c", "c"),
        ("XDG_CACHE_HOME", "~/d", "d/huggingface/hub"),
    ] {
        user.set(name, value);
        let found = user.base_model(BASE).unwrap();
        assert!(found.starts_with(user.home.path().join(folder)), "{name}: {found:?}");
        user.variables.remove(name);
    }
    assert!(user.base_model(BASE).unwrap().starts_with(user.home.path().join(".cache/huggingface/hub")));
    assert!(!Path::new("~").exists() && !Path::new("$HOME").exists());
}

#[test]
fn pickles_and_other_repositories_are_not_downloaded() {
    let repository = |files: &[&str]| {
        let files = files.iter().map(|&file| (file.to_owned(), b"{}".to_vec()));
        let repository = Repository::new("o/name", files.collect());
        FakeHub::start(move |request| repository.answer(request))
    };
    let hub = repository(&["config.json", "pytorch_model.bin"]);
    let message = User::of(&hub).base_model("o/name").unwrap_err().to_string();
    assert!(message.contains("pytorch_model.bin but no model.safetensors"), "{message}");
    assert!(message.contains("safe_serialization=True"), "{message}");
    assert_eq!(hub.asked().len(), 1);
    let hub = repository(&["adapter_config.json", "adapter_model.bin"]);
    let message = User::of(&hub).adapter("o/name").unwrap_err().to_string();
    assert!(message.contains("adapter_model.bin but no adapter_model.safetensors"), "{message}");
    assert_eq!(hub.asked().len(), 1);
    let hub = repository(&["adapter_config.json", "adapter_model.safetensors"]);
    let message = User::of(&hub).base_model("o/name").unwrap_err().to_string();
    assert!(message.contains("o/name@main has no config.json"), "{message}");
}

#[test]
fn two_at_once_download_a_file_once() {
    let (base, _) = fixtures();
    let hub = FakeHub::start(move |request| base.answer(request));
    let user = User::of(&hub);
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| user.base_model(BASE).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|folder| *folder == folders[0]));
    let downloads = hub.requests().into_iter().filter(weights).count();
    assert_eq!(downloads, 1);
}

/// Whether a request is for the content of the base model's weights.
fn weights(request: &Request) -> bool {
    request.method == "GET" && request.path.ends_with("/model.safetensors")
}

/// Somebody with a home folder and an environment.
struct User {
    home: TempDir,
    variables: BTreeMap<String, String>,
}

impl User {
    fn of(hub: &FakeHub) -> Self {
        let home = tempfile::tempdir().unwrap();
        let home_path = home.path().to_str().unwrap().to_owned();
        let variables = [("HF_HOME".to_owned(), home_path), ("HF_ENDPOINT".to_owned(), hub.url())];
        Self { home, variables: variables.into() }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    fn options(&self) -> Options {
        Options::from_variables(|name| self.variables.get(name).map(Into::into))
    }

    fn base_model(&self, name: &str) -> Result<PathBuf, Error> {
        name.parse::<Source>().unwrap().base_model(&self.options())
    }

    fn adapter(&self, name: &str) -> Result<PathBuf, Error> {
        name.parse::<Source>().unwrap().adapter(&self.options())
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hub")
    }

    /// All blobs of all repositories, whole or not.
    fn blobs(&self) -> Vec<String> {
        let files = self.files().into_iter();
        files.filter_map(|file| Some(file.split_once("/blobs/")?.1.to_owned())).collect()
    }

    /// All files in the home folder but locks.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.home.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if entry.path().extension().is_none_or(|end| end != "lock") {
                    files.push(
                        entry.path().strip_prefix(self.home.path()).unwrap().to_str().unwrap().to_owned(),
                    );
                }
            }
        }
        files
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn fixtures() -> (Repository, Repository) {
    (Repository::of_folder(BASE, &fixture("gpt2-tiny")), Repository::of_folder(LORA, &fixture("lora-es")))
}

fn with_cdn(repository: Repository, cdn: &str) -> Repository {
    Repository { cdn: Some(cdn.to_owned()), ..repository }
}
