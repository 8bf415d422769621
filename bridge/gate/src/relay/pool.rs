//! What all connections hold together.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that all connections hold together.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Above this, a connection takes nothing more of SpacetimeDB before its client has taken what is there.
    pub(crate) most: usize,
    held: AtomicUsize,
}

impl Pool {
    /// A pool of so many bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            held: AtomicUsize::new(0),
        }
    }

    /// What is held.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// A connection's part of the pool, which it gives back when it is dropped.
pub(crate) struct Share<'a> {
    pool: &'a Pool,
    held: usize,
}

impl<'a> Share<'a> {
    /// The part of a connection that holds nothing yet.
    pub(crate) fn of(pool: &'a Pool) -> Self {
        Self { pool, held: 0 }
    }

    /// The pool.
    pub(crate) fn pool(&self) -> &'a Pool {
        self.pool
    }

    /// The connection holds so much.
    pub(crate) fn set(&mut self, held: usize) {
        self.pool.held.fetch_add(held, Ordering::Relaxed);
        self.pool.held.fetch_sub(self.held, Ordering::Relaxed);
        self.held = held;
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}
