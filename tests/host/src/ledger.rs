//! What a power cut would spare: a ledger of everything that was synced, for tests that take the rest away.
//!
//! Whatever the process makes durable, the engine's commit log above all, goes through the C library's `fsync` and
//! `fdatasync`, which the standard library calls by name. A function of that name in the program itself comes before
//! the library's: the two at the end of this file see every sync, do the real one, and write down what it made safe,
//! before the caller hears of it. Without a ledger they pass the call on, and do nothing else.
//!
//! A line is a JSON object: of a file its path, its inode and how many bytes it had when the sync began; of a folder
//! its path and its entries with their inodes. Never seen, and never vouched for: what is written through a memory
//! map (the engine's offset indexes), and what the kernel writes back by itself.

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
    /// Held from the look at a file to the line about it: lines about the same file are in the order of their syncs.
    file: Mutex<File>,
    delay: Duration,
}

/// From here on every sync is written down in `file`, after what it holds already, and takes `delay` longer.
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
    // What is told to be durable is so much later than what is committed.
    std::thread::sleep(ledger.delay);
    let mut file = ledger.file.lock().expect("a panic ends the process");
    let seen = look(fd);
    let outcome = real(fd);
    if outcome == 0 {
        let written = seen.and_then(|line| file.write_all(line.as_bytes()));
        // A sync that is not vouched for would make a test see a loss that there was not.
        written.expect("the ledger of syncs can be written");
    }
    outcome
}

/// What a sync that begins now makes safe.
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

/// One of the C library's two.
type Sync = fn(c_int) -> c_int;

/// The names that the linker and the loader go by.
#[allow(unsafe_code)]
mod by_name {
    use super::*;

    // SAFETY: as POSIX declares it, and the C library has it.
    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    }

    /// Says to `dlsym`: in the libraries behind this program. -1 in every C library there is.
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
        // SAFETY: any descriptor will do, a wrong one is answered with an error.
        unsafe { next(&FOUND, c"fsync")(fd) }
    }

    fn real_fdatasync(fd: c_int) -> c_int {
        static FOUND: OnceLock<InC> = OnceLock::new();
        // SAFETY: as above.
        unsafe { next(&FOUND, c"fdatasync")(fd) }
    }

    // SAFETY: these keep the contracts of the functions that they stand before.
    #[unsafe(no_mangle)]
    extern "C" fn fsync(fd: c_int) -> c_int {
        synced(fd, real_fsync)
    }

    #[unsafe(no_mangle)]
    extern "C" fn fdatasync(fd: c_int) -> c_int {
        synced(fd, real_fdatasync)
    }
}
