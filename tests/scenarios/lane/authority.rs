//! The authority's functions and the bridge's side of them, on a real Postgres.
