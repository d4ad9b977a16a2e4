//! Which tokenizer the files in a base model's folder mean.
//!
//! `tokenizer.json` alone does not say it. transformers 5.23 (`AutoTokenizer`, `TokenizersBackend`, `GPT2Tokenizer`,
//! `LlamaTokenizer`) chooses a class by `tokenizer_config.json` and `config.json`; some classes take only the vocabulary
//! from `tokenizer.json` and build the rest themselves; and tokens are added that stand in `tokenizer_config.json`,
//! `special_tokens_map.json` or `added_tokens.json`. Here the same is done with the same library underneath, and what is
//! not done is refused by the file and the setting.

mod tokens;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer as HfTokenizer;
use tokens::{Added, Tokens};
use zklora_hf::read;

use crate::error::ModelError;

/// Reads the tokenizer in a folder.
pub(crate) fn open(folder: &Path) -> Result<HfTokenizer, ModelError> {
    let files = Files::read(folder)?;
    let class = Class::of(&files)?;
    let settings = Settings::of(&files, class)?;
    let mut tokenizer = class.build(&files, &settings)?;
    let refuse = |error: tokenizers::Error| refusal(&files.tokenizer, error);

    let known = tokenizer.get_added_tokens_decoder();
    let known = known.values().map(|token| token.content.clone()).collect();
    let Added { ordered, own, extra } = settings.tokens.in_order(known);
    tokenizer.add_tokens(ordered).map_err(refuse)?;
    let new = own.iter().map(|token| &token.content).filter(|token| tokenizer.token_to_id(token).is_none());
    if let [one, other, ..] = new.collect::<Vec<_>>()[..] {
        let why = format!(
            "{one:?} and {other:?} are in no vocabulary, and no order says which comes first; list them in \
             added_tokens_decoder"
        );
        return Err(refusal(&files.config.path, why));
    }
    tokenizer.add_tokens(own).map_err(refuse)?;
    tokenizer.add_tokens(extra).map_err(refuse)?;
    tokenizer.set_encode_special_tokens(settings.split_special_tokens);
    // A tokenizer.json may ask to cut or pad every text; transformers does so only when its caller asks.
    tokenizer.with_truncation(None).map_err(refuse)?;
    tokenizer.with_padding(None);
    if let Some(template) = settings.template {
        let ids = |token: &str| tokenizer.token_to_id(token);
        let processor = template.processor(ids).ok_or_else(|| {
            refusal(&files.config.path, "bos_token or eos_token, which are to be added, are in no vocabulary")
        })?;
        let processor: tokenizers::PostProcessorWrapper =
            serde_json::from_value(processor).map_err(|error| refusal(&files.config.path, error))?;
        tokenizer.with_post_processor(Some(processor));
    }
    Ok(tokenizer)
}

/// The files of a folder that say which tokenizer it is.
struct Files {
    /// `tokenizer.json`, whether it is there or not.
    tokenizer: PathBuf,
    /// What that holds, and its text.
    json: Option<(Map<String, Value>, Vec<u8>)>,
    config: Object,
    special: Object,
    added: Object,
    model: Object,
}

/// A JSON object in a file; empty if there is no such file.
struct Object {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Files {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        let tokenizer = folder.join("tokenizer.json");
        let json = match text(&tokenizer)? {
            Some(text) => Some((read::parse_json(&tokenizer, &text)?, text)),
            None => None,
        };
        let object = |name: &str| Object::read(folder.join(name));
        Ok(Self {
            tokenizer,
            json,
            config: object("tokenizer_config.json")?,
            special: object("special_tokens_map.json")?,
            added: object("added_tokens.json")?,
            model: object("config.json")?,
        })
    }
}

impl Object {
    fn read(path: PathBuf) -> Result<Self, ModelError> {
        let fields = match text(&path)? {
            Some(text) => read::parse_json(&path, &text)?,
            None => Map::new(),
        };
        Ok(Self { path, fields })
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// A text, if it is there and neither null nor empty.
    fn text(&self, name: &str) -> Result<Option<&str>, ModelError> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(found) => Err(self.refuse(name, found, "a text")),
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(found) => Err(self.refuse(name, found, "true or false")),
        }
    }

    fn refuse(&self, name: &str, found: &Value, expected: &str) -> ModelError {
        let found: String = found.to_string().chars().take(200).collect();
        refusal(&self.path, format!("{name} is {found}, expected {expected}"))
    }
}

/// The classes of transformers that are done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `TokenizersBackend`, once `PreTrainedTokenizerFast`: what `tokenizer.json` says.
    Backend,
    /// `GPT2Tokenizer`: byte-level BPE with the vocabulary of `tokenizer.json`, or of `vocab.json` and `merges.txt`.
    Gpt2,
    /// `LlamaTokenizer`: BPE on words that begin with `▁`, with the vocabulary of `tokenizer.json`.
    Llama,
}

impl Class {
    /// As `AutoTokenizer` chooses it.
    fn of(files: &Files) -> Result<Self, ModelError> {
        let config = &files.config;
        let custom = match config.get("auto_map") {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => map.get("AutoTokenizer").filter(|class| !class.is_null()),
            Some(list) => Some(list),
        };
        if let Some(found) = custom {
            return Err(config.refuse("auto_map", found, "no code of its own for the tokenizer"));
        }
        let (declared, by) = match config.text("tokenizer_class")? {
            Some(class) => (Some(class), config),
            None => (files.model.text("tokenizer_class")?, &files.model),
        };
        let gpt2 = files.model.get("model_type").and_then(Value::as_str) == Some("gpt2");
        let Some(declared) = declared else {
            return Ok(if gpt2 { Self::Gpt2 } else { Self::Backend });
        };
        // The classes without a tokenizer.json; only in tokenizer_config.json does transformers take them for the others.
        if std::ptr::eq(by, &files.model) && ["PreTrainedTokenizer", "PythonBackend"].contains(&declared) {
            return Err(by.refuse("tokenizer_class", &Value::from(declared), "PreTrainedTokenizerFast"));
        }
        match declared.strip_suffix("Fast").unwrap_or(declared) {
            "GPT2Tokenizer" => Ok(Self::Gpt2),
            // Llama 3 and others say so, and are byte-level.
            "LlamaTokenizer" if files.has_byte_level() => Ok(Self::Backend),
            "LlamaTokenizer" => Ok(Self::Llama),
            "TokenizersBackend" | "PreTrainedTokenizer" | "PythonBackend" => Ok(Self::Backend),
            _ => Err(by.refuse(
                "tokenizer_class",
                &Value::from(declared),
                "GPT2Tokenizer, LlamaTokenizer or, if tokenizer.json says everything, PreTrainedTokenizerFast",
            )),
        }
    }

    /// The tokenizer, without the tokens that are added.
    fn build(self, files: &Files, settings: &Settings) -> Result<HfTokenizer, ModelError> {
        let refuse = |error: tokenizers::Error| refusal(&files.tokenizer, error);
        let (vocabulary, merges, post_processor) = match (&files.json, self) {
            (Some((json, text)), Self::Backend) => {
                refuse_chance(json).map_err(|why| refusal(&files.tokenizer, why))?;
                return HfTokenizer::from_bytes(text).map_err(refuse);
            }
            (Some((json, text)), _) => {
                // That it is one is checked by the library.
                HfTokenizer::from_bytes(text).map_err(refuse)?;
                let part = |name: &str| json.get("model").and_then(|model| model.get(name)).cloned();
                let (Some(vocabulary @ Value::Object(_)), Some(merges @ Value::Array(_))) =
                    (part("vocab"), part("merges"))
                else {
                    let why =
                        format!("{} takes a model of BPE, with vocab and merges, found another", self.name());
                    return Err(refusal(&files.tokenizer, why));
                };
                (vocabulary, merges, json.get("post_processor").cloned().unwrap_or_default())
            }
            (None, Self::Gpt2) => {
                let (vocabulary, merges) = vocabulary(&files.tokenizer)?;
                (vocabulary, merges, Value::Null)
            }
            (None, _) => {
                let why = "there is no tokenizer.json; where the tokenizer can be loaded in Python, \
                           AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) writes one";
                return Err(refusal(&files.tokenizer, why));
            }
        };
        let (pre_tokenizer, decoder, model) = match self {
            Self::Llama => settings.llama(vocabulary, merges),
            _ => settings.gpt2(vocabulary, merges),
        };
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder, "model": model,
        });
        let source = match files.json {
            Some(_) => files.tokenizer.clone(),
            None => files.tokenizer.with_file_name(VOCABULARY),
        };
        HfTokenizer::from_bytes(json.to_string()).map_err(|error| refusal(&source, error))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Backend => "PreTrainedTokenizerFast",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::Llama => "LlamaTokenizer",
        }
    }

    /// The named tokens of a tokenizer whose files do not name them.
    fn default(self, name: &str) -> Option<&'static str> {
        match (self, name) {
            (Self::Gpt2, "bos_token" | "eos_token" | "unk_token") => Some("<|endoftext|>"),
            (Self::Llama, "unk_token") => Some("<unk>"),
            (Self::Llama, "bos_token") => Some("<s>"),
            (Self::Llama, "eos_token") => Some("</s>"),
            _ => None,
        }
    }
}

impl Files {
    fn has_byte_level(&self) -> bool {
        let needle = br#""ByteLevel""#;
        self.json.as_ref().is_some_and(|(_, text)| text.windows(needle.len()).any(|part| part == needle))
    }
}

/// Refuses merges that are left out by chance: the same text would have other tokens each time. The other classes drop the setting, as
/// transformers' do.
fn refuse_chance(tokenizer: &Map<String, Value>) -> Result<(), String> {
    let dropout = tokenizer.get("model").and_then(|model| model.get("dropout")).unwrap_or(&Value::Null);
    // At 1 no merge is ever made.
    if dropout.is_null() || dropout.as_f64().is_some_and(|share| share == 0.0 || share == 1.0) {
        return Ok(());
    }
    let found: String = dropout.to_string().chars().take(200).collect();
    Err(format!("model.dropout is {found}, expected null: a text would have other tokens each time"))
}

/// What the files beside `tokenizer.json` say of how texts become tokens.
struct Settings {
    add_prefix_space: bool,
    /// Whether `▁` is put before every part of a text, not only its begin.
    legacy: bool,
    split_special_tokens: bool,
    tokens: Tokens,
    /// What is put around a text, if `tokenizer.json` does not say it.
    template: Option<Template>,
}

impl Settings {
    fn of(files: &Files, class: Class) -> Result<Self, ModelError> {
        let config = &files.config;
        let without = |name: &str, is_harmless: fn(&Value) -> bool| match config.get(name) {
            Some(found) if !found.is_null() && !is_harmless(found) => {
                Err(config.refuse(name, found, "none, as it alters the tokenizer"))
            }
            _ => Ok(()),
        };
        without("init_inputs", |found| found.as_array().is_some_and(Vec::is_empty))?;
        without("fix_mistral_regex", |found| *found == Value::Bool(false))?;
        without("fast_tokenizer_files", |found| {
            found.as_array().is_some_and(|files| files.iter().all(|file| file == "tokenizer.json"))
        })?;
        let tokens = Tokens::of(files, class)?;
        let template = match &files.json {
            Some(_) => None,
            None => Template::of(config, &tokens)?,
        };
        Ok(Self {
            add_prefix_space: match (class, config.get("add_prefix_space")) {
                (Class::Llama, None | Some(Value::Null)) => true,
                (Class::Backend, _) | (_, None) => false,
                _ => config.flag("add_prefix_space")?.unwrap_or_default(),
            },
            legacy: match config.get("legacy") {
                Some(Value::Null) => false,
                _ => config.flag("legacy")?.unwrap_or_default(),
            },
            split_special_tokens: config.flag("split_special_tokens")?.unwrap_or_default(),
            tokens,
            template,
        })
    }

    /// Pre-tokenizer, decoder and model.
    fn gpt2(&self, vocabulary: Value, merges: Value) -> (Value, Value, Value) {
        let byte_level = |add_prefix_space: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true
            })
        };
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": merges,
        });
        (byte_level(self.add_prefix_space), byte_level(true), model)
    }

    fn llama(&self, vocabulary: Value, merges: Value) -> (Value, Value, Value) {
        let scheme = match (self.add_prefix_space, self.legacy) {
            (false, _) => "never",
            (true, true) => "always",
            (true, false) => "first",
        };
        let pre_tokenizer =
            json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.add_prefix_space {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary,
            "merges": merges,
        });
        (pre_tokenizer, json!({ "type": "Sequence", "decoders": decoders }), model)
    }
}

/// What is put around a text by a tokenizer that is built from `vocab.json`.
struct Template {
    begin: Option<String>,
    end: Option<String>,
}

impl Template {
    fn of(config: &Object, tokens: &Tokens) -> Result<Option<Self>, ModelError> {
        let token = |flag: &str, name: &str| {
            let added = config.flag(flag)?.unwrap_or_default();
            let found = tokens.named.iter().find(|(known, _)| *known == name);
            Ok::<_, ModelError>(found.filter(|_| added).map(|(_, token)| token.content.clone()))
        };
        let template =
            Self { begin: token("add_bos_token", "bos_token")?, end: token("add_eos_token", "eos_token")? };
        // transformers writes the template as a text, in which these have a meaning.
        let has_meaning = |token: &&String| {
            token.starts_with('$') || token.chars().any(|one| one == ':' || one.is_whitespace())
        };
        if let Some(token) = template.begin.iter().chain(&template.end).find(has_meaning) {
            let why = format!(
                "{token:?} is to be put around a text, expected a bos_token and eos_token without $, colon and white space"
            );
            return Err(refusal(&config.path, why));
        }
        Ok((template.begin.is_some() || template.end.is_some()).then_some(template))
    }

    /// None if one of its tokens is not known.
    fn processor(&self, id: impl Fn(&str) -> Option<u32>) -> Option<Value> {
        let piece = |token: &String| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let around = |name: &str| -> Vec<Value> {
            let middle = std::iter::once(text(name));
            self.begin.iter().map(piece).chain(middle).chain(self.end.iter().map(piece)).collect()
        };
        let mut special = Map::new();
        for token in self.begin.iter().chain(&self.end) {
            special.insert(token.clone(), json!({ "id": token, "ids": [id(token)?], "tokens": [token] }));
        }
        let mut pair = around("A");
        pair.extend(around("B"));
        Some(json!({
            "type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": special
        }))
    }
}

/// `vocab.json` and `merges.txt` beside a `tokenizer.json` that is not there.
fn vocabulary(tokenizer: &Path) -> Result<(Value, Value), ModelError> {
    let folder = tokenizer.parent().unwrap_or(Path::new("."));
    // transformers would read them before the older files.
    for other in ["tokenizer.model", "tiktoken.model", "tekken.json"] {
        if folder.join(other).exists() {
            let why = format!(
                "there is no tokenizer.json but a {other}, which is not read; where it can be loaded in Python, \
                 AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) writes a tokenizer.json"
            );
            return Err(refusal(folder, why));
        }
    }
    let (path, merges_path) = (folder.join(VOCABULARY), folder.join("merges.txt"));
    let (Some(vocabulary), Some(merges)) = (text(&path)?, text(&merges_path)?) else {
        return Err(refusal(folder, "there is neither tokenizer.json nor vocab.json with merges.txt"));
    };
    let vocabulary: Map<String, Value> = read::parse_json(&path, &vocabulary)?;
    let merges = String::from_utf8(merges).map_err(|error| refusal(&merges_path, error))?;
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with("#version")).collect();
    Ok((Value::Object(vocabulary), Value::from(merges)))
}

/// The content of a file, if it is there.
fn text(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match read::text(path, MAX_BYTES, "") {
        Ok(text) => Ok(Some(text)),
        Err(zklora_hf::Error::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn refusal(path: &Path, reason: impl ToString) -> ModelError {
    ModelError::Tokenizer { path: path.to_owned(), reason: reason.to_string() }
}

/// GPT-2's, where there is no tokenizer.json.
const VOCABULARY: &str = "vocab.json";

/// GPT-2's tokenizer.json has 1.4 MB, Llama 3's 9 MB.
const MAX_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests;
