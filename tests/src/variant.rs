//! The module as another release would be: the built one, with some texts replaced by others of the same length.

use anyhow::Context as _;
use spacetime_sync_proto::contract::PROTOCOL;

use crate::lane::module_wasm;

/// How a variant differs from the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// A reducer has another name. No row and no subscription changes, so the server keeps all clients connected.
    Compatible,
    /// A row filter differs. The server disconnects clients and keeps rows.
    Breaking,
    /// A column has another name. No server migrates that automatically.
    Incompatible,
    /// It speaks the next protocol and is otherwise the same.
    NextProtocol,
    /// It has none of the names that bridge and client look for.
    Foreign,
}

impl Variant {
    /// The WebAssembly of the variant.
    pub fn wasm(self) -> anyhow::Result<Vec<u8>> {
        let wasm = module_wasm()?;
        let (from, to) = match self {
            Self::Compatible => ("revoke_stream", "revoke_access"),
            Self::Breaking => ("sync_checkpoint WHERE identity", "sync_checkpoint where identity"),
            Self::Incompatible => ("oldest_seq", "eldest_seq"),
            Self::NextProtocol => (PROTOCOL, "spacetime.sync.v2"),
            Self::Foreign => ("sync_", "blog_"),
        };
        replaced(&wasm, from, to).with_context(|| format!("the module does not hold {from:?}"))
    }
}

fn replaced(wasm: &[u8], from: &str, to: &str) -> Option<Vec<u8>> {
    assert_eq!(from.len(), to.len());
    let mut wasm = wasm.to_vec();
    let mut found = false;
    let mut at = 0;
    while at + from.len() <= wasm.len() {
        if wasm[at..].starts_with(from.as_bytes()) {
            wasm[at..at + to.len()].copy_from_slice(to.as_bytes());
            found = true;
            at += to.len();
        } else {
            at += 1;
        }
    }
    found.then_some(wasm)
}
