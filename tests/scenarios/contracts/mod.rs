//! Contracts that outlive a release, and read models that people can use: releases side by side, what all parties agree on, and
//! documents.

mod client;
mod db_schema;
mod documents;
mod incompatible;
mod parity;
mod previous;
mod projections;
mod republish;
mod vectors;
