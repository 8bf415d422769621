//! The command line, without a lane.

use std::io::Read as _;
use std::process::{Command, Stdio};

use spacetime_sync_tests::process::built;

/// What `spacetime-sync config check` needs, and nothing that a test's own environment says.
fn config_check() -> Command {
    let mut command = Command::new(built("spacetime-sync"));
    command.args(["config", "check"]).env_clear().stderr(Stdio::piped());
    for (key, value) in [
        ("AUTHORITY__URL", "postgres://h/d"),
        ("SPACETIMEDB__URI", "http://h"),
        ("SPACETIMEDB__DATABASE", "lane"),
        ("SPACETIMEDB__TOKEN", "t"),
    ] {
        command.env(format!("SPACETIME_SYNC__{key}"), value);
    }
    command
}

#[test]
fn a_reader_that_has_enough_ends_the_output_and_nothing_else() {
    let whole = config_check().output().unwrap();
    assert!(whole.status.success() && whole.stdout.len() > 1_000, "{whole:?}");

    // Nobody reads at all: the first line already meets a closed pipe.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = config_check().stdout(writer).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() && said.is_empty(), "{status}: {said}");
}

#[test]
fn an_error_that_nobody_reads_is_an_error_all_the_same() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut failing = config_check();
    failing
        .env("SPACETIME_SYNC__SPACETIMEDB__URI", "nowhere")
        .stderr(writer);
    assert_eq!(failing.status().unwrap().code(), Some(1));
}
