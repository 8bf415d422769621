//! The process: how it starts, when it refuses to start, and how it ends.

use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Host, Socket, host_command};

#[tokio::test]
async fn a_second_host_on_the_same_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let _first = Host::start(dir.path()).await;
    let second = host_command()
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen", "127.0.0.1:0"])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another host (process "), "{said}");
    assert!(said.contains("is using the data directory"), "{said}");
    assert!(second.stdout.is_empty());
}

#[tokio::test]
async fn a_remotely_reachable_address_needs_permission() {
    let dir = TempDir::new().unwrap();
    let refused = host_command()
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen", "0.0.0.0:0"])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("--allow-remote"), "{said}");

    let mut command = host_command();
    command
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen", "0.0.0.0:0", "--allow-remote"])
        .stdout(Stdio::piped());
    let mut allowed = command.spawn().unwrap();
    let mut line = String::new();
    let stdout = allowed.stdout.take().unwrap();
    tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(stdout), &mut line)
        .await
        .unwrap();
    assert!(line.starts_with("listening on http://0.0.0.0:"), "{line}");
    allowed.kill().await.unwrap();
}

#[tokio::test]
async fn the_help_warns_against_production() {
    let help = host_command().arg("--help").output().await.unwrap();
    let said = String::from_utf8_lossy(&help.stdout);
    assert!(help.status.success());
    assert!(said.contains("for development and tests only"), "{said}");
}

#[tokio::test]
async fn a_terminated_host_exits_cleanly_and_restarts_with_all_data() {
    let (dir, host, owner) = Host::with_demo().await;
    host.call("demo", "add_note", json!([1, "kept"]), &owner).await.ok();
    // While it is busy and has clients.
    host.call("demo", "start_clock", json!([]), &owner).await.ok();
    let mut socket = Socket::open(&host, "demo", &owner).await;
    assert_eq!(socket.subscribe("SELECT * FROM clock").await, Ok(1));
    let (status, mut stdout) = host.terminate().await;
    socket.end().await;
    assert!(status.success(), "{status}");
    assert_eq!(stdout.next_line().await.unwrap(), None, "stdout carries one line only");

    let host = Host::start(dir.path()).await;
    assert_eq!(
        host.rows("demo", "SELECT * FROM note", &owner).await,
        json!([[1, "kept"]])
    );
    // It has the same keys as before, so the owner is still the owner.
    host.publish("demo", "", "plain", &owner).await.ok();
}

#[tokio::test]
async fn a_damaged_list_of_databases_is_reported_and_left_untouched() {
    let dir = TempDir::new().unwrap();
    let list = dir.path().join("databases.json");
    std::fs::write(&list, "{ not JSON").unwrap();
    let refused = host_command()
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen", "127.0.0.1:0"])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("databases.json is not a list of databases: "), "{said}");
    assert_eq!(std::fs::read_to_string(&list).unwrap(), "{ not JSON");
}
