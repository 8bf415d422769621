//! Contracts that outlive a release, and read models that people can use.

mod db_schema;
mod projections;
