//! A connection that is made anew when it breaks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use zklora_net::{Connection, DialError, FrameError};
use zklora_proto::message::{Request, Response};
use zklora_proto::{Address, SecretKey};

/// A contributor that cannot be reached for this long is given up, and tried once for each later request. It may have been restarted, and have many sessions to take up again.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long to wait before the second attempt; twice as long before each further one, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A contributor that is talked to by its key, over one connection after another.
pub(crate) struct Link {
    key: SecretKey,
    address: Address,
    connection: Mutex<Connection>,
    /// Whether it could not be reached for so long, and is not waited for any more.
    given_up: AtomicBool,
}

impl Link {
    /// Connects. A contributor that cannot be reached at first is not waited for.
    pub(crate) async fn dial(key: SecretKey, address: Address) -> Result<Self, DialError> {
        let connection = Mutex::new(Connection::dial(&key, &address).await?);
        Ok(Self { key, address, connection, given_up: AtomicBool::new(false) })
    }

    /// Whose link it is.
    pub(crate) fn key(&self) -> &SecretKey {
        &self.key
    }

    /// Sends a request and waits for the answer. If the connection breaks, or the contributor goes and comes back, the request
    /// is sent once more, unless it is `hello`, which would open another session.
    pub(crate) async fn request(
        &self,
        request: &Request,
        payload: &[u8],
    ) -> Result<(Response, Vec<u8>), FrameError> {
        let patience = if self.given_up.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        let (mut pause, mut broken, mut tried) = (FIRST_PAUSE, None, false);
        loop {
            let connection = self.connection.lock().await.clone();
            let error = match connection.request(request, payload).await {
                Err(error) if request.kind().is_repeatable() && may_pass(&error) => error,
                answer => return answer,
            };
            let since = *broken.get_or_insert_with(Instant::now);
            warn!("the contributor does not answer ({error}); connecting again");
            loop {
                if tried && since.elapsed() > patience {
                    self.given_up.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                tried = true;
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(2 * pause);
                match Connection::dial(&self.key, &self.address).await {
                    Ok(connection) => {
                        info!("connected again");
                        *self.connection.lock().await = connection;
                        break;
                    }
                    Err(error @ DialError::ForeignKey { .. }) => {
                        return Err(FrameError::Closed { reason: error.to_string(), refused: true });
                    }
                    Err(error) => info!("{error}"),
                }
            }
        }
    }

    /// Closes the connection, if the contributor can still be told.
    pub(crate) async fn close(&self) {
        // Whoever does not answer need not be waited for.
        let _ = timeout(LONGEST_PAUSE, self.connection.lock().await.close()).await;
    }
}

/// Whether another connection may help.
fn may_pass(error: &FrameError) -> bool {
    match error {
        FrameError::Closed { refused, .. } => !refused,
        FrameError::Io(_) | FrameError::CutOff | FrameError::NoAnswer(_) => true,
        _ => false,
    }
}
