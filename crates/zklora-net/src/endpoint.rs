//! Opening connections between endpoints that are their keys.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, IdleTimeout, TransportConfig, VarInt};
use zklora_proto::limits::MAX_PAYLOAD_BYTES;
use zklora_proto::message::{Request, Response};
use zklora_proto::{Address, PublicKey, SecretKey};

use crate::frame::{FrameError, read_frame, write_frame};
use crate::tls;

/// A connection without a sign of life for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The dialling end keeps a quiet connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Dialling gives up after this long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A request that has no answer after this long has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// Requests that a peer may have under way at once.
const MAX_STREAMS: u32 = 64;
/// Bytes that a peer may send ahead of their being read, on one stream or on all of a connection: as much as a gigabit a second takes in 64
/// milliseconds. It is memory that a silent peer holds for each of its connections.
const WINDOW: u32 = 8 << 20;
/// A first guess of the round trip, in place of QUIC's third of a second, so that a lost packet of the handshake costs
/// less.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The application error codes of a connection that a peer closes with a reason.
const REFUSED: VarInt = VarInt::from_u32(1);
const COME_AGAIN: VarInt = VarInt::from_u32(2);

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The address cannot be had.
    #[error(
        "listening on udp {address}: {error}; is another contributor running there? Choose another --listen address"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        error: std::io::Error,
    },
    /// TLS cannot be set up with this key.
    #[error("setting up TLS: {0}")]
    Tls(String),
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The host has no address.
    #[error("{host}: no such host ({reason}); check the zklora:// address")]
    Resolve {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// Someone else is there.
    #[error(
        "the peer at {address} holds key {found}, expected {expected}: check the zklora:// address, or someone stands between"
    )]
    ForeignKey {
        /// Where.
        address: SocketAddr,
        /// The key of the peer.
        found: PublicKey,
        /// The pinned key.
        expected: PublicKey,
    },
    /// Nobody answers in time.
    #[error(
        "nobody answers at {0} within {DIAL_TIMEOUT:?}: is the contributor running, and the port open for UDP?"
    )]
    NoAnswer(SocketAddr),
    /// The connection failed.
    #[error("connecting to {address}: {reason}")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// This end cannot open a socket or set up TLS.
    #[error("opening a socket: {0}")]
    Local(String),
}

/// Waits for connections.
#[derive(Debug)]
pub struct Listener {
    endpoint: quinn::Endpoint,
}

impl Listener {
    /// Listens on a UDP address with this key.
    pub fn bind(key: &SecretKey, address: SocketAddr) -> Result<Self, ListenError> {
        let tls = tls::server(key).map_err(|e| ListenError::Tls(e.to_string()))?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|e| ListenError::Tls(e.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport()));
        let endpoint =
            quinn::Endpoint::server(config, address).map_err(|error| ListenError::Bind { address, error })?;
        Ok(Self { endpoint })
    }

    /// The address that is listened on, with the port that the system chose if it was 0.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next connection attempt; `None` once the listener is closed. The handshake is carried out by [`Incoming::accept`], so that
    /// a slow peer holds up nobody.
    pub async fn incoming(&self) -> Option<Incoming> {
        self.endpoint.accept().await.map(Incoming)
    }

    /// Refuses new connections from now on. Those that are open go on.
    pub fn refuse_all(&self) {
        self.endpoint.set_server_config(None);
    }

    /// Refuses new connections, closes those that are open and waits until the peers have been told.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"the contributor is shutting down");
        self.endpoint.wait_idle().await;
    }
}

/// A connection attempt.
#[derive(Debug)]
pub struct Incoming(quinn::Incoming);

impl Incoming {
    /// Turns the peer away.
    pub fn refuse(self) {
        self.0.refuse();
    }

    /// The attempt, if its packets are known to come from where they say. If they have to be and are not, the peer is asked to try
    /// again with a token, which costs this end no memory.
    pub fn validated(self, must_be: bool) -> Option<Self> {
        if must_be && !self.0.remote_address_validated() {
            // It cannot have been asked before: its address would be validated.
            let _ = self.0.retry();
            return None;
        }
        Some(self)
    }

    /// Completes the handshake.
    pub async fn accept(self) -> Result<Connection, ConnectionError> {
        let address = self.0.remote_address();
        let inner = self.0.await?;
        // The verifier let pass nothing but an Ed25519 key.
        let peer = peer_key(&inner).ok_or(ConnectionError::LocallyClosed)?;
        Ok(Connection { inner, peer, address, _endpoint: None })
    }
}

/// An open connection with a peer that has proved its key.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: quinn::Connection,
    peer: PublicKey,
    address: SocketAddr,
    /// Keeps the dialling end's socket alive.
    _endpoint: Option<quinn::Endpoint>,
}

impl Connection {
    /// Connects to the contributor at an address, whose key must be the one in it.
    pub async fn dial(key: &SecretKey, to: &Address) -> Result<Self, DialError> {
        let host = to.host.trim_start_matches('[').trim_end_matches(']');
        let resolve = |reason: String| DialError::Resolve { host: to.host.clone(), reason };
        let mut addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((host, to.port)).await.map_err(|e| resolve(e.to_string()))?.collect();
        // `localhost` is both, and contributors listen on 127.0.0.1 unless told otherwise.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let mut last = resolve("it has no address".into());
        for address in addresses {
            match Self::dial_at(key, to.key, address).await {
                // Someone who holds another key may not be the only one at this name.
                Err(error) => last = error,
                connected => return connected,
            }
        }
        Err(last)
    }

    async fn dial_at(key: &SecretKey, pinned: PublicKey, address: SocketAddr) -> Result<Self, DialError> {
        let (tls, verifier) = tls::client(key, pinned).map_err(|e| DialError::Local(e.to_string()))?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|e| DialError::Local(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = transport();
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        config.transport_config(Arc::new(transport));
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = quinn::Endpoint::client(any).map_err(|e| DialError::Local(e.to_string()))?;
        let failed = |reason: String| match verifier.foreign() {
            Some(found) => DialError::ForeignKey { address, found, expected: pinned },
            None => DialError::Failed { address, reason },
        };
        // The name is not used: keys are pinned, not names.
        let connecting =
            endpoint.connect_with(config, address, "zklora").map_err(|e| failed(e.to_string()))?;
        let inner = match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
            Err(_) | Ok(Err(ConnectionError::TimedOut)) => return Err(DialError::NoAnswer(address)),
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Ok(Ok(connection)) => connection,
        };
        Ok(Self { inner, peer: pinned, address, _endpoint: Some(endpoint) })
    }

    /// The peer's key.
    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// The peer's address when the connection was opened.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and waits for its response and payload.
    pub async fn request(
        &self,
        request: &Request,
        payload: &[u8],
    ) -> Result<(Response, Vec<u8>), FrameError> {
        let exchange = async {
            let (mut send, mut receive) = self.open().await?;
            let written = write_frame(&mut send, request, payload).await;
            // Cannot fail: the stream was not finished or reset before.
            let _ = send.finish();
            // A peer that refuses after the header does not wait for the payload: there may be an answer all the same.
            match read_frame(&mut receive, MAX_PAYLOAD_BYTES).await {
                Ok(answer) => Ok(answer),
                Err(error) => Err(written.err().unwrap_or(error)),
            }
        };
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, exchange)
            .await
            .unwrap_or(Err(FrameError::NoAnswer(REQUEST_TIMEOUT)));
        // If the peer has said why there is no answer, that is what matters.
        match (answer, self.inner.close_reason()) {
            (Err(_), Some(ConnectionError::ApplicationClosed(close))) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                Err(FrameError::Closed { reason, refused: close.error_code == REFUSED })
            }
            (answer, _) => answer,
        }
    }

    /// Opens the streams of a request.
    pub async fn open(&self) -> Result<(quinn::SendStream, quinn::RecvStream), FrameError> {
        self.inner.open_bi().await.map_err(lost)
    }

    /// The next request's streams, from the peer that dialled; an error once the connection is closed.
    pub async fn accept(&self) -> Result<(quinn::SendStream, quinn::RecvStream), ConnectionError> {
        self.inner.accept_bi().await
    }

    /// Closes the connection, unless it is closed, and tells the peer why and whether it may come again.
    pub fn close_because(&self, reason: &str, come_again: bool) {
        let code = if come_again { COME_AGAIN } else { REFUSED };
        self.inner.close(code, reason.as_bytes());
    }

    /// Closes the connection and tells the peer.
    pub async fn close(&self) {
        self.inner.close(VarInt::from_u32(0), b"done");
        if let Some(endpoint) = &self._endpoint {
            endpoint.wait_idle().await;
        }
    }
}

/// Ends a stream, and completes when the peer has all of it, or does not want it. Whoever closes the connection before loses what is
/// under way.
pub async fn deliver(mut stream: quinn::SendStream) {
    if stream.finish().is_ok() {
        // An error says that the connection is gone, and the peer with it.
        let _ = stream.stopped().await;
    }
}

fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?;
    let keys = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    tls::key_of(keys.first()?)
}

fn lost(error: ConnectionError) -> FrameError {
    FrameError::Io(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, error))
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW))
        .initial_rtt(INITIAL_RTT);
    transport
}

#[cfg(test)]
mod tests {
    use zklora_proto::SessionId;
    use zklora_proto::message::ProofState;

    use super::*;

    fn local() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    /// A contributor that answers one request with its payload.
    async fn echo(listener: Listener) -> PublicKey {
        let connection = listener.incoming().await.unwrap().accept().await.unwrap();
        let (mut send, mut receive) = connection.accept().await.unwrap();
        let (_, payload): (Request, _) = read_frame(&mut receive, 1 << 20).await.unwrap();
        let response = Response::Status { state: ProofState::Open };
        write_frame(&mut send, &response, &payload).await.unwrap();
        send.finish().unwrap();
        let peer = *connection.peer();
        // Until the client is done reading.
        let _ = connection.accept().await;
        peer
    }

    #[tokio::test]
    async fn both_ends_know_each_others_key() {
        let (a, b) = (SecretKey::generate(), SecretKey::generate());
        let listener = Listener::bind(&a, local()).unwrap();
        let address = Address {
            key: a.public(),
            host: "127.0.0.1".into(),
            port: listener.local_address().unwrap().port(),
        };
        let server = tokio::spawn(echo(listener));
        let connection = Connection::dial(&b, &address).await.unwrap();
        let request = Request::Status { session: SessionId::from_bytes([0; 32]) };
        let payload = vec![7; 1 << 20];
        let (response, echoed) = connection.request(&request, &payload).await.unwrap();
        assert_eq!(response, Response::Status { state: ProofState::Open });
        assert_eq!(echoed, payload);
        connection.close().await;
        assert_eq!(server.await.unwrap(), b.public());
    }

    #[tokio::test]
    async fn a_foreign_key_is_named_and_refused() {
        let (a, b, other) = (SecretKey::generate(), SecretKey::generate(), SecretKey::generate());
        let listener = Listener::bind(&a, local()).unwrap();
        let port = listener.local_address().unwrap().port();
        tokio::spawn(async move {
            while let Some(incoming) = listener.incoming().await {
                let _ = incoming.accept().await;
            }
        });
        let address = Address { key: other.public(), host: "localhost".into(), port };
        let error = Connection::dial(&b, &address).await.unwrap_err();
        let DialError::ForeignKey { found, expected, .. } = error else { panic!("{error}") };
        assert_eq!((found, expected), (a.public(), other.public()));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let key = SecretKey::generate();
        let first = Listener::bind(&key, local()).unwrap();
        let error = Listener::bind(&key, first.local_address().unwrap()).unwrap_err().to_string();
        assert!(error.contains("--listen"), "{error}");
    }
}
