//! A server on loopback that speaks as much of the hub's API as fetching models takes, honestly or not.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::json;
use sha2::{Digest, Sha256};

/// Answers every request by a function, until it is dropped.
pub struct FakeHub {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// By name in small letters.
    pub headers: BTreeMap<String, String>,
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after so many bytes of the body.
    pub cut: Option<usize>,
}

impl FakeHub {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (requests, stopping, answer) = (requests.clone(), stopping.clone(), Arc::new(answer));
            move || {
                for stream in listener.incoming() {
                    if stopping.load(Ordering::SeqCst) {
                        break;
                    }
                    let (requests, answer, stream) = (requests.clone(), answer.clone(), stream.unwrap());
                    // A client that goes away early is not this server's concern.
                    thread::spawn(move || drop(serve(stream, &requests, &*answer)));
                }
            }
        });
        Self { address, requests, stopping, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests since the last time, as `METHOD path`.
    pub fn asked(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap());
        requests.iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes it.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The byte from which it asks.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }

    /// A file, or the part of it that is asked for.
    pub fn content(request: &Request, body: &[u8]) -> Self {
        match request.from() {
            Some(from) if from < body.len() => Self { body: body[from..].to_vec(), ..Self::new(206) }
                .header("content-range", format!("bytes {from}-{}/{}", body.len() - 1, body.len())),
            _ => Self { body: body.to_vec(), ..Self::new(200) },
        }
    }

    pub fn redirect(to: impl Into<String>) -> Self {
        Self::new(302).header("location", to)
    }

    pub fn error(status: u16, code: &str) -> Self {
        Self::new(status).header("x-error-code", code)
    }

    /// Sets a header, in place of one of this name.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A repository as the hub has it.
#[derive(Clone)]
pub struct Repository {
    pub id: String,
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Another server, where the content of large files is: its address.
    pub cdn: Option<String>,
}

impl Repository {
    /// All files of a folder; `main` is the commit.
    pub fn of_folder(id: &str, folder: &Path) -> Self {
        let files = fs::read_dir(folder).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        });
        Self::new(id, files.collect())
    }

    pub fn new(id: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { id: id.to_owned(), commit: sha256(id.as_bytes())[..40].to_owned(), files, cdn: None }
    }

    /// As an honest hub would.
    pub fn answer(&self, request: &Request) -> Answer {
        if let Some(revision) = request.path.strip_prefix(&format!("/api/models/{}/revision/", self.id)) {
            return if revision == "main" || revision == self.commit { self.info() } else { no_revision() };
        }
        let Some(path) = request.path.strip_prefix(&format!("/{}/resolve/", self.id)) else {
            return Answer::error(404, "RepoNotFound");
        };
        let (revision, file) = path.split_once('/').unwrap();
        if revision != "main" && revision != self.commit {
            return no_revision();
        }
        let Some(body) = self.files.get(file) else {
            return Answer::error(404, "EntryNotFound").header("x-repo-commit", &self.commit);
        };
        let digest = sha256(body);
        if !file.ends_with(".safetensors") {
            return Answer::content(request, body)
                .header("x-repo-commit", &self.commit)
                .header("etag", format!("\"{}\"", &digest[..40]));
        }
        let large = match &self.cdn {
            Some(cdn) => Answer::redirect(format!("{cdn}/{file}?signature=very-secret")),
            None => Answer::content(request, body).header("etag", "\"not-the-content\""),
        };
        large
            .header("x-repo-commit", &self.commit)
            .header("x-linked-etag", format!("\"{digest}\""))
            .header("x-linked-size", body.len().to_string())
    }

    /// As the server that it redirects to would.
    pub fn answer_of_cdn(&self, request: &Request) -> Answer {
        let file = request.path[1..].split('?').next().unwrap();
        self.files.get(file).map_or_else(|| Answer::new(404), |body| Answer::content(request, body))
    }

    pub fn info(&self) -> Answer {
        let siblings: Vec<_> = self.files.keys().map(|file| json!({ "rfilename": file })).collect();
        let info = json!({ "id": self.id, "sha": self.commit, "private": false, "siblings": siblings });
        Answer { body: info.to_string().into_bytes(), ..Answer::new(200) }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn no_revision() -> Answer {
    Answer::error(404, "RevisionNotFound")
}

/// One request a connection.
fn serve(
    mut stream: TcpStream,
    requests: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Answer,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let request = Request { method, path, headers };
    requests.lock().unwrap().push(request.clone());

    let Answer { status, headers, body, cut } = answer(&request);
    write!(stream, "HTTP/1.1 {status} As said\r\nconnection: close\r\n")?;
    if !headers.iter().any(|(name, _)| name == "content-length") {
        write!(stream, "content-length: {}\r\n", body.len())?;
    }
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(&body[..cut.unwrap_or(body.len())])?;
    }
    stream.flush()
}
