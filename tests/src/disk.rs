//! A small disk that can be filled: a file system in memory. Nothing of it remains when this process ends.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The file that fills the disk.
const BALLAST: &str = "ballast";
const BLOCK: usize = 64 * 1024;
/// The capability to mount, as a bit of the effective capabilities.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// A small disk; see the module.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
    /// Unmounts the disk at the end of its input, which comes when this process ends.
    keeper: Child,
}

impl SmallDisk {
    /// Whether this process may create a disk. Not every root may mount.
    pub fn is_allowed() -> bool {
        let allowed = || {
            let status = std::fs::read_to_string("/proc/self/status").ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            Some(u64::from_str_radix(mask.trim(), 16).ok()? & CAP_SYS_ADMIN != 0)
        };
        allowed().unwrap_or(false)
    }

    /// Creates a disk of `mb` megabytes at `folder`, which is created too.
    pub fn make(folder: &Path, mb: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mb}m,mode=755"), "tmpfs"])
            .arg(folder)
            .output()?;
        if !mounted.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&mounted.stderr).into_owned()));
        }
        let keeper = Command::new("sh")
            .args(["-c", r#"cat >/dev/null; umount -l "$1""#, "keeper"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            folder: folder.to_owned(),
            keeper,
        })
    }

    /// Where the disk is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fills the disk, and returns how many bytes that took.
    pub fn fill(&self) -> io::Result<u64> {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(BALLAST))?;
        let mut block = &[0; BLOCK][..];
        while !block.is_empty() {
            match ballast.write(block) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => block = &block[..block.len() / 2],
                Err(error) => return Err(error),
            }
        }
        Ok(ballast.metadata()?.len())
    }

    /// Frees what [`fill`](Self::fill) took.
    pub fn free(&self) -> io::Result<()> {
        std::fs::remove_file(self.folder.join(BALLAST))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // An error means that the keeper has already ended.
        let _ = self.keeper.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_refuses_writes_until_it_has_room_again() {
        if !SmallDisk::is_allowed() {
            eprintln!("skipped: only root may mount");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let disk = SmallDisk::make(&folder.path().join("disk"), 2).unwrap();
        let file = disk.folder().join("file");
        std::fs::write(&file, [1; 4_096]).unwrap();
        assert!(disk.fill().unwrap() > 1 << 20);
        let full = std::fs::write(&file, [2; 8_192]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.free().unwrap();
        std::fs::write(&file, [3; 8_192]).unwrap();
        drop(disk);
        assert!(!file.exists());
    }
}
