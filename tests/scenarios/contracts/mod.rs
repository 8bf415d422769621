//! Releases side by side: modules are published over one another while everything runs, and parties that have no version in
//! common say so.

mod incompatible;
mod republish;
