//! Tests of the host from outside: a real process with a real directory, over HTTP and WebSocket.
//!
//! Run them with `scripts/host test`, which builds the fixture module and sets `HOST_FIXTURES` to its folder.

mod support;

mod durability;
mod http;
mod process;
mod publish;
mod subscribe;
mod tokens;
