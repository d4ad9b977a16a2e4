//! Who asks for more than the budget allows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;
use zklora_proto::PublicKey;

/// Clients that are remembered, at most.
const REMEMBERED: usize = 4096;

/// Calls that went beyond the budget, by client, since the process began.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    of_all: u64,
    of_client: HashMap<PublicKey, u64>,
}

/// The client with the most refused calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MostRefused {
    /// Its key.
    pub client: PublicKey,
    /// Its refused calls.
    pub calls: u64,
}

impl Refusals {
    /// Counts a refused call of a client. Its first is logged, and then each that makes ten times as many.
    pub fn count(&self, client: PublicKey) {
        let calls = {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            counts.of_all += 1;
            if counts.of_client.len() >= REMEMBERED && !counts.of_client.contains_key(&client) {
                counts.forget_half();
            }
            let calls = counts.of_client.entry(client).or_default();
            *calls += 1;
            *calls
        };
        if calls == 10u64.pow(calls.ilog10()) {
            warn!(%client, calls, "a client asks for more than the exposure budget allows, so often since this process began");
        }
    }

    /// Calls of all clients, and who has the most of them.
    pub fn totals(&self) -> (u64, Option<MostRefused>) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = counts.of_client.iter().max_by_key(|(_, calls)| **calls);
        (counts.of_all, most.map(|(&client, &calls)| MostRefused { client, calls }))
    }
}

impl Counts {
    /// Forgets those with the fewest refused calls: keys cost nothing where everybody is served.
    fn forget_half(&mut self) {
        let mut calls: Vec<(u64, PublicKey)> =
            self.of_client.iter().map(|(&client, &calls)| (calls, client)).collect();
        calls.sort_unstable_by_key(|(calls, _)| *calls);
        for (_, client) in &calls[..calls.len() / 2] {
            self.of_client.remove(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_client_and_who_has_most_is_not_forgotten() {
        let refusals = Refusals::default();
        assert_eq!(refusals.totals(), (0, None));
        let client = |number: u16| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&number.to_le_bytes());
            PublicKey::from_bytes(bytes)
        };
        for _ in 0..3 {
            refusals.count(client(9));
        }
        for number in 10..10_010 {
            refusals.count(client(number));
        }
        assert_eq!(refusals.totals(), (10_003, Some(MostRefused { client: client(9), calls: 3 })));
        assert!(refusals.0.lock().unwrap().of_client.len() <= REMEMBERED);
    }
}
