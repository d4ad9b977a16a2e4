//! What each client takes at this moment, whatever the number of its connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zklora_proto::message::ErrorCode;
use zklora_proto::{PublicKey, counted};

use crate::limits::Limits;
use crate::service::{Refusal, refuse};

/// Who has to wait longer than this for rows or memory is refused instead. Less than what clients wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Memory is counted in pieces of this many bytes.
const PIECE: usize = 1024;
/// Clients that are gone, and owe rows, are remembered up to this number.
const REMEMBERED: usize = 4096;

/// The clients that are there.
#[derive(Debug)]
pub struct Clients {
    limits: Limits,
    patience: Duration,
    memory: Arc<Semaphore>,
    table: Mutex<HashMap<PublicKey, Arc<Client>>>,
}

#[derive(Debug)]
struct Client {
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    rows: Mutex<Bucket>,
    connections: Arc<Semaphore>,
}

/// A client's place at the table, one for each of its connections.
#[derive(Debug)]
pub struct Seat {
    clients: Arc<Clients>,
    client: Arc<Client>,
    _connection: OwnedSemaphorePermit,
}

/// Memory that is held until this is dropped.
#[derive(Debug)]
pub struct Held {
    _of_client: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Clients {
    /// Nobody yet.
    pub fn new(limits: &Limits) -> Arc<Self> {
        Self::with_patience(limits, PATIENCE)
    }

    fn with_patience(limits: &Limits, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            patience,
            memory: Arc::new(Semaphore::new(limits.memory / PIECE)),
            limits: limits.clone(),
            table: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PublicKey, Arc<Client>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection of a client; none if it has as many as it may.
    pub fn seat(self: &Arc<Self>, key: PublicKey) -> Option<Seat> {
        let mut table = self.lock();
        if table.len() >= REMEMBERED {
            let now = Instant::now();
            table
                .retain(|_, client| client.connections_open(&self.limits) > 0 || !client.rows().is_full(now));
            // Keys cost nothing: somebody may have come with very many, and owe rows under each.
            if table.len() >= 2 * REMEMBERED {
                table.retain(|_, client| client.connections_open(&self.limits) > 0);
            }
        }
        let client = table.entry(key).or_insert_with(|| Arc::new(Client::new(&self.limits))).clone();
        let connection = client.connections.clone().try_acquire_owned().ok()?;
        Some(Seat { clients: self.clone(), client, _connection: connection })
    }
}

impl Client {
    fn new(limits: &Limits) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(limits.client_requests)),
            memory: Arc::new(Semaphore::new(limits.client_memory / PIECE)),
            rows: Mutex::new(Bucket::new(limits.client_rows_per_minute, Instant::now())),
            connections: Arc::new(Semaphore::new(limits.client_connections)),
        }
    }

    fn connections_open(&self, limits: &Limits) -> usize {
        limits.client_connections - self.connections.available_permits()
    }

    fn rows(&self) -> MutexGuard<'_, Bucket> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Waits for the client's turn to have a request worked on.
    pub async fn request(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        self.client.requests.clone().acquire_owned().await.ok()
    }

    /// Takes rows from the client's share of this minute, and waits if there are none.
    pub async fn rows(&self, rows: u64) -> Result<(), Refusal> {
        let started = Instant::now();
        loop {
            let wait = self.client.rows().take(rows, Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            if started.elapsed() + wait > self.clients.patience {
                return refuse(
                    ErrorCode::Limit,
                    format!(
                        "you have asked for more than {} a minute; go on in {} s",
                        counted(self.clients.limits.client_rows_per_minute, "row"),
                        wait.as_secs() + 1
                    ),
                );
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits for memory, first the client's and then everybody's.
    pub async fn memory(&self, bytes: usize) -> Result<Held, Refusal> {
        let limits = &self.clients.limits;
        if bytes > limits.client_memory.min(limits.memory) {
            return refuse(
                ErrorCode::Limit,
                format!(
                    "the call takes {} MiB, expected at most {}: send fewer rows, or fewer modules at once",
                    bytes >> 20,
                    limits.client_memory.min(limits.memory) >> 20
                ),
            );
        }
        // Below 2^42 bytes: bounded by the limits.
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
        let wait = async {
            let of_client = self.client.memory.clone().acquire_many_owned(pieces).await.ok()?;
            let of_all = self.clients.memory.clone().acquire_many_owned(pieces).await.ok()?;
            Some(Held { _of_client: of_client, _of_all: of_all })
        };
        match tokio::time::timeout(self.clients.patience, wait).await {
            Ok(Some(held)) => Ok(held),
            _ => refuse(
                ErrorCode::Limit,
                "this contributor has too much to do at this moment; try again later",
            ),
        }
    }
}

/// Rows that may be asked for: at most a minute's share at once. Who has any left may go into debt by one call, and then waits.
#[derive(Debug)]
struct Bucket {
    per_minute: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: u64, now: Instant) -> Self {
        Self { per_minute: per_minute as f64, left: per_minute as f64, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = self.per_minute.min(self.left + passed * self.per_minute / 60.0);
        self.at = now;
    }

    /// Takes rows; or takes none, and says how long it is until there are any.
    fn take(&mut self, rows: u64, now: Instant) -> Duration {
        self.refill(now);
        if self.left > 0.0 {
            self.left -= rows as f64;
            return Duration::ZERO;
        }
        let wait = (1.0 - self.left) * 60.0 / self.per_minute;
        Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX)
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= self.per_minute
    }
}

#[cfg(test)]
mod tests {
    use zklora_proto::SecretKey;

    use super::*;

    #[test]
    fn rows_come_back_in_a_minute_and_debts_are_waited_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(60, start);
        assert_eq!(bucket.take(59, start), Duration::ZERO);
        // More than is left, and more than there ever is: but only once.
        assert_eq!(bucket.take(121, start), Duration::ZERO);
        let wait = bucket.take(1, start);
        assert!(wait > Duration::from_secs(119) && wait < Duration::from_secs(123), "{wait:?}");
        assert!(!bucket.take(1, start + wait / 2).is_zero());
        assert!(bucket.take(1, start + wait).is_zero());
        // A clock that goes backwards gives nothing, and takes nothing.
        assert!(!bucket.take(1, start).is_zero());
        assert!(bucket.is_full(start + Duration::from_secs(3600)));
        assert_eq!(bucket.left, 60.0);
    }

    #[test]
    fn a_client_has_so_many_connections_and_another_has_its_own() {
        let limits = Limits { client_connections: 2, ..Limits::default() };
        let clients = Clients::new(&limits);
        let [a, b] = [(); 2].map(|()| SecretKey::generate().public());
        let seats = [clients.seat(a).unwrap(), clients.seat(a).unwrap()];
        assert!(clients.seat(a).is_none());
        let other = clients.seat(b);
        drop((seats, other));
        assert!(clients.seat(a).is_some());
    }

    #[test]
    fn who_comes_with_many_keys_is_not_remembered_for_ever() {
        let clients = Clients::new(&Limits::default());
        for _ in 0..REMEMBERED + 10 {
            // Random bytes are as good as a key here.
            let seat =
                clients.seat(PublicKey::from_bytes(*zklora_proto::message::Nonce::random().as_bytes()));
            seat.unwrap();
        }
        assert!(clients.lock().len() <= 11);
    }

    #[tokio::test]
    async fn memory_is_the_clients_and_everybodys() {
        let limits = Limits { client_memory: 4 * PIECE, memory: 6 * PIECE, ..Limits::default() };
        let clients = Clients::with_patience(&limits, Duration::from_millis(20));
        let seat = |byte| clients.seat(PublicKey::from_bytes([byte; 32])).unwrap();
        let (a, b) = (seat(1), seat(2));
        assert!(a.memory(4 * PIECE + 1).await.unwrap_err().message.contains("fewer rows"));
        let of_a = a.memory(4 * PIECE).await.unwrap();
        let busy = a.memory(1).await.unwrap_err();
        assert_eq!(busy.code, ErrorCode::Limit);
        let of_b = b.memory(2 * PIECE).await.unwrap();
        assert!(b.memory(1).await.is_err());
        drop(of_a);
        b.memory(1).await.unwrap();
        drop(of_b);
    }

    #[tokio::test]
    async fn rows_are_waited_for_or_refused() {
        let limits = Limits { client_rows_per_minute: 60, ..Limits::default() };
        let seat = Clients::new(&limits).seat(PublicKey::from_bytes([1; 32])).unwrap();
        seat.rows(60 + 1000).await.unwrap();
        let refused = seat.rows(1).await.unwrap_err();
        assert!(refused.message.contains("60 rows a minute"), "{}", refused.message);
    }
}
