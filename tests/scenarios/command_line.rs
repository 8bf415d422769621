//! The command line, without a lane.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use spacetime_sync_issuer::keys::{add_key, now};
use spacetime_sync_tests::process::built;

const IDENTITY: &str = "c200000000000000000000000000000000000000000000000000000000000000";

fn config_check() -> Command {
    tool(&["config", "check"])
}

/// The tool with a complete configuration, and without the variables of the test's own environment.
fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(built("spacetime-sync"));
    command.args(arguments).env_clear().stderr(Stdio::piped());
    for (key, value) in [
        ("AUTHORITY__URL", "postgres://localhost/d"),
        ("SPACETIMEDB__URI", "http://localhost"),
        ("SPACETIMEDB__DATABASE", "lane"),
        ("SPACETIMEDB__DATABASE_IDENTITY", IDENTITY),
        ("SPACETIMEDB__OWNER_IDENTITY", IDENTITY),
        ("SPACETIMEDB__TOKEN", "t"),
        ("SEALS__KEYS_DIR", "seals"),
    ] {
        command.env(format!("SPACETIME_SYNC__{key}"), value);
    }
    command
}

#[test]
fn a_closed_pipe_ends_the_output_without_an_error() {
    let whole = config_check().output().unwrap();
    assert!(whole.status.success() && whole.stdout.len() > 500, "{whole:?}");

    // The reader is already gone, so even the first line meets a closed pipe.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = config_check().stdout(writer).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() && said.is_empty(), "{status}: {said}");
}

#[test]
fn a_log_that_goes_to_a_file_holds_no_colours() {
    let keys = tempfile::tempdir().unwrap();
    add_key(keys.path(), None, now()).unwrap();
    let mut child = tool(&["run"])
        .env("SPACETIME_SYNC__SEALS__KEYS_DIR", keys.path())
        .env("SPACETIME_SYNC__AUTHORITY__URL", "postgres://127.0.0.1:1/d")
        .env("SPACETIME_SYNC__HTTP__LISTEN", "127.0.0.1:0")
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<String> = log.take(3).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        said[0].contains("signing key") && said[1].contains("listening") && said[2].contains("does not answer"),
        "{said:?}"
    );
    assert!(said.iter().all(|line| !line.contains('\u{1b}')), "{said:?}");
}

#[test]
fn a_variable_that_resembles_a_key_causes_a_warning() {
    let output = config_check()
        .env("SPACETIME_SYNC_HTTP_LISTEN", "127.0.0.1:1")
        .env("SPACETIME_SYNC__HTTP__BEHIND_PROXY", "true")
        .output()
        .unwrap();
    let (said, warned) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{warned}");
    assert!(
        warned.contains("SPACETIME_SYNC_HTTP_LISTEN sets nothing") && warned.contains("SPACETIME_SYNC__HTTP__LISTEN"),
        "{warned}"
    );
    assert!(
        said.contains("listen = \"127.0.0.1:7070\"\nbehind_proxy = \"x-forwarded-for\"\n"),
        "{said}"
    );
    let whole = config_check().output().unwrap();
    assert!(
        whole.status.success() && whole.stderr.is_empty(),
        "{}",
        text(&whole.stderr)
    );
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_error_sets_the_exit_code_even_if_nobody_reads_the_message() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut failing = config_check();
    failing
        .env("SPACETIME_SYNC__SPACETIMEDB__URI", "nowhere")
        .stderr(writer);
    assert_eq!(failing.status().unwrap().code(), Some(1));
}
