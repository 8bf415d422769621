//! The code that an input reached, in a build that counts it. LLVM adds a counter to every edge of the crates that
//! `scripts/fuzz` names, and passes the counters to the functions below before `main` runs. In any other build there
//! are no counters, and inputs are made without knowing which earlier ones were useful.

// The two functions are LLVM's interface, and instrumented code writes to the counters' memory.
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

/// The counters of this process. Only the holder of this value may run targets.
pub struct Coverage {
    start: *mut u8,
    /// For each edge, how often one input passed it, as bits for powers of two.
    seen: Vec<u8>,
}

impl Coverage {
    /// The counters, if this build has any. Call it once, because a second holder would clear what the first counts.
    pub fn take() -> Option<Self> {
        let start = START.swap(std::ptr::null_mut(), Ordering::Relaxed);
        let stop = STOP.load(Ordering::Relaxed);
        let length = (stop as usize).saturating_sub(start as usize);
        (!start.is_null()).then(|| Self {
            start,
            seen: vec![0; length],
        })
    }

    /// Clears the counters.
    pub fn clear(&mut self) {
        // SAFETY: LLVM passed the bounds of one section of this program, which lives as long as the program. Only
        // instrumented code in targets writes to it, and no target runs meanwhile, because targets run on this thread.
        unsafe { std::ptr::write_bytes(self.start, 0, self.seen.len()) }
    }

    /// Whether the last input reached an edge for the first time, or more often than ever before.
    pub fn is_new(&mut self) -> bool {
        // SAFETY: as in `clear`; the slice ends with this function, before a target runs again.
        let counters = unsafe { std::slice::from_raw_parts(self.start, self.seen.len()) };
        let mut new = false;
        for (counted, seen) in counters.chunks(64).zip(self.seen.chunks_mut(64)) {
            // True for nearly all blocks, because an input reaches little of the code.
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

    /// Number of edges reached so far.
    pub fn edges(&self) -> usize {
        self.seen.iter().filter(|seen| **seen != 0).count()
    }

    /// Forgets all edges, for the next target.
    pub fn forget(&mut self) {
        self.seen.fill(0);
    }
}

/// The bit for a rough count: 1, 2, 3, 4 to 7, 8 to 15, 16 to 31, 32 to 127, more.
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
