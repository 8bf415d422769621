//! What is released holds no switch for deliberate defects.

use spacetime_sync_proto::mutant;

/// A part of the text, so that this file is not what is found.
const SWITCH: [&str; 2] = ["SYNC_", "MUTANT"];

fn holds_the_switch(program: &[u8]) -> bool {
    let text = SWITCH.concat();
    program.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn programs_of_the_workspace_hold_no_switch() {
    assert!(!mutant::on("any"));
    let program = std::fs::read(env!("CARGO_BIN_EXE_sim")).unwrap();
    assert!(!holds_the_switch(&program));
    // What is built by scripts, if they run this.
    if let Some(wasm) = std::env::var_os("SYNC_MODULE_WASM") {
        let module = std::fs::read(wasm).unwrap();
        assert!(!holds_the_switch(&module));
        let defect = b"module-anyone-may-append";
        assert!(!module.windows(defect.len()).any(|part| part == defect));
    }
}

#[test]
fn the_switch_would_be_found() {
    assert!(holds_the_switch(format!("x{}y", SWITCH.concat()).as_bytes()));
}
