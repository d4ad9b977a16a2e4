//! `zklora-base-user generate`.

use std::io::Write;
use std::time::Instant;

use anyhow::ensure;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::warn;
use zklora_base_user::models::Past;
use zklora_base_user::sampling::Sampler;
use zklora_base_user::stop::Stopped;
use zklora_base_user::text_stream::TextStream;
use zklora_cli::OutputError;
use zklora_proto::Document;
use zklora_verdict::SessionReport;

use super::contributors::ContributorArgs;
use super::{Loaded, ModelArgs};

/// Continues a text with the adapter, token by token, and ends each session with a receipt that both sign.
///
/// The same seed gives the same text, on the same machine.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-base-user generate --base-model fixtures/gpt2-tiny --contributor zklora://KEY@127.0.0.1:30000 --adapter ID --prompt \"El sistema\" --max-tokens 20"
)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    contributors: ContributorArgs,
    /// The text that is continued.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Most tokens to add.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Logits are divided by this; at 0 the likeliest token is taken.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = number(0.0, 100.0))]
    temperature: f64,
    /// Draw from this many of the likeliest tokens.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Draw from the likeliest tokens that have this probability together.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = number(0.0, 1.0))]
    top_p: f64,
    /// Decides what is drawn.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Print the result as JSON, when it is there.
    #[arg(long)]
    json: bool,
}

/// A prompt and what continues it.
#[derive(Serialize, JsonSchema)]
pub struct GenerateReport {
    /// The prompt.
    prompt: String,
    /// Its tokens.
    prompt_tokens: usize,
    /// What continues it, without the prompt.
    text: String,
    /// Its tokens.
    tokens: usize,
    /// Why it ended, for people.
    stopped: &'static str,
    /// How fast it was.
    tokens_per_second: f64,
    /// Every session, in the order of the contributors.
    sessions: Vec<SessionReport>,
}

impl Document for GenerateReport {
    const FORMAT: &'static str = "zklora-generate/1";
    const PRINTED_BY: &'static str = "zklora-base-user generate --json";
}

/// A continuation.
struct Generated {
    text: String,
    tokens: usize,
    /// Why it ended.
    stopped: &'static str,
    /// What stopped it, if that was an error. All before is as it was to be.
    failed: Option<anyhow::Error>,
}

pub fn run(args: &Generate, out: &mut dyn Write) -> anyhow::Result<()> {
    args.contributors.check()?;
    let mut base = args.model.load()?;
    let not_done = base.tokenizer.generation_not_done();
    if !not_done.is_empty() {
        warn!(
            "the base model's generation_config.json has settings that are not done here, so that transformers may give another \
             text: {}",
            not_done.join(", ")
        );
    }
    let prompt = base.tokenizer.encode(&args.prompt)?;
    ensure!(!prompt.is_empty(), "the prompt has no tokens; give a text to continue");
    let positions = base.model.positions();
    ensure!(
        prompt.len() <= positions,
        "the prompt has {} tokens, the base model takes at most {positions}; shorten it",
        prompt.len()
    );
    let contributors = args.contributors.connect(base.digest)?;
    // The last token goes through no projection.
    let longest = (prompt.len() + args.max_tokens as usize - 1).min(positions);
    contributors.warn_of(longest);
    let (generated, mut ended) = contributors.run(&mut base, |base, hook| {
        base.adapt(hook)?;
        let started = Instant::now();
        let generated = args.generate(base, &prompt, longest, out)?;
        Ok((generated, started.elapsed()))
    });
    let (mut generated, took) = match generated {
        Ok(generated) => generated,
        Err(error) => return ended.complete(Err(error)),
    };
    let failed = generated.failed.take();
    if failed.as_ref().is_some_and(|error| OutputError::behind(error).is_some()) {
        // There is nobody to tell.
        return ended.complete(failed.map_or(Ok(()), Err));
    }
    let speed = generated.tokens as f64 / took.as_secs_f64();
    if args.json {
        let report = GenerateReport {
            prompt: args.prompt.clone(),
            prompt_tokens: prompt.len(),
            text: generated.text,
            tokens: generated.tokens,
            stopped: generated.stopped,
            tokens_per_second: speed,
            sessions: ended.reports(),
        };
        writeln!(out, "{}", report.to_line()?)?;
    } else {
        writeln!(out)?;
        writeln!(out)?;
        writeln!(
            out,
            "tokens                   {} after {}, {speed:.1} a second",
            generated.tokens,
            prompt.len()
        )?;
        writeln!(out, "ended                    {}", generated.stopped)?;
        ended.finished().try_for_each(|session| session.print(out))?;
    }
    ended.complete(failed.map_or(Ok(()), Err))?;
    ended.proved()
}

impl Generate {
    /// Prints the text as it comes, unless it is to be JSON. Fails only if nothing was generated.
    fn generate(
        &self,
        base: &Loaded,
        prompt: &[i64],
        longest: usize,
        out: &mut dyn Write,
    ) -> anyhow::Result<Generated> {
        let mut stream = TextStream::after(&base.tokenizer, prompt)?;
        let out = (!self.json).then_some(out);
        let mut text = Text { stops: &self.stop, out, text: String::new(), printed: 0 };
        text.print(&self.prompt)?;
        let mut tokens = 0;
        let ended = self.extend(base, prompt, longest, |id| {
            tokens += 1;
            text.add(&stream.push(id)?)
        });
        let ended = match ended {
            Ok(STOP_TEXT) => Ok(STOP_TEXT),
            // Now that nothing follows, all of the text is certain.
            ended => match stream.finish().map_err(Into::into).and_then(|rest| text.add(&rest)) {
                Ok(true) if ended.is_ok() => Ok(STOP_TEXT),
                Ok(_) => ended,
                Err(error) => ended.and(Err(error)),
            },
        };
        let ended = match text.end() {
            Ok(()) => ended,
            Err(error) => ended.and(Err(error)),
        };
        let by_signal = |error: &anyhow::Error| error.chain().any(|error| error.is::<Stopped>());
        let stopped = match &ended {
            Ok(stopped) => stopped,
            Err(error) if by_signal(error) => "by a signal",
            Err(_) => "by an error",
        };
        Ok(Generated { text: text.text, tokens, stopped, failed: ended.err() })
    }

    /// Draws tokens, of which `add` hears; gives why it ends, which it does when `add` says so, too.
    fn extend(
        &self,
        base: &Loaded,
        prompt: &[i64],
        longest: usize,
        mut add: impl FnMut(i64) -> anyhow::Result<bool>,
    ) -> anyhow::Result<&'static str> {
        let mut sampler =
            Sampler::new(self.temperature, self.top_k.map(|k| k as usize), self.top_p, self.seed);
        let mut past = Past::new(longest);
        let mut new = prompt.to_vec();
        for _ in 0..self.max_tokens {
            if past.tokens() + new.len() > base.model.positions() {
                return Ok("at the end of the model's context");
            }
            let id = sampler.sample(&base.model.next(&mut past, &new)?) as i64;
            if base.tokenizer.end().contains(&id) {
                return Ok("at the model's end of text");
            }
            if add(id)? {
                return Ok(STOP_TEXT);
            }
            new = vec![id];
        }
        Ok("after as many tokens as were asked for")
    }
}

const STOP_TEXT: &str = "before a stop text";

/// The text that continues the prompt, as far as it has come.
struct Text<'a, 'o> {
    stops: &'a [String],
    /// Where it goes as it comes, if anywhere.
    out: Option<&'o mut dyn Write>,
    text: String,
    /// Bytes of it that are printed.
    printed: usize,
}

impl Text<'_, '_> {
    /// Adds to it, and prints what can be no stop text. Gives whether there is one, which is cut off with all after it.
    fn add(&mut self, new: &str) -> anyhow::Result<bool> {
        self.text.push_str(new);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.text.find(stop)).min() {
            self.text.truncate(end);
            return Ok(true);
        }
        // What may be the beginning of a stop text is held back.
        let held_back = self.stops.iter().map(|stop| begun(&self.text, stop)).max().unwrap_or(0);
        self.print_until(self.text.len() - held_back)?;
        Ok(false)
    }

    /// Prints the rest.
    fn end(&mut self) -> anyhow::Result<()> {
        self.print_until(self.text.len())
    }

    fn print_until(&mut self, end: usize) -> anyhow::Result<()> {
        if end > self.printed {
            let new = self.text[self.printed..end].to_owned();
            self.print(&new)?;
            self.printed = end;
        }
        Ok(())
    }

    fn print(&mut self, text: &str) -> anyhow::Result<()> {
        if let Some(out) = &mut self.out {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }
}

/// How many bytes at the end of a text are the beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(length, _)| length).rev();
    beginnings.into_iter().find(|&length| text.ends_with(&stop[..length])).unwrap_or(0)
}

fn number(least: f64, most: f64) -> impl Fn(&str) -> Result<f64, String> + Clone {
    move |text| match text.parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("expected a number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::begun;

    #[test]
    fn the_beginning_of_a_stop_text_is_known() {
        assert_eq!(begun("abc", "cd"), 1);
        assert_eq!(begun("abcc", "ccx"), 2);
        assert_eq!(begun("abc", "x"), 0);
        assert_eq!(begun("aé", "éb"), "é".len());
    }
}
