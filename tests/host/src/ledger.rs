//! A ledger of everything that was synced and would survive a power cut. Tests remove the rest.
//!
//! Whatever the process makes durable, the engine's commit log above all, goes through the C library's `fsync` and
//! `fdatasync`, which the standard library calls by name. The linker prefers a function of that name in the program
//! itself. The two at the end of this file therefore see every sync. They do the real sync and write down what it made
//! safe before they return. Without a ledger they only pass the call on.
//!
//! Each line is a JSON object. For a file it holds the path, the inode and the size when the sync began; for a folder
//! the path and the entries with their inodes. The ledger does not see what is written through a memory map (the
//! engine's offset indexes), nor what the kernel writes back by itself, and does not vouch for either.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

static LEDGER: OnceLock<Ledger> = OnceLock::new();

struct Ledger {
    /// Held while a file is inspected and its line is written, so that the lines of a file are in the order of its
    /// syncs.
    file: Mutex<File>,
    delay: Duration,
}

/// Starts to append a line to `file` for every sync, and to delay every sync by `delay`.
pub(crate) fn keep(file: &Path, delay: Duration) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(file)?;
    let ledger = Ledger {
        file: Mutex::new(file),
        delay,
    };
    LEDGER
        .set(ledger)
        .map_err(|_| io::Error::other("there is a ledger already"))
}

fn synced(fd: c_int, real: Sync) -> c_int {
    let Some(ledger) = LEDGER.get() else {
        return real(fd);
    };
    // Durability now lags behind the commits by this much.
    std::thread::sleep(ledger.delay);
    let mut file = ledger.file.lock().expect("a panic ends the process");
    let seen = look(fd);
    let outcome = real(fd);
    if outcome == 0 {
        let written = seen.and_then(|line| file.write_all(line.as_bytes()));
        // Without this line a test would see a loss that did not happen.
        written.expect("the ledger of syncs can be written");
    }
    outcome
}

/// The line for what a sync that begins now makes safe.
fn look(fd: c_int) -> io::Result<String> {
    let link = format!("/proc/self/fd/{fd}");
    let (path, metadata) = (fs::read_link(&link)?, fs::metadata(&link)?);
    let text = |name: &std::ffi::OsStr| String::from_utf8_lossy(name.as_bytes()).into_owned();
    let path = text(path.as_os_str());
    let line = if metadata.is_dir() {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(&link)? {
            let entry = entry?;
            entries.insert(text(&entry.file_name()), entry.ino());
        }
        serde_json::json!({"folder": path, "entries": entries})
    } else {
        serde_json::json!({"file": path, "inode": metadata.ino(), "bytes": metadata.len()})
    };
    Ok(format!("{line}\n"))
}

/// `fsync` or `fdatasync` of the C library.
type Sync = fn(c_int) -> c_int;

/// The functions under the names that linker and loader look for.
#[allow(unsafe_code)]
mod by_name {
    use super::*;

    // SAFETY: the declaration is that of POSIX, and the C library has the function.
    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    }

    /// Makes `dlsym` search the libraries after this program. All C libraries define it as -1.
    const NEXT: *mut c_void = -1_isize as *mut c_void;

    type InC = unsafe extern "C" fn(c_int) -> c_int;

    fn next(found: &OnceLock<InC>, name: &CStr) -> InC {
        *found.get_or_init(|| {
            // SAFETY: the name ends with a zero byte.
            let address = unsafe { dlsym(NEXT, name.as_ptr()) };
            assert!(!address.is_null(), "the C library has no {name:?}");
            // SAFETY: both names stand for functions that take a file descriptor and return an int.
            unsafe { std::mem::transmute::<*mut c_void, InC>(address) }
        })
    }

    fn real_fsync(fd: c_int) -> c_int {
        static FOUND: OnceLock<InC> = OnceLock::new();
        // SAFETY: the function accepts any descriptor, and returns an error for a wrong one.
        unsafe { next(&FOUND, c"fsync")(fd) }
    }

    fn real_fdatasync(fd: c_int) -> c_int {
        static FOUND: OnceLock<InC> = OnceLock::new();
        // SAFETY: as above.
        unsafe { next(&FOUND, c"fdatasync")(fd) }
    }

    // SAFETY: these functions keep the contracts of those that they replace.
    #[unsafe(no_mangle)]
    extern "C" fn fsync(fd: c_int) -> c_int {
        synced(fd, real_fsync)
    }

    #[unsafe(no_mangle)]
    extern "C" fn fdatasync(fd: c_int) -> c_int {
        synced(fd, real_fdatasync)
    }
}
