//! Where a setting is looked up: on the command line, in the environment, in the file; and how its text is read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::parser::ValueSource;
use clap::{ArgMatches, ValueEnum};
use schemars::JsonSchema;
use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zklora_circuit::parameters::Security;
use zklora_cli::LogFormat;
use zklora_contributor::http::LoopbackAddress;
use zklora_contributor::limits::Limits;
use zklora_contributor::memory::MemoryLimit;
use zklora_contributor::reach::Advertised;
use zklora_proto::PublicKey;

use crate::commands::Share;
use crate::commands::args::{LimitArgs, spellings};

/// A setting, its value, and who gave it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Effective {
    /// Its name in the file.
    pub name: &'static str,
    /// None if it is not set, and need not be.
    pub value: Option<String>,
    /// Who gave it.
    pub source: Source,
}

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Default,
    File,
    Environment,
    Flag,
}

/// A setting's type.
pub trait Value: Sized {
    /// Reads it, and otherwise says what was expected.
    fn parse(text: &OsStr) -> Result<Self, String>;
    /// As it would be given.
    fn show(&self) -> String;
    /// What it means in a file of this folder.
    fn within(self, _folder: &Path) -> Self {
        self
    }
}

impl Value for PathBuf {
    fn parse(text: &OsStr) -> Result<Self, String> {
        if text.is_empty() { Err("expected a path".into()) } else { Ok(text.into()) }
    }

    fn show(&self) -> String {
        self.display().to_string()
    }

    fn within(self, folder: &Path) -> Self {
        folder.join(self)
    }
}

/// Keys of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(pub Vec<PublicKey>);

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |text: &str| {
            let text = text.trim();
            text.parse().map_err(|error| {
                format!("{text:?}: {error}; expected what `zklora-base-user identity` prints")
            })
        };
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.0.iter().map(PublicKey::to_string).collect();
        f.write_str(&keys.join(","))
    }
}

/// What is parsed and shown by `FromStr` and `Display`; the text is for those whose errors do not say what was expected.
macro_rules! plain_values {
    ($($value:ty: $expected:expr;)*) => {
        $(impl Value for $value {
            fn parse(text: &OsStr) -> Result<Self, String> {
                let text = text.to_str().ok_or("expected text in UTF-8")?;
                text.parse::<Self>().map_err(|error| {
                    let expected: Option<&str> = $expected;
                    expected.map_or_else(|| error.to_string(), |expected| format!("expected {expected}"))
                })
            }

            fn show(&self) -> String {
                self.to_string()
            }
        })*
    };
}

plain_values! {
    SocketAddr: Some("an address and a port such as 127.0.0.1:30000 or [::1]:30000");
    usize: Some("a whole number");
    bool: Some("true or false");
    Keys: None;
    MemoryLimit: None;
    Share: None;
    LoopbackAddress: None;
    Advertised: None;
}

impl Value for LogFormat {
    fn parse(text: &OsStr) -> Result<Self, String> {
        let known = || Self::value_variants().iter().map(Value::show).collect::<Vec<_>>().join(", ");
        Self::from_str(&text.to_string_lossy(), false).map_err(|_| format!("expected one of {}", known()))
    }

    fn show(&self) -> String {
        // None of them is hidden.
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Value for Security {
    fn parse(text: &OsStr) -> Result<Self, String> {
        text.to_string_lossy()
            .parse()
            .map_err(|error: zklora_circuit::parameters::UnknownSecurity| error.to_string())
    }

    fn show(&self) -> String {
        self.name().into()
    }
}

/// Where settings are looked up, and what was found.
pub struct Sources<'a> {
    path: &'a Path,
    text: &'a str,
    /// The file's entries that nothing has asked for.
    left: BTreeMap<String, (usize, Spanned<DeValue<'a>>)>,
    matches: &'a ArgMatches,
    effective: Vec<Effective>,
    /// Everything that was wrong.
    pub errors: Vec<String>,
}

impl<'a> Sources<'a> {
    pub fn new(path: Option<&'a Path>, text: &'a str, matches: &'a ArgMatches) -> Self {
        let mut sources = Self {
            path: path.unwrap_or(Path::new("")),
            text,
            left: BTreeMap::new(),
            matches,
            effective: Vec::new(),
            errors: Vec::new(),
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = sources.at(error.span().map_or(0, |span| span.start));
            sources
                .errors
                .push(format!("{at}: {}; see https://toml.io for the form of the file", error.message()));
        }
        let entries = table.into_inner().into_iter();
        sources.left =
            entries.map(|(key, value)| (key.get_ref().to_string(), (key.span().start, value))).collect();
        sources
    }

    /// A setting that must be given, if it has no default. `None` if it is missing or wrong, which is noted.
    pub fn required<T: Value>(
        &mut self,
        name: &'static str,
        argument: Option<&impl AsRef<OsStr>>,
    ) -> Option<T> {
        let errors = self.errors.len();
        let value = self.optional(name, argument);
        if value.is_none() && self.errors.len() == errors {
            let (flag, variable) = spellings(name);
            self.errors.push(format!(
                "no {name} is given: expected --{flag}, the variable {variable}, or {name} = \"...\" in the file of --config"
            ));
        }
        value
    }

    /// A setting that need not be given. `None` if it is not, or if it is wrong, which is noted.
    pub fn optional<T: Value>(
        &mut self,
        name: &'static str,
        argument: Option<&impl AsRef<OsStr>>,
    ) -> Option<T> {
        let parse = |text: &OsStr, folder: &Path| Ok(T::parse(text)?.within(folder));
        self.find(name, argument.map(AsRef::as_ref), &parse, &T::show)
    }

    /// The same with what reads a value, in a file of some folder, and what shows it.
    fn find<T>(
        &mut self,
        name: &'static str,
        argument: Option<&OsStr>,
        parse: &dyn Fn(&OsStr, &Path) -> Result<T, String>,
        show: &dyn Fn(&T) -> String,
    ) -> Option<T> {
        let from_file = self.left.remove(name);
        let (flag, variable) = spellings(name);
        let given = |how: &str| {
            let text = argument?;
            // A path starts where the program does.
            Some(parse(text, Path::new("")).map_err(|expected| format!("{how} {text:?}: {expected}")))
        };
        let (source, value) = match self.matches.value_source(name) {
            Some(ValueSource::CommandLine) => (Source::Flag, given(&format!("--{flag}"))),
            Some(ValueSource::EnvVariable) => (Source::Environment, given(&variable)),
            _ => match from_file {
                Some((key, value)) => {
                    (Source::File, Some(self.read_entry(name, key, value.get_ref(), parse)))
                }
                None => (Source::Default, given(&format!("--{flag}"))),
            },
        };
        let value = match value.transpose() {
            Ok(value) => value,
            Err(error) => {
                self.errors.push(error);
                return None;
            }
        };
        self.effective.push(Effective { name, value: value.as_ref().map(show), source });
        value
    }

    /// The limits. `None` if one of them is wrong, which is noted.
    pub fn limits(&mut self, args: &LimitArgs) -> Option<Limits> {
        let (mut limits, errors) = (Limits::DEFAULT, self.errors.len());
        for limit in Limits::ALL {
            let set = |text: &OsStr, _: &Path| {
                let mut one = Limits::DEFAULT;
                limit.set(&mut one, text.to_str().ok_or("expected text in UTF-8")?).map(|()| limit.show(&one))
            };
            if let Some(text) =
                self.find(limit.name, args.get(limit).map(AsRef::as_ref), &set, &String::clone)
            {
                // What was just shown is read again.
                self.errors.extend(limit.set(&mut limits, &text).err());
            }
        }
        (self.errors.len() == errors).then_some(limits)
    }

    fn read_entry<T>(
        &self,
        name: &str,
        key: usize,
        value: &DeValue<'_>,
        parse: &dyn Fn(&OsStr, &Path) -> Result<T, String>,
    ) -> Result<T, String> {
        let at = self.at(key);
        let text = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Array(values) if values.iter().all(|value| value.get_ref().is_str()) => {
                let texts: Vec<&str> = values.iter().filter_map(|value| value.get_ref().as_str()).collect();
                texts.join(",")
            }
            DeValue::Integer(number) if number.radix() == 10 => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            other => {
                return Err(format!(
                    "{at}: {name}: expected a text or a number, found this: {}",
                    other.type_str()
                ));
            }
        };
        let folder = self.path.parent().unwrap_or(Path::new(""));
        parse(text.as_ref(), folder).map_err(|expected| format!("{at}: {name} = {text:?}: {expected}"))
    }

    /// The file and the line of a position in it.
    fn at(&self, position: usize) -> String {
        let before = self.text.as_bytes().iter().take(position);
        format!("{}:{}", self.path.display(), 1 + before.filter(|&&byte| byte == b'\n').count())
    }

    /// What was found and everything that was wrong, keys that are no settings among it.
    pub fn finish(mut self) -> (Vec<Effective>, Vec<String>) {
        let known: Vec<&str> = self.effective.iter().map(|setting| setting.name).collect();
        for (key, (position, _)) in &self.left {
            let at = self.at(*position);
            let expected = known.join(", ");
            self.errors
                .push(format!("{at}: {key:?} is no setting: expected one of {expected}; mend or remove it"));
        }
        (self.effective, self.errors)
    }
}
