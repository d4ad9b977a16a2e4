//! What each client takes at this moment, whatever the number of its connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
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
    memory: Memory,
    table: Mutex<HashMap<PublicKey, Arc<Client>>>,
}

/// The memory of all requests under way, in parts, so that none waits for what is much larger, or for who is silent.
#[derive(Debug)]
struct Memory {
    /// For payloads as they arrive.
    arriving: Arc<Semaphore>,
    /// Whoever has this goes on although there is no room for what arrives. Otherwise many who have arrived in part could wait for each other.
    last: Arc<Semaphore>,
    /// For requests that are answered and take little.
    small: Arc<Semaphore>,
    /// For the others.
    large: Arc<Semaphore>,
    /// What is little, in bytes.
    little: usize,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let part = |eighths: usize| Arc::new(Semaphore::new((bytes / 8 * eighths / PIECE).max(1)));
        Self {
            arriving: part(1),
            last: Arc::new(Semaphore::new(1)),
            small: part(1),
            large: part(6),
            little: bytes / 256,
        }
    }
}

#[derive(Debug)]
struct Client {
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    rows: Mutex<Bucket>,
    connections: Arc<Semaphore>,
}

/// What a client may take, as one of its connections takes it.
#[derive(Debug)]
pub struct Quota {
    clients: Arc<Clients>,
    client: Arc<Client>,
    refusals: AtomicU64,
    _connection: OwnedSemaphorePermit,
}

/// Memory that is held until this is dropped.
#[derive(Debug)]
pub struct MemoryPermits {
    of_client: OwnedSemaphorePermit,
    /// For what of the payload has arrived.
    arrived: Option<OwnedSemaphorePermit>,
    last: Option<OwnedSemaphorePermit>,
    of_all: Option<OwnedSemaphorePermit>,
}

impl Clients {
    /// Nobody yet.
    pub fn new(limits: &Limits) -> Arc<Self> {
        Self::with_patience(limits, PATIENCE)
    }

    fn with_patience(limits: &Limits, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            patience,
            memory: Memory::new(limits.request_memory),
            limits: limits.clone(),
            table: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PublicKey, Arc<Client>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one more connection of a client; none if it has as many as it may.
    pub fn quota(self: &Arc<Self>, key: PublicKey) -> Option<Quota> {
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
        Some(Quota { clients: self.clone(), client, refusals: AtomicU64::new(0), _connection: connection })
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

impl Quota {
    /// Counts a request that is refused; gives how many were before it.
    pub fn refused(&self) -> u64 {
        self.refusals.fetch_add(1, Ordering::Relaxed)
    }

    /// Requests of this connection that were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

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

    /// Waits for the client's share of the memory that a request takes in all.
    pub async fn memory(&self, bytes: usize) -> Result<MemoryPermits, Refusal> {
        let most = self.clients.limits.most_memory();
        if bytes > most {
            return refuse(
                ErrorCode::Limit,
                format!(
                    "the call takes {} MiB, expected at most {}: send fewer rows, or fewer modules at once",
                    bytes >> 20,
                    most >> 20
                ),
            );
        }
        let of_client = self.wait(&self.client.memory, bytes).await?;
        Ok(MemoryPermits { of_client, arrived: None, last: None, of_all: None })
    }

    /// Waits for room for so many more bytes of a payload that arrives.
    pub async fn arriving(&self, held: &mut MemoryPermits, bytes: usize) -> Result<(), Refusal> {
        if held.last.is_some() {
            return Ok(());
        }
        let memory = &self.clients.memory;
        let more = tokio::select! {
            biased;
            more = self.wait(&memory.arriving, bytes) => more?,
            last = memory.last.clone().acquire_owned() => {
                held.last = last.ok();
                return Ok(());
            }
        };
        match &mut held.arrived {
            Some(arrived) => arrived.merge(more),
            arrived => *arrived = Some(more),
        }
        Ok(())
    }

    /// Waits for the memory that a request takes while it is answered: so many bytes, and its payload, which has arrived, is among them.
    pub async fn answering(&self, held: &mut MemoryPermits, bytes: usize) -> Result<(), Refusal> {
        let memory = &self.clients.memory;
        let lane = if bytes <= memory.little { &memory.small } else { &memory.large };
        held.of_all = Some(self.wait(lane, bytes).await?);
        (held.arrived, held.last) = (None, None);
        Ok(())
    }

    async fn wait(&self, memory: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let permit = memory.clone().acquire_many_owned(pieces(bytes));
        match tokio::time::timeout(self.clients.patience, permit).await {
            Ok(Ok(held)) => Ok(held),
            // Never closed.
            _ => refuse(
                ErrorCode::Limit,
                "this contributor has too much to do at this moment; try again later",
            ),
        }
    }
}

impl MemoryPermits {
    /// Only so many bytes are held any longer: those of an answer that its client has to take.
    pub fn shrink(&mut self, bytes: usize) {
        for permit in [Some(&mut self.of_client), self.of_all.as_mut()].into_iter().flatten() {
            let surplus = permit.num_permits().saturating_sub(pieces(bytes) as usize);
            drop(permit.split(surplus));
        }
    }
}

/// Pieces of memory for so many bytes.
fn pieces(bytes: usize) -> u32 {
    // Below 2^42 bytes: bounded by the limits.
    u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX)
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
        let quotas = [clients.quota(a).unwrap(), clients.quota(a).unwrap()];
        assert!(clients.quota(a).is_none());
        let other = clients.quota(b);
        drop((quotas, other));
        assert!(clients.quota(a).is_some());
    }

    #[test]
    fn who_comes_with_many_keys_is_not_remembered_for_ever() {
        let clients = Clients::new(&Limits::default());
        for _ in 0..REMEMBERED + 10 {
            // Random bytes are as good as a key here.
            let quota =
                clients.quota(PublicKey::from_bytes(*zklora_proto::message::Nonce::random().as_bytes()));
            quota.unwrap();
        }
        assert!(clients.lock().len() <= 11);
    }

    #[tokio::test]
    async fn memory_is_the_clients_and_everybodys() {
        let limits = Limits { client_memory: 400 * PIECE, request_memory: 512 * PIECE, ..Limits::default() };
        let clients = Clients::with_patience(&limits, Duration::from_millis(20));
        let quota = |byte| clients.quota(PublicKey::from_bytes([byte; 32])).unwrap();
        let (a, b) = (quota(1), quota(2));
        assert!(a.memory(384 * PIECE + 1).await.unwrap_err().message.contains("fewer rows"));
        let mut of_a = a.memory(384 * PIECE).await.unwrap();
        assert_eq!(a.memory(17 * PIECE).await.unwrap_err().code, ErrorCode::Limit);
        // Who has sent nothing keeps nobody from being answered.
        let mut of_b = b.memory(384 * PIECE).await.unwrap();
        b.answering(&mut of_b, 384 * PIECE).await.unwrap();
        // All that is large waits now; what takes little does not.
        assert!(a.answering(&mut of_a, 3 * PIECE).await.is_err());
        let mut little = b.memory(2 * PIECE).await.unwrap();
        b.answering(&mut little, 2 * PIECE).await.unwrap();
        of_b.shrink(PIECE);
        a.answering(&mut of_a, 383 * PIECE).await.unwrap();
        assert_eq!(of_b.of_all.unwrap().num_permits(), 1);
    }

    #[tokio::test]
    async fn of_many_that_have_arrived_in_part_one_goes_on() {
        let limits = Limits { request_memory: 512 * PIECE, ..Limits::default() };
        let clients = Clients::with_patience(&limits, Duration::from_millis(20));
        let quota = clients.quota(PublicKey::from_bytes([1; 32])).unwrap();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(quota.memory(100 * PIECE).await.unwrap());
        }
        // 64 pieces in all.
        quota.arriving(&mut held[0], 32 * PIECE).await.unwrap();
        quota.arriving(&mut held[1], 32 * PIECE).await.unwrap();
        quota.arriving(&mut held[2], PIECE).await.unwrap();
        quota.arriving(&mut held[2], 99 * PIECE).await.unwrap();
        assert!(quota.arriving(&mut held[0], PIECE).await.is_err(), "one, and not all of them");
        quota.answering(&mut held[2], 100 * PIECE).await.unwrap();
        quota.arriving(&mut held[0], PIECE).await.unwrap();
    }

    #[tokio::test]
    async fn rows_are_waited_for_or_refused() {
        let limits = Limits { client_rows_per_minute: 60, ..Limits::default() };
        let quota = Clients::new(&limits).quota(PublicKey::from_bytes([1; 32])).unwrap();
        quota.rows(60 + 1000).await.unwrap();
        let refused = quota.rows(1).await.unwrap_err();
        assert!(refused.message.contains("60 rows a minute"), "{}", refused.message);
    }
}
