//! The tokens that are added to a vocabulary, and in which order.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{Class, Files, Object, refusal};
use crate::error::ModelError;

/// The tokens that a folder's files add or name.
pub(super) struct Tokens {
    /// By what should be their ids, in whose order they are added.
    listed: BTreeMap<u64, Token>,
    /// Begin, end and others, in the order in which they are added.
    pub(super) named: Vec<(&'static str, Token)>,
    /// Those of names that only this model has.
    own: Vec<Token>,
    /// Those without a name.
    extra: Vec<Token>,
}

impl Tokens {
    pub(super) fn of(files: &Files, class: Class) -> Result<Self, ModelError> {
        let config = &files.config;
        let mut sources = Sources::of(files);
        let mut listed = BTreeMap::new();
        match config.get("added_tokens_decoder") {
            Some(Value::Object(tokens)) => {
                for (id, token) in tokens {
                    let place = format!("added_tokens_decoder[{id:?}]");
                    let id: u64 = id
                        .trim()
                        .parse()
                        .map_err(|_| config.refuse(&place, token, "an id in front of it"))?;
                    let object = token.as_object().ok_or("an object");
                    let parsed = object.map_err(str::to_owned).and_then(Token::of);
                    listed.insert(id, parsed.map_err(|why| config.refuse(&place, token, &why))?);
                }
            }
            Some(found) => {
                return Err(config.refuse("added_tokens_decoder", found, "an object of tokens by id"));
            }
            // The older files count only without it.
            None => {
                sources.merge_special(files)?;
                let special = sources.texts_of_special();
                for (content, id) in &files.added.fields {
                    let id = id.as_u64().ok_or_else(|| files.added.refuse(content, id, "an id"))?;
                    let is_special = special.contains(content);
                    let token = Token {
                        normalized: Some(!is_special),
                        special: is_special,
                        ..Token::special(content)
                    };
                    listed.insert(id, token);
                }
                let json = files.json.as_ref().and_then(|(json, _)| json.get("added_tokens"));
                for token in json.and_then(Value::as_array).into_iter().flatten() {
                    let id = token.get("id").and_then(Value::as_u64);
                    let parsed = token.as_object().ok_or("an object".to_owned()).and_then(Token::of);
                    let (Some(id), Ok(token)) = (id, parsed) else {
                        return Err(refusal(
                            &files.tokenizer,
                            "added_tokens has what is no token with an id",
                        ));
                    };
                    listed.insert(id, token);
                }
            }
        }
        sources.tokens(listed, class)
    }

    /// As transformers adds them: all that are listed, then of the others those that are new. `known` are the texts of those that
    /// the tokenizer has already.
    pub(super) fn in_order(self, mut known: BTreeSet<String>) -> Added {
        let text = |token: &Token| token.content.clone();
        let all_named: BTreeSet<String> =
            self.named.iter().map(|(_, token)| text(token)).chain(self.own.iter().map(text)).collect();
        known.extend(self.listed.values().map(text));
        let mut new = |tokens: Vec<Token>| -> Vec<Token> {
            tokens.into_iter().filter(|token| known.insert(text(token))).collect()
        };
        let named = new(self.named.into_iter().map(|(_, token)| token).collect());
        let (own, extra) = (new(self.own), new(self.extra));
        let added = |tokens: Vec<Token>| -> Vec<AddedToken> {
            let token = |token: Token| {
                let special = token.special || all_named.contains(&token.content);
                Token { special, ..token }.added()
            };
            tokens.into_iter().map(token).collect()
        };
        let ordered = self.listed.into_values().chain(named).collect();
        Added { ordered: added(ordered), own: added(own), extra: added(extra) }
    }
}

/// Tokens to be added, one part after the other.
pub(super) struct Added {
    /// In this order.
    pub(super) ordered: Vec<AddedToken>,
    /// In the order of the file.
    pub(super) own: Vec<AddedToken>,
    /// In this order.
    pub(super) extra: Vec<AddedToken>,
}

/// A token before it is clear whether it is special, on which the rest of its settings may depend.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: Option<bool>,
    special: bool,
}

impl Token {
    fn special(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: true,
        }
    }

    /// Of an object with a `content`, or why it is none.
    fn of(object: &Map<String, Value>) -> Result<Self, String> {
        let flag = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(format!("true or false as {name}")),
        };
        let content = object.get("content").and_then(Value::as_str).ok_or("a token with its content")?;
        Ok(Self {
            content: content.to_owned(),
            single_word: flag("single_word")?.unwrap_or_default(),
            lstrip: flag("lstrip")?.unwrap_or_default(),
            rstrip: flag("rstrip")?.unwrap_or_default(),
            normalized: flag("normalized")?,
            special: flag("special")?.unwrap_or_default(),
        })
    }

    fn added(self) -> AddedToken {
        AddedToken {
            content: self.content,
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized.unwrap_or(!self.special),
            special: self.special,
        }
    }
}

/// Settings that name tokens, from `tokenizer_config.json` and perhaps `special_tokens_map.json`, before they are tokens. Each value has the
/// file that it is from.
struct Sources<'a>(BTreeMap<&'a str, (&'a Object, &'a Value)>);

impl<'a> Sources<'a> {
    fn of(files: &'a Files) -> Self {
        let mut sources = BTreeMap::new();
        for (name, value) in &files.config.fields {
            sources.insert(name.as_str(), (&files.config, value));
        }
        let mut sources = Self(sources);
        sources.rename();
        sources
    }

    /// The older name of the tokens without a name.
    fn rename(&mut self) {
        let extra_says_nothing = self.0.get(EXTRA).is_none_or(|(_, value)| is_empty(value));
        if extra_says_nothing && let Some(additional) = self.0.remove(OLDER_EXTRA) {
            self.0.insert(EXTRA, additional);
        }
    }

    fn merge_special(&mut self, files: &'a Files) -> Result<(), ModelError> {
        for (name, value) in &files.special.fields {
            // transformers fails at these, although under the newer name it takes them.
            let tokens = value.as_array().filter(|_| name == OLDER_EXTRA);
            if let Some(token) = tokens.and_then(|tokens| tokens.iter().find(|token| token.is_object())) {
                return Err(files.special.refuse(name, token, "a text"));
            }
            let other = self.0.get(EXTRA).map(|(_, other)| *other);
            if name == EXTRA && other.is_some_and(|other| !is_empty(other) && other != value) {
                return Err(files.special.refuse(
                    name,
                    value,
                    "none, as tokenizer_config.json has extra_special_tokens, too; leave them in one of the files",
                ));
            }
            self.0.insert(name.as_str(), (&files.special, value));
        }
        if !self.0.contains_key(EXTRA) {
            self.rename();
        }
        Ok(())
    }

    /// The texts of the tokens that are special by their settings.
    fn texts_of_special(&self) -> BTreeSet<String> {
        let text = |value: &Value, file: &Object| match value {
            Value::String(text) => Some(text.clone()),
            // Python would compare with how it writes an object of tokenizer_config.json.
            Value::Object(token) if is_special_map(file) => {
                token.get("content").and_then(Value::as_str).map(str::to_owned)
            }
            _ => None,
        };
        let named = NAMED.iter().filter_map(|name| self.0.get(name));
        let mut texts: BTreeSet<String> = named.filter_map(|(file, value)| text(value, file)).collect();
        if let Some((file, Value::Array(extra))) = self.0.get(EXTRA) {
            texts.extend(extra.iter().filter_map(|value| text(value, file)));
        }
        texts
    }

    fn tokens(self, listed: BTreeMap<u64, Token>, class: Class) -> Result<Tokens, ModelError> {
        let by_text: BTreeMap<&str, &Token> =
            listed.values().map(|token| (token.content.as_str(), token)).collect();
        let mut named = Vec::new();
        for name in NAMED {
            let token = match self.0.get(name) {
                Some((_, Value::Null)) => None,
                Some((file, value)) => Some(token_of(file, name, value)?),
                None => class.default(name).map(Token::special),
            };
            if let Some(token) = token {
                named.push((name, by_text.get(token.content.as_str()).copied().cloned().unwrap_or(token)));
            }
        }
        let mut own = Vec::new();
        for (name, (file, value)) in &self.0 {
            let is_token =
                value.is_string() || is_added_token(value) || (value.is_object() && is_special_map(file));
            if name.ends_with("_token") && !NAMED.contains(name) && is_token {
                own.push(token_of(file, name, value)?);
            }
        }
        let mut extra = Vec::new();
        match self.0.get(EXTRA) {
            None | Some((_, Value::Null)) => {}
            Some((file, Value::Array(tokens))) => {
                for token in tokens {
                    extra.push(token_of(file, EXTRA, token)?);
                }
            }
            Some((file, Value::Object(tokens))) => {
                for (name, token) in tokens {
                    own.push(token_of(file, &format!("{EXTRA}.{name}"), token)?);
                }
            }
            Some((file, found)) => return Err(file.refuse(EXTRA, found, "a list of tokens, or an object")),
        }
        drop(by_text);
        Ok(Tokens { listed, named, own, extra })
    }
}

/// A token that a setting names.
fn token_of(file: &Object, name: &str, value: &Value) -> Result<Token, ModelError> {
    let from_map = is_special_map(file);
    match value {
        Value::String(text) => Ok(Token::special(text)),
        Value::Object(object) if from_map || is_added_token(value) => {
            let token = Token::of(object).map_err(|why| file.refuse(name, value, &why))?;
            Ok(Token { special: token.special || from_map, ..token })
        }
        _ => Err(file.refuse(name, value, r#"a text, or an object with "__type": "AddedToken""#)),
    }
}

/// Whether tokens in this file need not say that they are some.
fn is_special_map(file: &Object) -> bool {
    file.path.ends_with("special_tokens_map.json")
}

fn is_added_token(value: &Value) -> bool {
    value.get("__type").is_some_and(|kind| kind == "AddedToken")
}

/// Whether Python would take a setting for left out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// The tokens that have names in every tokenizer, in transformers' order.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokens without a name.
const EXTRA: &str = "extra_special_tokens";

/// Their name in older files.
const OLDER_EXTRA: &str = "additional_special_tokens";
