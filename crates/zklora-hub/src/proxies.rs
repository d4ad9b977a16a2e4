//! Which proxy an address is reached by, as Python's `urllib` finds it in the environment and httpx, which huggingface_hub
//! uses, applies it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};

use ureq::Proxy;
use ureq::http::Uri;

use super::Error;

/// What the variables for proxies say, as they say it. They may hold passwords, so there is no `Debug`.
#[derive(Clone)]
pub(super) struct Proxies {
    https: Option<(&'static str, String)>,
    http: Option<(&'static str, String)>,
    all: Option<(&'static str, String)>,
    /// Who is reached without one.
    direct: Vec<String>,
}

/// The same, ready to be used.
pub(super) struct Routes {
    https: Option<Proxy>,
    http: Option<Proxy>,
    direct: Vec<String>,
}

impl Proxies {
    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        // In small letters it wins, and empty it says that there is none.
        let value = |names: [&'static str; 2]| {
            let found = names.into_iter().find_map(|name| Some((name, variable(name)?)))?;
            let text = found.1.to_string_lossy().into_owned();
            (!text.is_empty()).then_some((found.0, text))
        };
        let direct = value(["no_proxy", "NO_PROXY"]).map(|(_, hosts)| hosts).unwrap_or_default();
        Self {
            https: value(["https_proxy", "HTTPS_PROXY"]),
            http: value(["http_proxy", "HTTP_PROXY"]),
            all: value(["all_proxy", "ALL_PROXY"]),
            direct: direct
                .split(',')
                .map(|host| host.trim().to_lowercase())
                .filter(|host| !host.is_empty())
                .collect(),
        }
    }

    /// Fails with [`Error::Variable`] for what is no proxy that is supported.
    pub(super) fn routes(&self) -> Result<Routes, Error> {
        let proxy = |of: &Option<(&'static str, String)>| {
            // The one for all schemes is the weaker.
            let Some((name, value)) = of.as_ref().or(self.all.as_ref()) else { return Ok(None) };
            let refusal = || Error::Variable {
                name,
                reason: "expected the address of a proxy such as http://HOST:PORT (SOCKS is not supported)"
                    .to_owned(),
            };
            let value = if value.contains("://") { value.clone() } else { format!("http://{value}") };
            let scheme = value.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
            if !matches!(scheme.as_deref(), Some("http" | "https")) {
                return Err(refusal());
            }
            let proxy = Proxy::new(&value).map_err(|_| refusal())?;
            // What is no port would be passed over.
            let address = proxy.uri().authority().map_or("", |authority| authority.as_str());
            let address = address.rsplit_once('@').map_or(address, |(_, address)| address);
            let port = address.strip_prefix(proxy.host()).and_then(|rest| rest.strip_prefix(':'));
            let sound = port.is_none_or(|port| port.parse::<u16>().is_ok());
            if proxy.host().is_empty() || !sound { Err(refusal()) } else { Ok(Some(proxy)) }
        };
        Ok(Routes { https: proxy(&self.https)?, http: proxy(&self.http)?, direct: self.direct.clone() })
    }
}

impl Routes {
    /// The proxy by which an address is reached, if it is by one.
    pub(super) fn to(&self, uri: &Uri) -> Option<&Proxy> {
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if self.direct.iter().any(|pattern| covers(pattern, &host, uri.port_u16())) {
            return None;
        }
        match uri.scheme_str()? {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }
    }
}

/// Whether an entry of `NO_PROXY` means a host: itself, and what is in its domain.
fn covers(pattern: &str, host: &str, port: Option<u16>) -> bool {
    if pattern == "*" {
        return true;
    }
    let pattern = pattern.split_once("://").map_or(pattern, |(_, pattern)| pattern);
    let bare = pattern.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<Ipv6Addr>().is_ok() {
        return bare == host;
    }
    let (name, of_port) =
        match pattern.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?))) {
            Some((name, of_port)) => (name, Some(of_port)),
            None => (pattern, None::<u16>),
        };
    if of_port.is_some() && of_port != port {
        return false;
    }
    if name == "localhost" || name.parse::<Ipv4Addr>().is_ok() {
        return name == host;
    }
    let (domain, itself) = match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
        Some(domain) => (domain, false),
        None => (name, true),
    };
    let within = host.strip_suffix(domain).is_some_and(|before| before.ends_with('.'));
    within || (itself && host == domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        })
    }

    /// The host of the proxy by which an address is reached.
    fn route(variables: &[(&str, &str)], to: &str) -> Option<String> {
        let routes = proxies(variables).routes().unwrap();
        routes.to(&to.parse().unwrap()).map(|proxy| proxy.host().to_owned())
    }

    #[test]
    fn a_scheme_has_its_own_proxy_and_that_of_all_is_the_weaker() {
        const HUB: &str = "https://huggingface.co/x";
        for (variables, to, host) in [
            (&[][..], HUB, None),
            (&[("HTTPS_PROXY", "http://a:1"), ("ALL_PROXY", "http://b:2")], HUB, Some("a")),
            (&[("ALL_PROXY", "http://b:2")], HUB, Some("b")),
            (&[("HTTP_PROXY", "http://c:3")], HUB, None),
            (&[("HTTP_PROXY", "http://c:3")], "http://127.0.0.1:7/x", Some("c")),
            (&[("HTTPS_PROXY", "http://a:1")], "http://127.0.0.1:7/x", None),
            (&[("https_proxy", "http://d:4"), ("HTTPS_PROXY", "http://a:1")], HUB, Some("d")),
            (&[("https_proxy", ""), ("HTTPS_PROXY", "http://a:1")], HUB, None),
            (&[("HTTPS_PROXY", "a:1")], HUB, Some("a")),
            (&[("HTTPS_PROXY", "https://user:secret@a:1")], HUB, Some("a")),
        ] {
            assert_eq!(route(variables, to).as_deref(), host, "{variables:?} {to}");
        }
    }

    #[test]
    fn some_hosts_are_reached_without_one() {
        for (direct, to, without) in [
            ("*", "huggingface.co", true),
            ("x, *", "huggingface.co", true),
            ("huggingface.co", "huggingface.co", true),
            ("HuggingFace.co", "huggingface.CO", true),
            ("huggingface.co", "cdn.huggingface.co", true),
            ("huggingface.co", "nothuggingface.co", false),
            (".huggingface.co", "huggingface.co", false),
            (".huggingface.co", "cdn.huggingface.co", true),
            ("*.huggingface.co", "cdn.huggingface.co", true),
            ("co", "huggingface.co", true),
            ("face.co", "huggingface.co", false),
            ("huggingface.co:443", "huggingface.co:443", true),
            ("huggingface.co:444", "huggingface.co:443", false),
            ("127.0.0.1", "127.0.0.1:7", true),
            ("0.0.1", "127.0.0.1", true),
            ("127.0.0.2,localhost", "127.0.0.1", false),
            ("localhost", "localhost:8", true),
            ("::1", "[::1]:8", true),
            ("", "huggingface.co", false),
        ] {
            let variables = [("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", direct)];
            let found = route(&variables, &format!("https://{to}/x"));
            assert_eq!(found.is_none(), without, "{direct:?} {to}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_by_the_variable() {
        for value in [
            "socks5://a:1",
            "ftp://a:1",
            "http://",
            "http://a:port",
            "http:// a",
            "://a",
            "socks5://me:secret@a",
        ] {
            for name in ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"] {
                let refused = proxies(&[(name, value)]).routes().err();
                let error = refused.unwrap_or_else(|| panic!("{name}={value}")).to_string();
                assert!(error.starts_with(&format!("{name}: expected the address of a proxy")), "{error}");
                assert!(!error.contains("secret"), "{error}");
            }
        }
    }
}
