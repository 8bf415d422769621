//! Deliberate defects, to see that the tests notice them: `scripts/mutants` switches on one at a time.
//!
//! Each stands as one line where it does its harm: `if mutant::on("…")`. Only the feature `mutants` gives the switch a
//! second position; without it, [`on`] is a constant and nothing of a defect is compiled.

/// Whether this defect is switched on: by `SYNC_MUTANT`, in the environment of a process.
#[cfg(all(feature = "mutants", not(target_family = "wasm")))]
pub fn on(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("SYNC_MUTANT").ok());
    chosen.as_deref() == Some(name)
}

/// Whether this defect is switched on: by `SYNC_MUTANT`, when the module is built.
#[cfg(all(feature = "mutants", target_family = "wasm"))]
pub fn on(name: &str) -> bool {
    option_env!("SYNC_MUTANT") == Some(name)
}

/// No defect is switched on.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn on(_name: &str) -> bool {
    false
}
