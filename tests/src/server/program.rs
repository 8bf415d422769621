//! The program of a SpacetimeDB server for tests: the embedded host, or an official server that is installed on this
//! machine.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A program that serves SpacetimeDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Program {
    /// The host of `tests/host`.
    Embedded(PathBuf),
    /// The `spacetime` of an official installation.
    Official(PathBuf),
}

impl Program {
    /// The program that `scripts/setup` chose.
    pub(super) fn chosen() -> anyhow::Result<Self> {
        Self::of(std::env::var_os("SYNC_SPACETIME"), std::env::var_os("SYNC_HOST_BIN"))
    }

    fn of(official: Option<OsString>, embedded: Option<OsString>) -> anyhow::Result<Self> {
        let official = official.map(|path| Self::Official(path.into()));
        let embedded = embedded.map(|path| Self::Embedded(path.into()));
        official
            .or(embedded)
            .context("neither SYNC_HOST_BIN nor SYNC_SPACETIME is set: start through ./scripts")
    }

    /// The executable.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Embedded(path) | Self::Official(path) => path,
        }
    }

    /// Its arguments for a server on `addr` that keeps everything it writes in `data` or beside it.
    pub(super) fn arguments(&self, data: &Path, addr: SocketAddr) -> Vec<OsString> {
        let addr = addr.to_string();
        match self {
            Self::Embedded(_) => vec!["--data-dir".into(), data.into(), "--listen".into(), addr.into()],
            // The keys lie beside the data. Without this option the server would use or create keys in the user's own
            // account.
            Self::Official(_) => vec![
                "start".into(),
                "--data-dir".into(),
                data.into(),
                "--jwt-key-dir".into(),
                data.with_extension("keys").into(),
                "--listen-addr".into(),
                addr.into(),
                "--non-interactive".into(),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn arguments(program: &Program) -> String {
        let arguments = program.arguments(Path::new("/run/lane/host"), ([127, 0, 0, 1], 3123).into());
        arguments.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn an_installed_official_server_is_used() {
        let (official, embedded) = (Some("/usr/bin/spacetime".into()), Some("/cache/host".into()));
        assert_eq!(
            Program::of(official.clone(), embedded.clone()).unwrap(),
            Program::Official("/usr/bin/spacetime".into())
        );
        assert_eq!(
            Program::of(None, embedded).unwrap(),
            Program::Embedded("/cache/host".into())
        );
        assert!(Program::of(None, None).unwrap_err().to_string().contains("./scripts"));
    }

    #[test]
    fn each_server_gets_a_folder_and_a_loopback_address_of_its_own() {
        assert_eq!(
            arguments(&Program::Embedded("host".into())),
            "--data-dir /run/lane/host --listen 127.0.0.1:3123"
        );
        assert_eq!(
            arguments(&Program::Official("spacetime".into())),
            "start --data-dir /run/lane/host --jwt-key-dir /run/lane/host.keys --listen-addr 127.0.0.1:3123 --non-interactive"
        );
    }
}
