use std::collections::BTreeSet;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE,
};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::proxies::Routes;
use super::{Error, Options, Reference, reference};

/// Asks the hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    /// Of the endpoint: the only one that gets the token.
    origin: Origin,
    authorization: Option<HeaderValue>,
    routes: Routes,
}

/// What the hub says of a file.
pub(super) struct Metadata {
    /// The name of its blob: of a large file the SHA-256, of a small one git's object id.
    pub(super) etag: String,
    /// In bytes.
    pub(super) size: u64,
}

impl Client {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let endpoint = options.endpoint().to_owned();
        let origin = endpoint.parse().ok().as_ref().and_then(Origin::of).ok_or_else(|| Error::Variable {
            name: "HF_ENDPOINT",
            reason: "expected an address such as https://huggingface.co, without a user or password"
                .to_owned(),
        })?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, where it is known who may see the token.
            .max_redirects(0)
            // One for each address, below.
            .proxy(None)
            .user_agent(concat!("zklora/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build();
        let routes = options.proxies().routes()?;
        Ok(Self { agent: config.into(), endpoint, origin, authorization: options.authorization()?, routes })
    }

    /// The commit that a revision means, and the files in it.
    pub(super) fn revision(&self, reference: &Reference) -> Result<(String, BTreeSet<String>), Error> {
        let answer = |expected, found| Error::Answer { what: reference.to_string(), expected, found };
        let url = format!("{}/api/{}", self.endpoint, reference.repo().api_url());
        let mut response = self.follow(Method::GET, &url, None, Follow::Everywhere)?;
        self.check(&response, reference, None)?;
        let body = response.body_mut().with_config().limit(MAX_INFO_BYTES).read_to_vec();
        let body = body.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => answer("at most 16 MiB", "more".to_owned()),
            error => self.unreachable(&self.origin.host, &error),
        })?;
        let info: RepoInfo = serde_json::from_slice(&body)
            .map_err(|error| answer("the description of a repository in JSON", error.to_string()))?;
        if !reference::is_commit(&info.sha) {
            return Err(answer("a commit in hexadecimal", short(&info.sha)));
        }
        if reference.is_commit() && info.sha != reference.revision() {
            return Err(answer("the commit that was asked for", info.sha));
        }
        Ok((info.sha, info.siblings.into_iter().map(|file| file.rfilename).collect()))
    }

    /// Asks the hub itself, not the host that it sends us to for the content.
    pub(super) fn metadata(
        &self,
        reference: &Reference,
        commit: &str,
        file: &str,
    ) -> Result<Metadata, Error> {
        let what = format!("{file} of {reference}");
        let answer = |expected, found| Error::Answer { what: what.clone(), expected, found };
        let url = self.file(reference, commit, file);
        let response = self.follow(Method::HEAD, &url, None, Follow::OnTheHub)?;
        if !response.status().is_redirection() {
            self.check(&response, reference, Some(file))?;
        }
        let headers = response.headers();
        let said = text(headers, "x-repo-commit");
        if said.is_some_and(|said| said != commit) {
            return Err(answer("the commit that was asked for", short(said.unwrap_or_default())));
        }
        let etag =
            text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str())).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        if !reference::is_plain(etag) {
            return Err(answer("an entity tag that can be the name of a file", short(etag)));
        }
        let size = text(headers, "x-linked-size").or_else(|| text(headers, CONTENT_LENGTH.as_str()));
        let size = size.and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| answer("the size of the file", "none".to_owned()))?;
        Ok(Metadata { etag: etag.to_owned(), size })
    }

    /// The content of a file of `size` bytes, from a byte on or, if the server does not do that, from the first.
    /// Gives the byte where it begins.
    pub(super) fn content(
        &self,
        reference: &Reference,
        commit: &str,
        file: &str,
        from: u64,
        size: u64,
    ) -> Result<(u64, Body), Error> {
        let url = self.file(reference, commit, file);
        let response = self.follow(Method::GET, &url, Some(from), Follow::Everywhere)?;
        self.check(&response, reference, Some(file))?;
        let (from, expected, found) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(response.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
            (from, format!("bytes {from}-{}/{size}", size.saturating_sub(1)), range.to_owned())
        } else {
            // Without a length, the end is known by the connection's.
            let length = response.body().content_length().unwrap_or(size);
            (0, format!("{size} bytes"), format!("{length} bytes"))
        };
        if found != expected {
            let what = format!("{file} of {reference}");
            return Err(Error::Answer { what, expected: "the size announced", found: short(&found) });
        }
        Ok((from, response.into_body()))
    }

    fn file(&self, reference: &Reference, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, reference.repo().url())
    }

    /// Sends a request and follows where it is sent. Only the hub's own origin gets the token.
    fn follow(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        follow: Follow,
    ) -> Result<Response<Body>, Error> {
        let mut uri: Uri =
            url.parse().map_err(|_| self.redirected(&self.origin.host, "an unsound address"))?;
        for _ in 0..=MAX_REDIRECTS {
            let Some(origin) = Origin::of(&uri) else {
                return Err(self.redirected(&self.origin.host, "an address that is not one of HTTP"));
            };
            let mut request = Request::builder()
                .method(method.clone())
                .uri(uri.clone())
                // Sizes and ranges are those of the file.
                .header(ACCEPT_ENCODING, "identity");
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = self.authorization.as_ref().filter(|_| origin == self.origin) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(()).map_err(|error| self.unreachable(&origin.host, &error.into()))?;
            let request = self.agent.configure_request(request).proxy(self.routes.to(&uri).cloned());
            // A content may take longer.
            let limit = if from.is_some() { None } else { Some(ANSWER) };
            let response = self.agent.run(request.timeout_global(limit).build());
            let response = response.map_err(|error| self.unreachable(&origin.host, &error))?;
            let Some(location) = text(response.headers(), LOCATION.as_str()).filter(|_| {
                response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED
            }) else {
                return Ok(response);
            };
            let next: Uri =
                join(&origin, location).ok_or_else(|| self.redirected(&origin.host, "an unsound address"))?;
            match Origin::of(&next) {
                None => return Err(self.redirected(&origin.host, "an address that is not one of HTTP")),
                Some(next) if follow == Follow::OnTheHub && next != self.origin => return Ok(response),
                Some(next) if origin.https && !next.https => {
                    return Err(self.redirected(&origin.host, "an address without TLS"));
                }
                Some(_) => uri = next,
            }
        }
        Err(self.redirected(&self.origin.host, "one address after another"))
    }

    /// Refuses what is not a success. `file` is the one that was asked for, if it was a file.
    fn check(
        &self,
        response: &Response<Body>,
        reference: &Reference,
        file: Option<&str>,
    ) -> Result<(), Error> {
        let status = response.status();
        let (endpoint, reference) = (self.endpoint.clone(), reference.clone());
        Err(match (status.as_u16(), text(response.headers(), "x-error-code"), file) {
            _ if status.is_success() => return Ok(()),
            (status @ (401 | 403), ..) => {
                Error::Denied { endpoint, reference, status, with_token: self.authorization.is_some() }
            }
            (404, Some("RevisionNotFound"), _) => Error::NoRevision { reference },
            (404, Some("RepoNotFound"), _) | (404, _, None) => Error::NoRepository { endpoint, reference },
            (404, _, Some(file)) => Error::NoFile { reference, file: file.to_owned() },
            (status, ..) => Error::Status {
                host: self.origin.host.clone(),
                what: file.map_or_else(|| reference.to_string(), |file| format!("{file} of {reference}")),
                status,
            },
        })
    }

    fn unreachable(&self, host: &str, error: &ureq::Error) -> Error {
        Error::Unreachable { host: host.to_owned(), reason: error.to_string() }
    }

    /// Does not show where to: such addresses hold signatures.
    fn redirected(&self, host: &str, found: &'static str) -> Error {
        Error::Answer {
            what: format!("a file at {host}"),
            expected: "an answer or a sound redirection",
            found: found.to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    Everywhere,
    /// Up to where the hub sends us to another origin.
    OnTheHub,
}

/// Whom one talks to.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// None if the address is not of HTTP, or holds a user's name.
    fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Self { https, host: authority.host().to_ascii_lowercase(), port })
    }
}

/// The address that a Location header means: a whole one, or a path on the same origin.
fn join(origin: &Origin, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        let scheme = if origin.https { "https" } else { "http" };
        return format!("{scheme}://{}:{}{location}", origin.host, origin.port).parse().ok();
    }
    location.parse().ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What a stranger said, to be shown.
fn short(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

const MAX_REDIRECTS: usize = 8;
/// The description of a repository with ten thousands of files.
const MAX_INFO_BYTES: u64 = 16 << 20;

const CONNECT: Duration = Duration::from_secs(30);
/// After which a connection counts as broken.
const SILENCE: Duration = Duration::from_secs(60);
/// For a whole answer that is no file.
const ANSWER: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |uri: &str| Origin::of(&uri.parse().unwrap());
        assert_eq!(origin("https://hub.example/x"), origin("https://HUB.example:443/y"));
        for other in ["http://hub.example", "https://hub.example:444", "https://cdn.hub.example"] {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
        for none in ["ftp://hub.example", "/path", "https://user:password@hub.example"] {
            assert_eq!(origin(none), None, "{none}");
        }
    }

    #[test]
    fn where_a_redirection_leads() {
        let origin = Origin::of(&"https://hub.example".parse().unwrap()).unwrap();
        let to = |location| join(&origin, location).map(|uri| uri.to_string());
        assert_eq!(to("/a?b=c").unwrap(), "https://hub.example:443/a?b=c");
        assert_eq!(to("https://cdn.example/a").unwrap(), "https://cdn.example/a");
        // Not of the same origin, though it begins with a slash.
        assert_eq!(to("//cdn.example/a").and_then(|uri| Origin::of(&uri.parse().unwrap())), None);
    }
}
