//! The host, tested from outside: a real process on a real directory, over HTTP and WebSocket.
//!
//! Run with `scripts/host test`, which builds the fixture module and says where it lies (`HOST_FIXTURES`).

mod support;

mod durability;
mod http;
mod process;
mod publish;
mod subscribe;
mod tokens;
