//! Text that grows token by token, and is in the end what decoding all tokens at once gives.

use crate::error::ModelError;
use crate::tokenizer::Tokenizer;

/// The text that continues a prompt.
///
/// What is given is certain: no later token changes it. A character may be of several tokens, and with byte fallback a run of byte tokens is
/// text only if all of it is UTF-8, so that what such a run is shows at its end. Bytes that are no UTF-8 become U+FFFD, as
/// in transformers' `decode`.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens, from a place on where the text before was certain. None of them is special.
    ids: Vec<u32>,
    /// Of what they decode to, the beginning that is not to be given (any more).
    given: String,
    /// How many characters that is if the run of byte tokens at its end, which was a text by itself, goes on as none.
    given_broken: usize,
}

impl<'a> TextStream<'a> {
    /// A text that comes after these tokens.
    pub fn after(tokenizer: &'a Tokenizer, prompt: &[i64]) -> Result<Self, ModelError> {
        let mut ids = Vec::with_capacity(prompt.len());
        for &id in prompt {
            ids.extend(spoken(tokenizer, id)?);
        }
        let given = tokenizer.decode(&ids)?;
        let run = ids.len() - certain(tokenizer, &ids);
        let given_broken = tokenizer.decode(&ids[..ids.len() - run])?.chars().count() + run;
        Ok(Self { tokenizer, ids, given, given_broken })
    }

    /// Adds a token; gives the text that is certain with it.
    pub fn push(&mut self, id: i64) -> Result<String, ModelError> {
        let Some(id) = spoken(self.tokenizer, id)? else { return Ok(String::new()) };
        self.ids.push(id);
        let certain = certain(self.tokenizer, &self.ids);
        let decoded = self.tokenizer.decode(&self.ids[..certain])?;
        // The beginning of a character.
        let text = decoded.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let new = self.new_of(text).to_owned();
        if new.is_empty() {
            return Ok(new);
        }
        if text.len() == decoded.len() && certain == self.ids.len() {
            // Some tokenizers write the first token of a text otherwise than those that follow: this one stays before them.
            self.ids = vec![id];
            self.given = self.tokenizer.decode(&self.ids)?;
        } else {
            self.given = text.to_owned();
        }
        self.given_broken = self.given.chars().count();
        Ok(new)
    }

    /// The text of the tokens at the end, which nothing follows.
    pub fn finish(self) -> Result<String, ModelError> {
        Ok(self.new_of(&self.tokenizer.decode(&self.ids)?).to_owned())
    }

    /// What a text has that was not given.
    fn new_of<'t>(&self, text: &'t str) -> &'t str {
        text.strip_prefix(&self.given).unwrap_or_else(|| {
            let mut rest = text.chars();
            rest.by_ref().take(self.given_broken).for_each(drop);
            rest.as_str()
        })
    }
}

/// The token, unless it is a special one, which is none of the text.
fn spoken(tokenizer: &Tokenizer, id: i64) -> Result<Option<u32>, ModelError> {
    let id = u32::try_from(id).map_err(|_| ModelError::Decode(format!("{id} is no token id")))?;
    Ok((!tokenizer.is_special(id)).then_some(id))
}

/// How many tokens there are before a run of byte tokens at the end.
fn certain(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    ids.len() - ids.iter().rev().take_while(|id| tokenizer.is_byte(**id)).count()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let tokenizer = open("llama-tiny");
        let byte = |byte: u8| id(&tokenizer, &format!("<0x{byte:02X}>"));
        let word = id(&tokenizer, "▁is");
        // Each byte of a run that is no UTF-8 is replaced; the run is as long as it is.
        for (bytes, expected) in [
            (&b"\xe3\x81\x82"[..], "あ"),
            (b"\xe3\x81", "\u{fffd}\u{fffd}"),
            (b"\xe3\x81\x82\x80", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xff", "\u{fffd}"),
            (b"ok", "ok"),
        ] {
            let ids: Vec<i64> = bytes.iter().map(|&b| byte(b)).collect();
            for after in ["Hello", "あ", ""] {
                let given = streamed(&tokenizer, &tokenizer.encode(after).unwrap(), &ids);
                assert_eq!(given.concat(), expected, "{bytes:?} after {after:?}");
                let followed = [&ids[..], &[word]].concat();
                let given = streamed(&tokenizer, &tokenizer.encode(after).unwrap(), &followed);
                assert_eq!(given.concat(), format!("{expected} is"), "{bytes:?} after {after:?}");
            }
        }
    }

    #[test]
    fn text_comes_when_it_is_certain() {
        let tokenizer = open("llama-tiny");
        let [a, b, c] = [0xe3, 0x81, 0x82].map(|byte: u8| id(&tokenizer, &format!("<0x{byte:02X}>")));
        let word = id(&tokenizer, "▁is");
        let prompt = tokenizer.encode("Hello").unwrap();
        let given = streamed(&tokenizer, &prompt, &[word, a, b, c, word, word, a]);
        assert_eq!(given, [" is", "", "", "", "あ is", " is", "", "\u{fffd}"]);
        assert!(TextStream::after(&tokenizer, &[-1]).is_err());
    }

    /// Whatever tokens come, in whatever order.
    #[test]
    fn it_is_the_text_of_all_tokens_together() {
        for (model, vocabulary) in [("llama-tiny", 304), ("gpt2-tiny", 50_000)] {
            let tokenizer = open(model);
            let mut rng = StdRng::seed_from_u64(5);
            for prompt in ["Hello", "El café ", "a\u{fffd}", "日本"] {
                let prompt = tokenizer.encode(prompt).unwrap();
                for _ in 0..300 {
                    let length = rng.random_range(0..12);
                    let mut ids: Vec<i64> = (0..length).map(|_| rng.random_range(0..vocabulary)).collect();
                    if model == "llama-tiny" {
                        // Bytes are as likely as all others together.
                        ids.iter_mut().filter(|id| **id % 2 == 0).for_each(|id| *id = 3 + *id % 256);
                    }
                    let all = [&prompt[..], &ids].concat();
                    let all = tokenizer.decode(&all.iter().map(|&id| id as u32).collect::<Vec<_>>()).unwrap();
                    let before = streamed_all(&tokenizer, &[], &prompt);
                    let given = streamed_all(&tokenizer, &prompt, &ids);
                    // Bytes that spoil a run spoil what of it is in the prompt.
                    let spoilt = !all.starts_with(&before);
                    let expected: String = match spoilt {
                        false => all[before.len()..].to_owned(),
                        true => continue,
                    };
                    assert_eq!(given, expected, "{model} {prompt:?} {ids:?}");
                }
            }
        }
    }

    fn streamed_all(tokenizer: &Tokenizer, prompt: &[i64], ids: &[i64]) -> String {
        streamed(tokenizer, prompt, ids).concat()
    }

    /// What is given for each token, and at the end.
    fn streamed(tokenizer: &Tokenizer, prompt: &[i64], ids: &[i64]) -> Vec<String> {
        let mut stream = TextStream::after(tokenizer, prompt).unwrap();
        let mut given: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        given.push(stream.finish().unwrap());
        given
    }

    fn id(tokenizer: &Tokenizer, token: &str) -> i64 {
        (0..600).find(|&id| tokenizer.token(id).as_deref() == Some(token)).unwrap().into()
    }

    fn open(model: &str) -> Tokenizer {
        Tokenizer::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(model)).unwrap()
    }
}
