use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use ureq::http::HeaderValue;
use zeroize::Zeroizing;

use super::Error;
use super::proxies::Proxies;

/// How the hub is reached and where the cache is, as the variables of huggingface_hub say it. `Debug` does not print
/// the token.
#[derive(Clone)]
pub struct Options {
    cache: Result<PathBuf, Unusable>,
    endpoint: String,
    token: Option<Zeroizing<String>>,
    /// Looked at if there is no `token`.
    token_file: Option<Result<PathBuf, Unusable>>,
    offline: bool,
    proxies: Proxies,
}

/// A variable that cannot be used, and why.
type Unusable = (&'static str, &'static str);

impl Options {
    /// What this process's environment says: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`, older names of these, and the usual variables for proxies.
    pub fn from_env() -> Self {
        Self::from_variables(|name| match (std::env::var_os(name), name) {
            // Where the users are listed, as in Python.
            (None, "HOME") => std::env::home_dir().map(PathBuf::into_os_string),
            (value, _) => value,
        })
    }

    /// What these variables say. One that is empty counts as not set, but for `HOME`, which then is `/`, as in Python.
    /// Nothing is looked at that a [`Source::Folder`](super::Source) does not need, so that wrong values are an error
    /// only when a name is looked for.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let is_true = |value: Option<String>| {
            value.is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        let expand = |name: &'static str, path: PathBuf| {
            expanded(path.as_os_str(), &variable).map(PathBuf::from).map_err(|why| (name, why))
        };
        let path = |name: &'static str| set(name).map(|value| expand(name, value.into()));
        let xdg = || {
            set("XDG_CACHE_HOME")
                .map(|caches| expand("XDG_CACHE_HOME", PathBuf::from(caches).join("huggingface")))
        };
        let home =
            path("HF_HOME").or_else(xdg).unwrap_or_else(|| expand("HF_HOME", "~/.cache/huggingface".into()));
        let in_home = |name: &str| home.clone().map(|home| home.join(name));
        let with_token = !is_true(text("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        Self {
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| in_home("hub")),
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: token.filter(|_| with_token).and_then(|token| cleaned(Zeroizing::new(token))),
            token_file: with_token.then(|| path("HF_TOKEN_PATH").unwrap_or_else(|| in_home("token"))),
            offline: is_true(text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE"))),
            proxies: Proxies::from_variables(&variable),
        }
    }

    /// Whether only the cache is looked at.
    pub fn offline(&self) -> bool {
        self.offline
    }

    pub(super) fn cache(&self) -> Result<PathBuf, Error> {
        self.cache.clone().map_err(unusable)
    }

    pub(super) fn endpoint(&self) -> &str {
        self.endpoint.trim_end_matches('/')
    }

    pub(super) fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// The header that shows the token to the hub; it does not print itself.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let (name, token) = match (&self.token, &self.token_file) {
            (Some(token), _) => ("HF_TOKEN", Some(token.clone())),
            (None, Some(Err(why))) => return Err(unusable(*why)),
            (None, Some(Ok(file))) => match read_token(file) {
                Ok(token) => ("HF_TOKEN_PATH", cleaned(token)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::Io { path: file.clone(), reason: error.to_string() }),
            },
            (None, None) => return Ok(None),
        };
        let Some(token) = token else { return Ok(None) };
        let header = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut header = HeaderValue::from_str(&header).map_err(|_| Error::Variable {
            name,
            reason: "this token has characters that no token has".to_owned(),
        })?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("token_file", &self.token_file)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

fn unusable((name, why): Unusable) -> Error {
    Error::Variable { name, reason: why.to_owned() }
}

/// A path as Python's `os.path.expanduser` and `expandvars` give it: a `~` in front is the user's home, and `$NAME` or
/// `${NAME}` a variable, if it is set.
fn expanded(path: &OsStr, variable: &impl Fn(&str) -> Option<OsString>) -> Result<OsString, &'static str> {
    let bytes = path.as_bytes();
    let mut rest = bytes;
    let mut text = Vec::with_capacity(bytes.len());
    if let Some(after) = bytes.strip_prefix(b"~") {
        if !(after.is_empty() || after.starts_with(b"/")) {
            return Err("the homes of other users are not looked up; write the whole path");
        }
        let home = variable("HOME")
            .ok_or("expected a folder for the cache of models, but neither it nor HOME is set")?;
        let home = home.as_bytes();
        let end = home.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        text.extend_from_slice(&home[..end]);
        rest = after;
        if text.is_empty() && rest.is_empty() {
            text.push(b'/');
        }
    }
    while let Some(at) = rest.iter().position(|byte| *byte == b'$') {
        text.extend_from_slice(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix(b"{") {
            Some(inner) => match inner.iter().position(|byte| *byte == b'}') {
                Some(end) => (&inner[..end], end + 2),
                None => (&after[..0], 0),
            },
            None => {
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                let end = after.iter().position(|byte| !is_word(byte)).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        let value = str::from_utf8(name).ok().filter(|name| !name.is_empty()).and_then(variable);
        match value {
            Some(value) => text.extend_from_slice(value.as_bytes()),
            // It stays as it is.
            None => text.extend_from_slice(&rest[at..at + 1 + length]),
        }
        rest = &after[length..];
    }
    text.extend_from_slice(rest);
    Ok(OsString::from_vec(text))
}

/// A token without the ends of lines in it and the white space around it, as huggingface_hub takes it; none if nothing is left.
fn cleaned(token: Zeroizing<String>) -> Option<Zeroizing<String>> {
    let in_one_line = Zeroizing::new(token.replace(['\r', '\n'], ""));
    let token = Zeroizing::new(in_one_line.trim().to_owned());
    Some(token).filter(|token| !token.is_empty())
}

fn read_token(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut token = Zeroizing::new(String::with_capacity(MAX_TOKEN_BYTES as usize));
    File::open(path)?.take(MAX_TOKEN_BYTES).read_to_string(&mut token)?;
    Ok(token)
}

/// Tokens have about 40.
const MAX_TOKEN_BYTES: u64 = 4096;

/// The variables that people may want to set, each with what it is for, as manual pages say it.
pub const VARIABLES: &[(&str, &str)] = &[
    (
        "HF_HOME",
        "Where models and adapters fetched by name are kept, in hub; ~/.cache/huggingface if not set.",
    ),
    ("HF_HUB_CACHE", "That folder itself, in place of hub in HF_HOME."),
    (
        "HF_HUB_OFFLINE",
        "1 to look for models and adapters only in that folder; so does TRANSFORMERS_OFFLINE.",
    ),
    ("HF_ENDPOINT", "The hub, or a mirror of it; https://huggingface.co if not set."),
    ("HF_TOKEN", "The token for private and gated models; else the file HF_TOKEN_PATH, or token in HF_HOME."),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Options {
        Options::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        })
    }

    fn header(options: &Options) -> Option<String> {
        options.authorization().unwrap().map(|header| header.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, cache) in [
            (&[("HOME", "/u")][..], "/u/.cache/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/models")], "/models"),
            (&[("HF_HOME", ""), ("HOME", "/u")], "/u/.cache/huggingface/hub"),
            (&[("HF_HOME", "~/x"), ("HOME", "/u")], "/u/x/hub"),
            (&[("HF_HOME", "~"), ("HOME", "/u/")], "/u/hub"),
            (&[("HF_HOME", "$HOME/x"), ("HOME", "/u")], "/u/x/hub"),
            (&[("HF_HUB_CACHE", "${BIG}/${NO}/$NO/x"), ("BIG", "/big")], "/big/${NO}/$NO/x"),
            (&[("HF_HUB_CACHE", "/a$BIG$"), ("BIG", "$HOME"), ("HOME", "/u")], "/a$HOME$"),
            (&[("HF_HUB_CACHE", "/a/${BIG"), ("BIG", "b")], "/a/${BIG"),
            (&[("HUGGINGFACE_HUB_CACHE", "~/old"), ("HOME", "/u")], "/u/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/h")], "/old"),
            (&[("XDG_CACHE_HOME", "~/c"), ("HOME", "/u")], "/u/c/huggingface/hub"),
            (&[("HOME", "")], "/.cache/huggingface/hub"),
            (&[("HF_HOME", "~"), ("HOME", "")], "/hub"),
        ] {
            assert_eq!(options(variables).cache().unwrap(), Path::new(cache));
        }
        let message = options(&[]).cache().unwrap_err().to_string();
        assert!(message.contains("HF_HOME: expected a folder"), "{message}");
        let message = options(&[("HF_HUB_CACHE", "~other/x")]).cache().unwrap_err().to_string();
        assert!(message.starts_with("HF_HUB_CACHE: the homes of other users"), "{message}");
    }

    #[test]
    fn a_token_is_taken_as_huggingface_hub_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "\nfrom-\r\nfile\n").unwrap();
        let file = file.to_str().unwrap();
        for (token, expected) in [
            ("abc", "Bearer abc"),
            (" a\nb\r\nc\n", "Bearer abc"),
            // Nothing but white space is no token.
            (" ", "Bearer from-file"),
            ("\n", "Bearer from-file"),
            ("", "Bearer from-file"),
        ] {
            let options = options(&[("HF_TOKEN", token), ("HF_TOKEN_PATH", file)]);
            assert_eq!(header(&options).as_deref(), Some(expected), "{token:?}");
        }
    }

    #[test]
    fn offline_is_a_truth_value() {
        for (value, offline) in
            [("1", true), ("TRUE", true), ("yes", true), ("on", true), ("0", false), ("", false)]
        {
            assert_eq!(options(&[("HF_HUB_OFFLINE", value)]).offline(), offline, "{value:?}");
            assert_eq!(options(&[("TRANSFORMERS_OFFLINE", value)]).offline(), offline, "{value:?}");
        }
        // The newer name wins.
        assert!(!options(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline());
        assert!(options(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")]).offline());
    }

    #[test]
    fn the_token_comes_from_the_variable_or_from_a_file_and_is_not_shown() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        assert_eq!(header(&options(&[("HF_HOME", path)])), None);
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(header(&options(&[("HF_HOME", path)])).unwrap(), "Bearer hf_file");
        let both = [("HF_HOME", path), ("HF_TOKEN", "hf_secret")];
        assert_eq!(header(&options(&both)).unwrap(), "Bearer hf_secret");
        let elsewhere = home.path().join("elsewhere");
        std::fs::write(&elsewhere, "hf_else").unwrap();
        let named = [("HF_HOME", path), ("HF_TOKEN_PATH", elsewhere.to_str().unwrap())];
        assert_eq!(header(&options(&named)).unwrap(), "Bearer hf_else");
        let older = [("HF_HOME", path), ("HUGGING_FACE_HUB_TOKEN", "hf_older")];
        assert_eq!(header(&options(&older)).unwrap(), "Bearer hf_older");
        let in_home = [("HF_TOKEN_PATH", "~/elsewhere"), ("HOME", path)];
        assert_eq!(header(&options(&in_home)).unwrap(), "Bearer hf_else");
        let disabled = [&both[..], &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]].concat();
        assert_eq!(header(&options(&disabled)), None);

        let options_with_token = options(&both);
        let shown = format!("{options_with_token:?} {:?}", options_with_token.authorization());
        assert!(!shown.contains("hf_secret"), "{shown}");
        let broken = options(&[("HF_TOKEN", "hf_\u{7}secret")]).authorization().unwrap_err();
        assert_eq!(broken.to_string(), "HF_TOKEN: this token has characters that no token has");
    }
}
