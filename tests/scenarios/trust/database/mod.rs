//! The right database: strangers may create databases on the same server, and are served by none of ours.

mod clients;
mod closed;
mod pin;
mod stranger;
