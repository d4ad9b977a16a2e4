//! From text to token ids, as transformers' fast tokenizers do it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;
use zklora_proto::TokenizerDigest;

use crate::error::ModelError;
use crate::generation_config::GenerationConfig;
use crate::tokenizer_files;

/// The tokenizer in a base model's folder.
pub struct Tokenizer {
    tokenizer: HfTokenizer,
    generation: GenerationConfig,
}

impl Tokenizer {
    /// Loads the tokenizer that transformers would load from `folder`: from `tokenizer.json` or, for GPT-2, from the older `vocab.json`
    /// with `merges.txt`, and from what `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
    /// `config.json` say of it.
    ///
    /// Fails with [`ModelError::Tokenizer`] or [`ModelError::Files`] if the files are missing, unsound or larger than any tokenizer, or
    /// ask for what is not done here.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, ModelError> {
        let folder = folder.as_ref();
        Ok(Self { tokenizer: tokenizer_files::open(folder)?, generation: GenerationConfig::read(folder)? })
    }

    /// Says which tokenizer this is: equal for two that turn every text into the same tokens for the same reasons.
    ///
    /// It is BLAKE3 in key-derivation mode, with the context string `zklora v1 tokenizer`, of a JSON object without white space and with
    /// its names in the order of their bytes: `added_tokens`, `model`, `normalizer`, `post_processor` and `pre_tokenizer`
    /// as the tokenizers library writes them to `tokenizer.json`, and `split_special_tokens`.
    pub fn digest(&self) -> Result<TokenizerDigest, ModelError> {
        let unwritable = |error: &dyn ToString| ModelError::Encode(error.to_string());
        let json = self.tokenizer.to_string(false).map_err(|error| unwritable(&error))?;
        let mut json: BTreeMap<String, Value> =
            serde_json::from_str(&json).map_err(|error| unwritable(&error))?;
        json.retain(|name, _| !["decoder", "padding", "truncation", "version"].contains(&name.as_str()));
        json.insert("split_special_tokens".to_owned(), self.tokenizer.get_encode_special_tokens().into());
        let text = serde_json::to_string(&json).map_err(|error| unwritable(&error))?;
        Ok(TokenizerDigest::from_bytes(blake3::derive_key("zklora v1 tokenizer", text.as_bytes())))
    }

    /// The text's token ids, with those that the tokenizer's template adds (none for GPT-2, one at the beginning for Llama):
    /// `tokenizer(text).input_ids` in transformers.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let encoding =
            self.tokenizer.encode_fast(text, true).map_err(|error| ModelError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().iter().map(|&id| id.into()).collect())
    }

    /// The same with the bytes of the text that each token is of. Those of the template are of none; a token with a part of a character is
    /// of the whole character.
    pub fn encode_with_spans(&self, text: &str) -> Result<Vec<(i64, Range<usize>)>, ModelError> {
        let encoding =
            self.tokenizer.encode(text, true).map_err(|error| ModelError::Encode(error.to_string()))?;
        let tokens =
            encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_special_tokens_mask());
        let span = |((&id, &(start, end)), &special): ((&u32, &(usize, usize)), &u32)| {
            (id.into(), if special == 1 { 0..0 } else { start..end })
        };
        Ok(tokens.map(span).collect())
    }

    /// The text of these tokens, with U+FFFD in place of bytes that are no UTF-8. Special tokens, and ids that no token has, give none.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.tokenizer.decode(ids, true).map_err(|error| ModelError::Decode(error.to_string()))
    }

    /// Whether a token is none of the text, such as the end of a text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        let token = self.token(id);
        token.is_some_and(|token| self.tokenizer.get_added_vocabulary().is_special_token(&token))
    }

    /// Whether a token is a single byte, such as `<0x0A>`, of a tokenizer that writes what it has no other token for in bytes.
    pub(crate) fn is_byte(&self, id: u32) -> bool {
        let token = self.token(id);
        let digits = |token: &str| {
            let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
            (digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(())
        };
        token.is_some_and(|token| digits(&token).is_some())
    }

    /// A token as the vocabulary has it.
    pub(crate) fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The tokens that end a text.
    pub fn end(&self) -> &[i64] {
        &self.generation.end
    }

    /// Settings of `generation_config.json` with which transformers would generate another text, and which are not done here.
    pub fn generation_not_done(&self) -> &[String] {
        &self.generation.not_done
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn missing_and_unsound_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = || Tokenizer::open(folder.path()).err().unwrap().to_string();
        assert!(message().contains("there is no tokenizer.json"), "{}", message());
        fs::write(folder.path().join("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
        assert!(message().contains("neither tokenizer.json nor vocab.json"));
        fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        assert!(message().contains("tokenizer.json is not the JSON that was expected: EOF"), "{}", message());
    }

    #[test]
    fn the_older_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
        fs::write(
            folder.path().join("vocab.json"),
            r#"{"a":0,"b":1,"Ġ":2,"ab":3,"Ġab":4,"<|endoftext|>":5}"#,
        )
        .unwrap();
        fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\nĠ ab\n").unwrap();
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("ab ab<|endoftext|>ba").unwrap(), [3, 4, 5, 1, 0]);
        assert_eq!(tokenizer.encode("").unwrap(), [0i64; 0]);
    }
}
