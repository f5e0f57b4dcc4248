//! Accounts that a worker has met, so that the books are not locked for each connection.

use std::collections::HashMap;
use std::sync::Arc;

use super::accounts::Account;

/// The accounts of one (listener, upstream), by consumer and endpoint. Bounded: one that is full begins anew.
#[derive(Debug)]
pub struct Cache {
    /// By the consumer's place in the configuration, of which there are few, so that an endpoint is looked up without a copy of its name.
    by_consumer: HashMap<Option<usize>, HashMap<String, Arc<Account>>>,
    len: usize,
    most: usize,
}

impl Cache {
    /// An empty one, for at most so many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            by_consumer: HashMap::new(),
            len: 0,
            most: most.max(1),
        }
    }

    /// The account of an endpoint, if it was kept.
    #[must_use]
    pub fn get(&self, endpoint: &str, consumer: Option<usize>) -> Option<&Arc<Account>> {
        self.by_consumer.get(&consumer)?.get(endpoint)
    }

    /// Keeps an account, in place of one that was kept before.
    pub fn keep(&mut self, endpoint: &str, consumer: Option<usize>, account: Arc<Account>) {
        if self.len >= self.most {
            self.sweep();
        }
        if self.len >= self.most {
            self.by_consumer.clear();
            self.len = 0;
        }
        let accounts = self.by_consumer.entry(consumer).or_default();
        if accounts.insert(endpoint.to_owned(), account).is_none() {
            self.len += 1;
        }
    }

    /// Forgets accounts that were retired.
    pub fn sweep(&mut self) {
        self.by_consumer.retain(|_, accounts| {
            accounts.retain(|_, account| !account.is_retired());
            // What a flood of names made large does not stay so.
            if accounts.capacity() > 4 * accounts.len().max(64) {
                accounts.shrink_to_fit();
            }
            !accounts.is_empty()
        });
        self.len = self.by_consumer.values().map(HashMap::len).sum();
    }

    /// How many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
