//! Which code an input reached, in a build that counts it: LLVM adds a counter to every edge of the crates that
//! `scripts/fuzz` names, and gives the counters to the functions below before `main`. In any other build there are none,
//! and inputs are made without being told which of them were worth it.

// The two functions are LLVM's interface, and the counters are memory that instrumented code writes to.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicPtr, Ordering};

static START: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static STOP: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    START.store(start, Ordering::Relaxed);
    STOP.store(stop, Ordering::Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_pcs_init(_start: *const usize, _stop: *const usize) {}

/// The counters of this process. Who holds it is the only one who fuzzes.
pub struct Coverage {
    start: *mut u8,
    /// For each edge, how often it was passed at once, as bits of powers of two.
    seen: Vec<u8>,
}

impl Coverage {
    /// The counters, if this build has any. Asked for once: a second one would clear what the first is counting.
    pub fn take() -> Option<Self> {
        let start = START.swap(std::ptr::null_mut(), Ordering::Relaxed);
        let stop = STOP.load(Ordering::Relaxed);
        let length = (stop as usize).saturating_sub(start as usize);
        (!start.is_null()).then(|| Self {
            start,
            seen: vec![0; length],
        })
    }

    /// Forgets what was counted since the last time.
    pub fn clear(&mut self) {
        // SAFETY: LLVM gave the bounds of one section of this program, which lives as long as it does and is written to
        // by instrumented code alone: by targets, none of which runs meanwhile, for they run on this very thread.
        unsafe { std::ptr::write_bytes(self.start, 0, self.seen.len()) }
    }

    /// Whether something was reached that never was before, or more often than before.
    pub fn is_new(&mut self) -> bool {
        // SAFETY: as for `clear`; the slice ends with this function, before a target runs again.
        let counters = unsafe { std::slice::from_raw_parts(self.start, self.seen.len()) };
        let mut new = false;
        for (counted, seen) in counters.chunks(64).zip(self.seen.chunks_mut(64)) {
            // Nearly all of them: an input reaches little of what there is.
            if counted == &[0; 64][..counted.len()] {
                continue;
            }
            for (count, seen) in counted.iter().zip(seen) {
                let class = class(*count);
                if class & !*seen != 0 {
                    *seen |= class;
                    new = true;
                }
            }
        }
        new
    }

    /// How many edges were reached so far.
    pub fn edges(&self) -> usize {
        self.seen.iter().filter(|seen| **seen != 0).count()
    }

    /// Begins anew, for another target.
    pub fn forget(&mut self) {
        self.seen.fill(0);
    }
}

/// How often, roughly: 1, 2, 3, 4 to 7, 8 to 15, 16 to 31, 32 to 127, more.
fn class(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}
