use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ureq::Proxy;
use ureq::http::HeaderValue;
use zeroize::Zeroizing;

use super::Error;

/// How the hub is reached and where the cache is, as the variables of huggingface_hub say it. `Debug` does not print
/// the token.
#[derive(Clone)]
pub struct Options {
    cache: Option<PathBuf>,
    endpoint: String,
    token: Option<Zeroizing<String>>,
    /// Looked at if there is no `token`.
    token_file: Option<PathBuf>,
    offline: bool,
    proxy: Option<Proxy>,
}

impl Options {
    /// What this process's environment says: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`, and the usual variables for proxies.
    pub fn from_env() -> Self {
        Self { proxy: Proxy::try_from_env(), ..Self::from_variables(|name| std::env::var_os(name)) }
    }

    /// What these variables say; no proxy. One that is empty counts as not set. Nothing is looked at that a
    /// [`Source::Folder`](super::Source) does not need, so that wrong values are an error only when a name is looked
    /// for.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let is_true = |name: &str| {
            text(name)
                .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|caches| caches.join("huggingface")))
            .or_else(|| path("HOME").map(|home| home.join(".cache/huggingface")));
        let with_token = !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        Self {
            cache: path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|home| home.join("hub"))),
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: text("HF_TOKEN").filter(|_| with_token).map(Zeroizing::new),
            token_file: path("HF_TOKEN_PATH")
                .or_else(|| home.map(|home| home.join("token")))
                .filter(|_| with_token),
            offline: is_true("HF_HUB_OFFLINE"),
            proxy: None,
        }
    }

    /// Whether only the cache is looked at.
    pub fn offline(&self) -> bool {
        self.offline
    }

    pub(super) fn cache(&self) -> Result<PathBuf, Error> {
        self.cache.clone().ok_or_else(|| Error::Variable {
            name: "HF_HOME",
            reason: "expected a folder for the cache of models, but neither it nor HOME is set".to_owned(),
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        self.endpoint.trim_end_matches('/')
    }

    pub(super) fn proxy(&self) -> Option<Proxy> {
        self.proxy.clone()
    }

    /// The header that shows the token to the hub; it does not print itself.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let (name, token) = match (&self.token, &self.token_file) {
            (Some(token), _) => ("HF_TOKEN", token.clone()),
            (None, Some(file)) => match read_token(file) {
                Ok(token) => ("HF_TOKEN_PATH", token),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(Error::Io { path: file.clone(), source }),
            },
            (None, None) => return Ok(None),
        };
        if token.trim().is_empty() {
            return Ok(None);
        }
        let header = Zeroizing::new(format!("Bearer {}", token.trim()));
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
    ("HF_HUB_OFFLINE", "1 to look for models and adapters only in that folder."),
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
        ] {
            assert_eq!(options(variables).cache().unwrap(), Path::new(cache));
        }
        let message = options(&[]).cache().unwrap_err().to_string();
        assert!(message.contains("HF_HOME: expected a folder"), "{message}");
    }

    #[test]
    fn offline_is_a_truth_value() {
        for (value, offline) in
            [("1", true), ("TRUE", true), ("yes", true), ("on", true), ("0", false), ("", false)]
        {
            assert_eq!(options(&[("HF_HUB_OFFLINE", value)]).offline(), offline, "{value:?}");
        }
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
        let disabled = [&both[..], &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]].concat();
        assert_eq!(header(&options(&disabled)), None);

        let options_with_token = options(&both);
        let shown = format!("{options_with_token:?} {:?}", options_with_token.authorization());
        assert!(!shown.contains("hf_secret"), "{shown}");
        let broken = options(&[("HF_TOKEN", "hf_\u{7}secret")]).authorization().unwrap_err();
        assert_eq!(broken.to_string(), "HF_TOKEN: this token has characters that no token has");
    }
}
