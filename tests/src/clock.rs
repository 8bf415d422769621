//! A wall clock that jumps, for one process at a time: a library that is loaded before libc. `cc` compiles it from
//! `clock/shim.c`.
//!
//! Clocks that measure durations stay untouched, as on a machine whose wall clock is set.

use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Environment;

const SHIM: &str = include_str!("clock/shim.c");

/// A clock for one or several processes.
#[derive(Debug)]
pub struct Clock {
    shim: PathBuf,
    path: PathBuf,
    file: std::fs::File,
}

impl Clock {
    /// Makes a clock that shows the right time. Its files go into `folder`.
    pub fn make(folder: &Path, name: &str) -> io::Result<Self> {
        let (source, shim) = (folder.join("clock.c"), folder.join("clock.so"));
        if !shim.exists() {
            std::fs::write(&source, SHIM)?;
            let made = Command::new("cc")
                .args(["-shared", "-fPIC", "-O2", "-o"])
                .args([&shim, &source])
                .output()?;
            if !made.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
            }
        }
        let path = folder.join(format!("{name}.clock"));
        let mut file = std::fs::File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        file.write_all(&0i64.to_ne_bytes())?;
        // Postgres runs as another user, which must be able to read the files.
        for path in [&shim, &path] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { shim, path, file })
    }

    /// The environment variables that make a process use this clock.
    pub fn environment(&self) -> Environment {
        vec![
            ("LD_PRELOAD".to_owned(), self.shim.display().to_string()),
            ("SYNC_CLOCK".to_owned(), self.path.display().to_string()),
        ]
    }

    /// Sets the clock so many seconds away from the right time.
    pub fn set(&self, seconds: i64) -> io::Result<()> {
        self.file.write_all_at(&(seconds * 1_000_000_000).to_ne_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_its_own_clock_only() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::make(folder.path(), "of-the-test").unwrap();
        let year = |clock: &Clock| {
            let date = Command::new("date")
                .arg("+%Y")
                .envs(clock.environment())
                .output()
                .unwrap();
            String::from_utf8(date.stdout).unwrap().trim().parse::<i32>().unwrap()
        };
        let right = year(&clock);
        let other = Clock::make(folder.path(), "another").unwrap();
        clock.set(-10 * 366 * 86_400).unwrap();
        assert_eq!((year(&clock) - right + 10, year(&other) - right), (0, 0));
    }
}
