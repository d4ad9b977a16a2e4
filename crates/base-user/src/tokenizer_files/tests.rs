use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tokenizer::Tokenizer;

/// `fixtures/goldens-tokenizers.json`: what transformers makes of other files.
#[derive(Deserialize)]
struct Goldens {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    base: String,
    /// By name, what is in their place, or null for no such file.
    files: Value,
    text: String,
    ids: Vec<i64>,
}

#[test]
fn tokens_are_those_of_transformers_whichever_file_says_so() {
    let text = fs::read_to_string(fixtures().join("goldens-tokenizers.json")).unwrap();
    let goldens: Goldens = serde_json::from_str(&text).unwrap();
    assert!(goldens.cases.len() > 40);
    for case in goldens.cases {
        let folder = with(&case.base, &case.files);
        let tokenizer =
            Tokenizer::open(folder.path()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{}", case.name);
    }
}

#[test]
fn what_is_not_done_here_is_refused_by_file_and_setting() {
    for (files, says) in [
        (
            json!({ "tokenizer_config.json": { "tokenizer_class": "Qwen2Tokenizer" } }),
            "tokenizer_config.json: tokenizer_class is \"Qwen2Tokenizer\", expected GPT2Tokenizer",
        ),
        (
            json!({ "tokenizer_config.json": null, "config.json": { "model_type": "gpt2", "tokenizer_class": "T5Tokenizer" } }),
            "config.json: tokenizer_class is \"T5Tokenizer\"",
        ),
        (
            json!({ "tokenizer_config.json": null, "config.json": { "tokenizer_class": "PythonBackend" } }),
            "config.json: tokenizer_class is \"PythonBackend\", expected PreTrainedTokenizerFast",
        ),
        (
            json!({ "tokenizer_config.json": null, "config.json": { "tokenizer_class": "PreTrainedTokenizer" } }),
            "config.json: tokenizer_class is \"PreTrainedTokenizer\", expected PreTrainedTokenizerFast",
        ),
        (
            json!({
                "tokenizer_config.json": {},
                "special_tokens_map.json": { "additional_special_tokens": [{ "content": "<a>" }] }
            }),
            "special_tokens_map.json: additional_special_tokens is {\"content\":\"<a>\"}, expected a text",
        ),
        (
            json!({ "tokenizer.json": null, "tokenizer_config.json": { "add_bos_token": true, "bos_token": "a:b" } }),
            "tokenizer_config.json: \"a:b\" is to be put around a text",
        ),
        (
            json!({ "tokenizer.json": null, "tokenizer_config.json": { "add_eos_token": true, "eos_token": "$a" } }),
            "tokenizer_config.json: \"$a\" is to be put around a text",
        ),
        (
            json!({ "tokenizer.json": null, "tokenizer_config.json": { "add_eos_token": true, "eos_token": "a b" } }),
            "tokenizer_config.json: \"a b\" is to be put around a text",
        ),
        (
            json!({ "tokenizer_config.json": { "tokenizer_class": 3 } }),
            "tokenizer_class is 3, expected a text",
        ),
        (
            json!({ "tokenizer_config.json": { "auto_map": { "AutoTokenizer": ["x.Y", null] } } }),
            "auto_map is [\"x.Y\",null]",
        ),
        (json!({ "tokenizer_config.json": { "auto_map": ["x.Y", null] } }), "auto_map is"),
        (
            json!({ "tokenizer_config.json": { "init_inputs": ["x"] } }),
            "init_inputs is [\"x\"], expected none",
        ),
        (json!({ "tokenizer_config.json": { "fix_mistral_regex": true } }), "fix_mistral_regex is true"),
        (
            json!({ "tokenizer_config.json": { "fast_tokenizer_files": ["tokenizer.4.0.0.json"] } }),
            "fast_tokenizer_files is",
        ),
        (
            json!({ "tokenizer_config.json": { "split_special_tokens": "yes" } }),
            "split_special_tokens is \"yes\", expected true or false",
        ),
        (
            json!({ "tokenizer_config.json": { "add_prefix_space": null } }),
            "add_prefix_space is null, expected true or false",
        ),
        (
            json!({ "tokenizer_config.json": { "added_tokens_decoder": null } }),
            "added_tokens_decoder is null",
        ),
        (
            json!({ "tokenizer_config.json": { "added_tokens_decoder": { "x": { "content": "a" } } } }),
            "added_tokens_decoder[\"x\"]",
        ),
        (
            json!({ "tokenizer_config.json": { "added_tokens_decoder": { "1": "a" } } }),
            "added_tokens_decoder[\"1\"] is \"a\", expected an object",
        ),
        (
            json!({ "tokenizer_config.json": { "added_tokens_decoder": { "1": { "content": "a", "lstrip": 1 } } } }),
            "expected true or false as lstrip",
        ),
        (
            json!({ "tokenizer_config.json": { "eos_token": { "content": "x" } } }),
            "eos_token is {\"content\":\"x\"}",
        ),
        (json!({ "tokenizer_config.json": { "eos_token": 3 } }), "eos_token is 3"),
        (
            json!({ "tokenizer_config.json": { "extra_special_tokens": "x" } }),
            "extra_special_tokens is \"x\"",
        ),
        (json!({ "tokenizer_config.json": { "extra_special_tokens": [1] } }), "extra_special_tokens is 1"),
        (
            json!({ "tokenizer_config.json": { "a_token": "<a>", "b_token": "<b>" } }),
            "\"<a>\" and \"<b>\" are in no vocabulary",
        ),
        (
            json!({
                "tokenizer_config.json": { "extra_special_tokens": ["<a>"] },
                "special_tokens_map.json": { "extra_special_tokens": ["<b>"] }
            }),
            "special_tokens_map.json: extra_special_tokens is [\"<b>\"], expected none",
        ),
        (json!({ "added_tokens.json": { "<a>": "1" } }), "added_tokens.json: <a> is \"1\", expected an id"),
        (json!({ "tokenizer_config.json": [] }), "tokenizer_config.json is not the JSON that was expected"),
        (json!({ "tokenizer.json": {} }), "tokenizer.json"),
        (json!({ "tokenizer.json": null, "vocab.json": null }), "neither tokenizer.json nor vocab.json"),
        (json!({ "tokenizer.json": null, "merges.txt": null }), "neither tokenizer.json nor vocab.json"),
        (json!({ "tokenizer.json": null, "vocab.json": { "a": -1 } }), "vocab.json"),
        (json!({ "tokenizer.json": null, "tokenizer.model": 1 }), "a tokenizer.model, which is not read"),
        (
            json!({ "tokenizer.json": null, "tokenizer_config.json": { "tokenizer_class": "PreTrainedTokenizerFast" } }),
            "there is no tokenizer.json",
        ),
        (
            json!({ "tokenizer.json": null, "tokenizer_config.json": { "tokenizer_class": "LlamaTokenizer" } }),
            "there is no tokenizer.json",
        ),
        (
            json!({
                "tokenizer.json": null,
                "tokenizer_config.json": { "add_bos_token": 1 }
            }),
            "add_bos_token is 1, expected true or false",
        ),
        (
            json!({ "tokenizer.json": {
                "version": "1.0", "added_tokens": [], "model": { "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" }
            } }),
            "GPT2Tokenizer takes a model of BPE",
        ),
    ] {
        let folder = with("gpt2-tiny", &files);
        let message = Tokenizer::open(folder.path()).err().unwrap_or_else(|| panic!("{files}")).to_string();
        assert!(message.contains(says), "{files}: {message:?} should contain {says:?}");
    }
}

#[test]
fn what_says_nothing_of_tokens_is_let_be() {
    let text = "Hello <|endoftext|> red";
    let plain = Tokenizer::open(fixtures().join("gpt2-tiny")).unwrap();
    for files in [
        json!({ "tokenizer_config.json": { "auto_map": null, "init_inputs": [], "fast_tokenizer_files": ["tokenizer.json"] } }),
        json!({ "tokenizer_config.json": { "auto_map": { "AutoProcessor": "x.Y" }, "tokenizer_class": null } }),
        json!({ "tokenizer_config.json": {
            "chat_template": "{{ x }}", "model_max_length": 1e30, "padding_side": "left", "add_eos_token": true,
            "clean_up_tokenization_spaces": true, "fix_mistral_regex": false, "backend": "tokenizers"
        } }),
    ] {
        let tokenizer = Tokenizer::open(with("gpt2-tiny", &files).path()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), plain.encode(text).unwrap(), "{files}");
        assert_eq!(tokenizer.digest().unwrap(), plain.digest().unwrap(), "{files}");
    }
}

#[test]
fn the_digest_tells_tokenizers_apart_and_not_their_files() {
    let digest =
        |base: &str, files: Value| Tokenizer::open(with(base, &files).path()).unwrap().digest().unwrap();
    let plain = digest("gpt2-tiny", json!({}));
    // As Python has it, by `backend_tokenizer.to_str()`, `json.dumps(..., sort_keys=True)` and BLAKE3.
    assert_eq!(plain.to_string(), "be4ad771b8611d92e1a63bd7920b336be7d2a0e558946f3f9e31fd3146b5e911");
    let same = [
        digest("gpt2-tiny", json!({ "tokenizer_config.json": null })),
        digest("gpt2-tiny", json!({ "tokenizer_config.json": { "add_prefix_space": false } })),
    ];
    assert!(same.iter().all(|other| *other == plain));
    let mut others = vec![plain];
    for files in [
        json!({ "tokenizer_config.json": { "add_prefix_space": true } }),
        json!({ "tokenizer_config.json": { "split_special_tokens": true } }),
        json!({ "tokenizer_config.json": { "pad_token": "<pad>" } }),
        json!({ "tokenizer_config.json": { "pad_token": "<pad2>" } }),
        json!({ "added_tokens.json": { "red": 1141 }, "tokenizer_config.json": null }),
    ] {
        others.push(digest("gpt2-tiny", files));
    }
    others.push(digest("llama-tiny", json!({})));
    let count = others.len();
    others.sort_by_key(|digest| *digest.as_bytes());
    others.dedup();
    assert_eq!(others.len(), count);
}

#[test]
fn pointers_and_byte_order_marks_are_told_in_every_file() {
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
        "generation_config.json",
    ] {
        let folder = with("gpt2-tiny", &json!({}));
        let said = |content: &[u8]| {
            fs::write(folder.path().join(file), content).unwrap();
            Tokenizer::open(folder.path()).err().unwrap().to_string()
        };
        let message = said(b"\xef\xbb\xbf{}");
        assert!(message.contains(file) && message.contains("byte order mark"), "{message}");
        let message = said(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n");
        assert!(message.contains(file) && message.contains("git lfs pull"), "{message}");
        let message = said(b"{");
        assert!(message.contains(file) && message.matches("EOF").count() == 1, "{message}");
    }
}

/// Merges that are left out by chance give the same text other tokens each time.
#[test]
fn a_tokenizer_that_draws_lots_is_refused() {
    let text = fs::read_to_string(fixtures().join("gpt2-tiny/tokenizer.json")).unwrap();
    let with_dropout = |class: &str, dropout: Value| {
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json["model"]["dropout"] = dropout;
        let files = json!({ "tokenizer.json": json, "tokenizer_config.json": { "tokenizer_class": class } });
        Tokenizer::open(with("gpt2-tiny", &files).path())
    };
    for dropout in [json!(0.1), json!(0.999)] {
        let message = with_dropout("PreTrainedTokenizerFast", dropout).err().unwrap().to_string();
        assert!(message.contains("tokenizer.json: model.dropout is 0."), "{message}");
        assert!(message.contains("expected null: a text would have other tokens each time"), "{message}");
    }
    // These are the same each time; and this class takes the vocabulary alone.
    for (class, dropout) in [
        ("PreTrainedTokenizerFast", json!(null)),
        ("PreTrainedTokenizerFast", json!(0.0)),
        ("PreTrainedTokenizerFast", json!(1.0)),
        ("GPT2Tokenizer", json!(0.5)),
    ] {
        let tokenizer = with_dropout(class, dropout.clone())
            .unwrap_or_else(|error| panic!("{class}, {dropout}: {error}"));
        let text = "El administrador debe comprobar la red.";
        let first = tokenizer.encode(text).unwrap();
        assert!((0..20).all(|_| tokenizer.encode(text).unwrap() == first), "{class}, {dropout}");
    }
}

/// A copy of a fixture's tokenizer and settings, with these files in place of its own.
fn with(base: &str, files: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join(base)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "json" || end == "txt") {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    for (name, content) in files.as_object().unwrap() {
        let path = folder.path().join(name);
        match content {
            Value::Null => fs::remove_file(path).unwrap_or_default(),
            content => fs::write(path, content.to_string()).unwrap(),
        }
    }
    folder
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}
