//! A run leaves nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use spacetime_sync_tests::lane::wait;
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::{Process, built};
use sqlx::Connection as _;

const SOON: Duration = Duration::from_secs(60);

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn a_demo_that_is_interrupted_leaves_no_folder_and_no_process() {
    let folder = tempfile::tempdir().unwrap();
    // Another user runs Postgres and needs access to the folder.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(built("demo"));
    // More events than the demo can deliver before the interrupt.
    command.env("TMPDIR", &temporary).args(["--events", "100000000"]);
    let demo = Process::start("demo", &mut command, &folder.path().join("log")).unwrap();
    wait(SOON, "a lane that is started", || {
        demo.log().contains("clients are live")
    })
    .await;
    assert!(names(&temporary).iter().any(|name| name.starts_with("sync-lane-")));
    demo.signal(Signal::TERM);
    let ended = demo.ended(SOON).await.unwrap();
    assert_eq!(ended.code(), Some(130), "{}", demo.log());
    // The process that keeps its Postgres ends a moment later.
    wait(SOON, "an empty folder", || names(&temporary).is_empty()).await;
    let mentioned = |entry: std::io::Result<std::fs::DirEntry>| {
        let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        command.contains(temporary.to_str()?).then_some(command)
    };
    let left: Vec<String> = std::fs::read_dir("/proc").unwrap().filter_map(mentioned).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_run_leaves_no_database_on_a_server_that_is_not_its_own() {
    // The test needs a server of its own, because other scenarios create databases on the shared one.
    let theirs = Cluster::start().await.unwrap();
    let ours = Cluster::at(theirs.url());
    for database in [
        ours.create_database().await.unwrap(),
        ours.create_database().await.unwrap(),
    ] {
        drop(database);
    }
    drop(ours);
    let mut connection = sqlx::PgConnection::connect(theirs.url()).await.unwrap();
    let left: Vec<String> = sqlx::query_scalar("select datname from pg_database where datname like 'sync_test_%'")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    if theirs.can_be_killed() {
        assert!(left.is_empty(), "{left:?}");
    }
}
