//! An installed official SpacetimeDB is found, and started with the arguments of its own command line. The tests have
//! no official server, so a script stands in for `spacetime`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use spacetime_sync_stdb::admin::Admin;
use spacetime_sync_tests::server::Server;

/// A `spacetime` in a folder of its own.
fn stand_in(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("spacetime");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs `scripts/official` with `folder` first in PATH.
fn official(folder: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/official");
    let path = format!("{}:/usr/bin:/bin", folder.display());
    Command::new(script)
        .env("PATH", path)
        .env_remove("SPACETIME_CLI")
        .output()
        .unwrap()
}

#[test]
fn an_official_server_is_found_if_its_version_is_supported() {
    let folder = tempfile::tempdir().unwrap();
    for (version, taken) in [
        ("2.8.3", true),
        ("2.14.0", true),
        ("2.7.9", false),
        ("1.12.0", false),
        ("3.0.0", false),
    ] {
        let says = format!(
            "echo 'Path: /opt/spacetime\nCommit: 0\nspacetimedb tool version {version}; spacetimedb-lib version {version};'"
        );
        let path = stand_in(folder.path(), &says);
        let found = official(folder.path());
        let stdout = String::from_utf8(found.stdout).unwrap();
        let stderr = String::from_utf8(found.stderr).unwrap();
        assert_eq!(found.status.success(), taken, "{version}: {stderr}");
        if taken {
            assert_eq!(stdout.trim(), path.to_str().unwrap(), "{version}");
        } else {
            assert!(
                stdout.is_empty() && stderr.contains("2.8"),
                "{version}: {stdout}{stderr}"
            );
        }
    }
    stand_in(folder.path(), "echo 'something else of that name'");
    assert!(!official(folder.path()).status.success());
}

#[test]
fn the_script_is_silent_if_no_official_server_is_installed() {
    let empty = tempfile::tempdir().unwrap();
    let found = official(empty.path());
    assert!(!found.status.success());
    assert!(found.stdout.is_empty() && found.stderr.is_empty(), "{found:?}");
}

#[tokio::test]
async fn an_official_server_is_started_by_its_own_command_line() {
    let Ok(host) = std::env::var("SYNC_HOST_BIN") else {
        eprintln!("skipped: the stand-in for `spacetime` serves by the embedded host");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // Refuses every argument that the official one would refuse.
    let script = format!(
        r#"[ "$1" = start ] || exit 2
shift
while [ $# -gt 0 ]; do
  case $1 in
    --data-dir) data=$2; shift 2 ;;
    --jwt-key-dir) keys=$2; shift 2 ;;
    --listen-addr) listen=$2; shift 2 ;;
    --non-interactive) shift ;;
    *) exit 2 ;;
  esac
done
[ "$keys" != "$data" ] || exit 2
exec '{host}' --data-dir "$data" --listen "$listen""#
    );
    let server = Server::start_official(&stand_in(folder.path(), &script), &data)
        .await
        .unwrap();
    assert!(server.uri().starts_with("http://127.0.0.1:"), "{}", server.uri());
    Admin::new_identity(server.uri()).await.unwrap();
}
