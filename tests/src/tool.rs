//! Runs the programs `spacetime-sync` and `follow` to their end and captures their output.

use std::time::Duration;

use tokio::process::Command;

use crate::process::built;

/// Far more than any of them needs, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// The standard output. Panics unless the exit code is 0.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The standard error. Panics unless the exit code is `code` and the output holds all texts of `said`.
    #[track_caller]
    pub fn failed(self, code: i32, said: &[&str]) -> String {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for text in said {
            assert!(self.stderr.contains(text), "expected {text:?} in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }
}

/// Runs a program with arguments and additional environment.
pub async fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(built(program));
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .env("RUST_LOG", "warn")
        .env("NO_COLOR", "1");
    let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output())
        .await
        .unwrap_or_else(|_| panic!("{program} {arguments:?} did not end"))
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}
