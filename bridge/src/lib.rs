//! In the making.

pub mod authority;
