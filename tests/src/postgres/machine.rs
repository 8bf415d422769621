//! What this machine has: the binaries of Postgres, a user to run them as, and processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;

use super::{ClusterError, OLDEST, io_error};

#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Ids and parents of all processes, from /proc or, on systems without it, from ps.
fn processes() -> Vec<(Pid, i32)> {
    let parse = |pid: &str, parent: &str| Some((Pid::from_raw(pid.parse().ok()?)?, parent.parse().ok()?));
    let Ok(entries) = fs::read_dir("/proc") else {
        let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
        let listed = listed.map(|output| output.stdout).unwrap_or_default();
        return String::from_utf8_lossy(&listed)
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                parse(fields.next()?, fields.next()?)
            })
            .collect();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The line reads: pid (name) state parent …, and the name may hold anything. A zombie no longer counts as a
            // process.
            let mut after_name = stat.rsplit_once(')')?.1.split_whitespace();
            let state = after_name.next()?;
            let parent = after_name.next()?;
            if state == "Z" {
                return None;
            }
            parse(entry.file_name().to_str()?, parent)
        })
        .collect()
}

pub(super) fn children_of(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().get();
    let all = processes().into_iter();
    all.filter(|(_, of)| *of == parent).map(|(pid, _)| pid).collect()
}

pub(super) fn runs(pid: Pid) -> bool {
    processes().iter().any(|(running, _)| *running == pid)
}

/// The folder of the newest usable binaries.
pub(super) fn binaries() -> Result<PathBuf, ClusterError> {
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders
        .into_iter()
        .filter(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .filter_map(|folder| Some((major_version(&folder.join("postgres"))?, folder)))
        .filter(|(version, _)| *version >= OLDEST)
        .max_by_key(|(version, _)| *version)
        .map(|(_, folder)| folder)
        .ok_or(ClusterError::NoBinaries)
}

/// The major version: 15 for `postgres (PostgreSQL) 15.18 (…)`.
fn major_version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = |c: char| !c.is_ascii_digit();
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(digits).next()?.parse().ok()
}

pub(super) fn other_user() -> Result<User, ClusterError> {
    let users = fs::read_to_string("/etc/passwd").map_err(io_error("cannot read /etc/passwd"))?;
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            Some(User {
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
    };
    find("postgres").or_else(|| find("nobody")).ok_or(ClusterError::NoUser)
}
