//! A power cut: everything that was never synced is gone.
//!
//! The host keeps a ledger of its syncs (`--sync-ledger`). After a SIGKILL, a cut removes everything from the host's
//! folder that the ledger does not vouch for, as the harshest disk would. A file keeps the bytes that it had when its
//! last sync began. A file that was never synced is empty if its folder was synced while it held the file, and is gone
//! otherwise. A file whose new name was never synced is gone too. Folders that still lead to a file stay, because
//! journalling file systems write them with the file.
//!
//! Not simulated: bytes that were overwritten in place and not synced (a log is only appended to), half-written data (a
//! log that is cut anywhere is read up to its last whole entry), and removed files that reappear. Files that are
//! written through a memory map keep what the kernel has, because it may already have written that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The record of what is safe in one folder.
#[derive(Debug, Clone)]
pub struct Ledger {
    file: PathBuf,
}

/// What a cut has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Bytes at the ends of files, including those of removed files.
    pub bytes: u64,
    /// Removed files.
    pub files: u64,
}

/// A line, as the host writes it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    File {
        file: PathBuf,
        inode: u64,
        bytes: u64,
    },
    Folder {
        folder: PathBuf,
        entries: BTreeMap<String, u64>,
    },
}

#[derive(Debug, Default)]
struct Safe {
    /// The safe length of each file, by inode.
    bytes: HashMap<u64, u64>,
    /// The safe names, each with its inode.
    names: HashSet<(PathBuf, u64)>,
}

impl Ledger {
    /// Starts a ledger. Everything in `folder` counts as safe, as if the kernel had long written it.
    pub fn begin(file: &Path, folder: &Path) -> io::Result<Self> {
        let mut lines = Vec::new();
        for path in files(&fs::canonicalize(folder)?)? {
            let metadata = fs::metadata(&path)?;
            let line = Line::File {
                inode: metadata.ino(),
                bytes: metadata.len(),
                file: path,
            };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        File::create(file)?.write_all(&lines)?;
        Ok(Self { file: file.to_owned() })
    }

    /// The file of the ledger.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Number of syncs in the ledger, including the initial state.
    pub fn lines(&self) -> io::Result<usize> {
        Ok(fs::read_to_string(&self.file)?.lines().count())
    }

    /// Removes everything in `folder` that the ledger does not vouch for, and starts a new ledger.
    pub fn cut(&self, folder: &Path) -> anyhow::Result<Lost> {
        let safe = self.read()?;
        let mut lost = Lost::default();
        for path in files(&fs::canonicalize(folder)?)? {
            let metadata = fs::metadata(&path)?;
            let (inode, length) = (metadata.ino(), metadata.len());
            let kept = safe.bytes.get(&inode).copied().unwrap_or(0).min(length);
            lost.bytes += length - kept;
            if !safe.names.contains(&(path.clone(), inode)) {
                lost.bytes += kept;
                lost.files += 1;
                fs::remove_file(&path)?;
            } else if kept < length {
                File::options().write(true).open(&path)?.set_len(kept)?;
            }
        }
        Self::begin(&self.file, folder)?;
        Ok(lost)
    }

    fn read(&self) -> anyhow::Result<Safe> {
        let mut safe = Safe::default();
        let written = fs::read_to_string(&self.file)?;
        // A line that the kill cut short belongs to a sync that nobody was told about.
        for line in written.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            match serde_json::from_str(line).with_context(|| format!("not a line of a ledger: {line}"))? {
                Line::File { file, inode, bytes } => {
                    safe.bytes.insert(inode, bytes);
                    safe.names.insert((file, inode));
                }
                Line::Folder { folder, entries } => {
                    let named = entries.into_iter().map(|(name, inode)| (folder.join(name), inode));
                    safe.names.extend(named);
                }
            }
        }
        Ok(safe)
    }
}

/// All files below a folder.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a file `old`, a ledger that began with it, and the lines that the host would write.
    struct Disk {
        folder: tempfile::TempDir,
        ledger: Ledger,
    }

    impl Disk {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("data")).unwrap();
            fs::write(folder.path().join("data/old"), "old").unwrap();
            let ledger = Ledger::begin(&folder.path().join("ledger"), &folder.path().join("data")).unwrap();
            Self { folder, ledger }
        }

        fn path(&self, name: &str) -> PathBuf {
            fs::canonicalize(self.folder.path()).unwrap().join("data").join(name)
        }

        fn append(&self, name: &str, text: &str) {
            let mut file = File::options().create(true).append(true).open(self.path(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn sync(&self, name: &str) {
            let (file, metadata) = (self.path(name), fs::metadata(self.path(name)).unwrap());
            self.note(&Line::File {
                file,
                inode: metadata.ino(),
                bytes: metadata.len(),
            });
        }

        fn sync_folder(&self) {
            let folder = self.path("").components().collect();
            let inode = |path: &PathBuf| fs::metadata(path).unwrap().ino();
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            let entries = files(&self.path("")).unwrap();
            let entries = entries.iter().map(|path| (name(path), inode(path))).collect();
            self.note(&Line::Folder { folder, entries });
        }

        fn note(&self, line: &Line) {
            let mut file = File::options().append(true).open(self.ledger.file()).unwrap();
            writeln!(file, "{}", serde_json::to_string(line).unwrap()).unwrap();
        }

        fn cut(&self) -> Lost {
            self.ledger.cut(&self.path("")).unwrap()
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.path(name)).ok()
        }
    }

    #[test]
    fn writes_after_the_last_sync_are_lost() {
        let disk = Disk::new();
        disk.append("old", " and synced");
        disk.sync("old");
        disk.append("old", " and not");
        assert_eq!(disk.cut(), Lost { bytes: 8, files: 0 });
        assert_eq!(disk.read("old").unwrap(), "old and synced");
        // What a cut has left counts as safe.
        assert_eq!(disk.cut(), Lost::default());
    }

    #[test]
    fn a_file_that_was_never_synced_is_gone_or_empty() {
        let disk = Disk::new();
        disk.append("named", "by its folder");
        disk.sync_folder();
        disk.append("unnamed", "by anyone");
        assert_eq!(disk.cut(), Lost { bytes: 22, files: 1 });
        assert_eq!((disk.read("named"), disk.read("unnamed")), (Some(String::new()), None));
        assert_eq!(disk.read("old").unwrap(), "old");
    }

    #[test]
    fn a_new_name_is_safe_with_its_folder() {
        let disk = Disk::new();
        for name in ["kept", "lost"] {
            disk.append("aside", "whole");
            disk.sync("aside");
            fs::rename(disk.path("aside"), disk.path(name)).unwrap();
            if name == "kept" {
                disk.sync_folder();
            }
        }
        assert_eq!(disk.cut(), Lost { bytes: 5, files: 1 });
        assert_eq!((disk.read("kept"), disk.read("lost")), (Some("whole".to_owned()), None));
    }

    #[test]
    fn a_shortened_file_keeps_its_shorter_length() {
        let disk = Disk::new();
        disk.append("old", " and longer");
        disk.sync("old");
        File::options()
            .write(true)
            .open(disk.path("old"))
            .unwrap()
            .set_len(3)
            .unwrap();
        assert_eq!(disk.cut(), Lost::default());
        assert_eq!(disk.read("old").unwrap(), "old");
    }
}
