//! Stands in for JavaScript's `Temporal`, which only V8 calls.
