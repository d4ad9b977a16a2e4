//! From text to token ids, as transformers' fast tokenizers do it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::DecodeStream;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer as HfTokenizer,
};

use crate::error::ModelError;

/// The tokenizer in a base model's folder.
pub struct Tokenizer {
    tokenizer: HfTokenizer,
    end: Vec<i64>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` from `folder` or, where there is none, GPT-2's older `vocab.json` with `merges.txt`.
    ///
    /// Fails with [`ModelError::Tokenizer`] if the files are missing, unsound or larger than any tokenizer.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, ModelError> {
        let folder = folder.as_ref();
        let mut tokenizer = match folder.join("tokenizer.json") {
            path if path.exists() => {
                HfTokenizer::from_bytes(read(&path)?).map_err(|error| refusal(&path, error))?
            }
            _ => from_vocabulary(folder)?,
        };
        // A tokenizer.json may ask to cut or pad every text; transformers does so only when its caller asks.
        tokenizer.with_truncation(None).map_err(|error| refusal(folder, error))?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, end: end_tokens(folder)? })
    }

    /// The text's token ids, with those that the tokenizer's template adds (none for GPT-2, one at the beginning for Llama):
    /// `tokenizer(text).input_ids` in transformers.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let encoding =
            self.tokenizer.encode_fast(text, true).map_err(|error| ModelError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().iter().map(|&id| id.into()).collect())
    }

    /// Decodes tokens one after another.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream(self.tokenizer.decode_stream(true))
    }

    /// The tokens that end a text.
    pub fn end(&self) -> &[i64] {
        &self.end
    }
}

/// A text that grows token by token.
pub struct TextStream<'a>(HfStream<'a>);

type HfStream<'a> = DecodeStream<
    'a,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

impl TextStream<'_> {
    /// Adds a token; gives the text that is certain with it, none in the middle of a character.
    pub fn push(&mut self, id: i64) -> Result<String, ModelError> {
        let id = u32::try_from(id).map_err(|_| ModelError::Decode(format!("{id} is no token id")))?;
        let text = self.0.step(id).map_err(|error| ModelError::Decode(error.to_string()))?;
        Ok(text.unwrap_or_default())
    }
}

/// `eos_token_id` of `generation_config.json` or else of `config.json`: a number, or several.
fn end_tokens(folder: &Path) -> Result<Vec<i64>, ModelError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(i64),
        Many(Vec<i64>),
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        eos_token_id: Option<Ids>,
    }
    for path in ["generation_config.json", "config.json"].map(|file| folder.join(file)) {
        if path.exists() {
            let config: Config =
                serde_json::from_slice(&read(&path)?).map_err(|error| refusal(&path, error))?;
            if let Some(ids) = config.eos_token_id {
                return Ok(match ids {
                    Ids::One(id) => vec![id],
                    Ids::Many(ids) => ids,
                });
            }
        }
    }
    Ok(Vec::new())
}

fn from_vocabulary(folder: &Path) -> Result<HfTokenizer, ModelError> {
    let vocabulary = folder.join("vocab.json");
    let merges = folder.join("merges.txt");
    for path in [&vocabulary, &merges] {
        if !path.exists() {
            return Err(refusal(folder, "there is neither tokenizer.json nor vocab.json with merges.txt"));
        }
        read(path)?;
    }
    let (Some(vocabulary_path), Some(merges_path)) = (vocabulary.to_str(), merges.to_str()) else {
        return Err(refusal(folder, "its path is not UTF-8"));
    };
    let model =
        BPE::from_file(vocabulary_path, merges_path).build().map_err(|error| refusal(folder, error))?;
    let byte_level = ByteLevel::default().add_prefix_space(false);
    let mut tokenizer = HfTokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    if tokenizer.token_to_id(END_OF_TEXT).is_some() {
        tokenizer
            .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
            .map_err(|error| refusal(folder, error))?;
    }
    Ok(tokenizer)
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    let metadata = fs::metadata(path).map_err(|error| refusal(path, error))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(refusal(path, format!("it is not a file of at most {MAX_BYTES} bytes")));
    }
    fs::read(path).map_err(|error| refusal(path, error))
}

fn refusal(path: &Path, reason: impl ToString) -> ModelError {
    ModelError::Tokenizer { path: PathBuf::from(path), reason: reason.to_string() }
}

/// GPT-2's tokenizer.json has 1.4 MB, Llama 3's 9 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The token that separates documents; the one token GPT-2 recognises as a whole in a text.
const END_OF_TEXT: &str = "<|endoftext|>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_unsound_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = || Tokenizer::open(folder.path()).err().unwrap().to_string();
        assert!(message().contains("neither tokenizer.json nor vocab.json"));
        fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        assert!(message().contains("tokenizer.json: EOF"), "{}", message());
    }

    #[test]
    fn the_older_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
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
