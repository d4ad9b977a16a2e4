//! `zklora-base-user generate`.

use std::io::{Write, stdout};
use std::time::Instant;

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};
use zklora_base_user::models::Past;
use zklora_base_user::sampling::Sampler;

use super::{ContributorArgs, Loaded, ModelArgs};

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
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Print the result as JSON, when it is there.
    #[arg(long)]
    json: bool,
}

/// A continuation.
struct Generated {
    text: String,
    tokens: usize,
    /// Why it ends.
    stopped: &'static str,
}

pub fn run(args: &Generate) -> anyhow::Result<()> {
    ensure!(
        args.stop.iter().all(|stop| !stop.is_empty()),
        "--stop is empty; name the text before which to end"
    );
    let mut base = args.model.load()?;
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
    base.adapt(contributors.hook())?;
    if !args.json {
        print!("{}", args.prompt);
    }
    let started = Instant::now();
    let generated = args.generate(&base, &prompt, longest)?;
    let took = started.elapsed();
    let sessions = contributors.finish(&mut base.model)?;
    let speed = generated.tokens as f64 / took.as_secs_f64();
    if args.json {
        let sessions: Vec<Value> = sessions.iter().map(|session| session.json()).collect();
        let summary = json!({
            "prompt": args.prompt, "prompt_tokens": prompt.len(), "text": generated.text, "tokens": generated.tokens,
            "stopped": generated.stopped, "tokens_per_second": speed, "sessions": sessions,
        });
        println!("{summary}");
    } else {
        println!();
        println!();
        println!("tokens                   {} after {}, {speed:.1} a second", generated.tokens, prompt.len());
        println!("ended                    {}", generated.stopped);
        sessions.iter().for_each(|session| session.print());
    }
    Ok(())
}

impl Generate {
    /// Prints the text as it comes, unless it is to be JSON.
    fn generate(&self, base: &Loaded, prompt: &[i64], longest: usize) -> anyhow::Result<Generated> {
        let mut sampler =
            Sampler::new(self.temperature, self.top_k.map(|k| k as usize), self.top_p, self.seed);
        let mut past = Past::new(longest);
        let mut stream = base.tokenizer.stream();
        // Some tokenizers write the first token of a text otherwise than those that follow.
        for &id in prompt {
            stream.push(id)?;
        }
        let (mut text, mut printed, mut tokens) = (String::new(), 0, 0);
        let mut new = prompt.to_vec();
        let stopped = loop {
            if tokens == self.max_tokens as usize {
                break "after as many tokens as were asked for";
            }
            if past.tokens() + new.len() > base.model.positions() {
                break "at the end of the model's context";
            }
            let id = sampler.sample(&base.model.next(&mut past, &new)?) as i64;
            if base.tokenizer.end().contains(&id) {
                break "at the model's end of text";
            }
            tokens += 1;
            text.push_str(&stream.push(id)?);
            if let Some(end) = self.stop.iter().filter_map(|stop| text.find(stop)).min() {
                text.truncate(end);
                self.print(&text, &mut printed, text.len())?;
                break "before a stop text";
            }
            // What may be the beginning of a stop text is held back.
            let certain = text.len() - self.stop.iter().map(|stop| begun(&text, stop)).max().unwrap_or(0);
            self.print(&text, &mut printed, certain)?;
            new = vec![id];
        };
        self.print(&text, &mut printed, text.len())?;
        Ok(Generated { text, tokens, stopped })
    }

    fn print(&self, text: &str, printed: &mut usize, until: usize) -> anyhow::Result<()> {
        if !self.json && until > *printed {
            let mut out = stdout().lock();
            out.write_all(&text.as_bytes()[*printed..until])?;
            out.flush()?;
            *printed = until;
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
