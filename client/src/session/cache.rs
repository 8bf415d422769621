//! How many bytes of rows the SDK holds: for subscriptions that deliver, and for those that are ending.

use super::counted::less;

/// Bytes of rows in the SDK's cache.
#[derive(Debug, Default)]
pub(super) struct Cache {
    subscribed: usize,
    leaving: usize,
}

impl Cache {
    /// Rows of subscriptions that deliver.
    pub(super) fn subscribed(&self) -> usize {
        self.subscribed
    }

    /// All rows.
    pub(super) fn all(&self) -> usize {
        self.subscribed + self.leaving
    }

    /// A row has arrived.
    pub(super) fn take(&mut self, bytes: usize, leaving: bool) {
        if leaving {
            self.leaving += bytes;
        } else {
            self.subscribed += bytes;
        }
    }

    /// The session gave up a subscription that holds `bytes`.
    pub(super) fn leave(&mut self, bytes: usize) {
        less(&mut self.subscribed, bytes);
        self.leaving += bytes;
    }

    /// A subscription that holds `bytes` has ended.
    pub(super) fn drop_rows(&mut self, bytes: usize, leaving: bool) {
        less(
            if leaving {
                &mut self.leaving
            } else {
                &mut self.subscribed
            },
            bytes,
        );
    }

    /// All connections have ended.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
