//! What a contributor allows its clients.

use std::time::Duration;

/// Bounds on what clients may take, one of them and all together. None of them can be switched off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open sessions of one client.
    pub client_sessions: usize,
    /// Connections of one client.
    pub client_connections: usize,
    /// Requests of one client that are worked on at once; others wait.
    pub client_requests: usize,
    /// Rows that one client may ask for in a minute, each module's counted by itself. Who asks faster waits.
    pub client_rows_per_minute: u64,
    /// Bytes of one client's transcripts, of activations and deltas, until they are proved.
    pub client_bytes: usize,
    /// Memory of one client's requests under way, in bytes.
    pub client_memory: usize,
    /// Open sessions of all clients.
    pub sessions: usize,
    /// Connections of all clients.
    pub connections: usize,
    /// Bytes of one session's transcript. Whoever proves it has it in memory once.
    pub session_bytes: usize,
    /// Bytes of all transcripts until they are proved. They are on the disk.
    pub total_bytes: usize,
    /// Memory of all requests under way, in bytes.
    pub memory: usize,
    /// Sessions that may wait for their proofs before no other is opened.
    pub queue: usize,
    /// A session or a connection without a request for this long is given up.
    pub idle: Duration,
    /// A session this long after it was opened, or taken up again, is given up.
    pub age: Duration,
}

impl Limits {
    /// What is allowed unless told otherwise.
    pub const DEFAULT: Self = Self {
        client_sessions: 16,
        client_connections: 16,
        client_requests: 16,
        client_rows_per_minute: 1 << 20,
        client_bytes: 4 << 30,
        client_memory: 256 << 20,
        sessions: 256,
        connections: 256,
        session_bytes: 1 << 30,
        total_bytes: 16 << 30,
        memory: 1 << 30,
        queue: 256,
        idle: Duration::from_secs(600),
        age: Duration::from_secs(24 * 3600),
    };
}

impl Limits {
    /// Most memory of one request, in bytes. A part of what there is for all is kept for small requests, and for what arrives.
    pub fn request_memory(&self) -> usize {
        self.client_memory.min(self.memory / 4 * 3)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
