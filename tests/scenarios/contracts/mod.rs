//! Contracts that outlive a release, and read models that people can use: releases side by side, what all parties agree on, and
//! documents.

mod db_schema;
mod incompatible;
mod parity;
mod projections;
mod republish;
mod vectors;
