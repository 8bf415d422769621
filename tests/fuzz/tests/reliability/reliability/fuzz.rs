//! Everything that parses foreign bytes.

use std::time::Duration;

use spacetime_sync_fuzz::run::{Bounds, Report, fuzz, replay, replay_corpus};
use spacetime_sync_fuzz::target::{Entry, Verdict};
use spacetime_sync_fuzz::{ALL, corpus, named};

/// All targets together.
const TIME: Duration = Duration::from_secs(24);
/// Of one target.
const EXECUTIONS: u64 = 100_000;

fn told(report: &Report) -> String {
    let Report {
        target,
        seed,
        executions,
        taken,
        seconds,
        finding,
        ..
    } = report;
    let found = finding.as_ref().map_or("nothing", |finding| &finding.message);
    format!("{target}: seed {seed}, {executions} inputs, {taken} taken, {seconds:.1} s: {found}")
}

/// Keeps the input of a finding where it can be looked at.
fn held(entry: &Entry, report: &Report) {
    if let Some(finding) = &report.finding {
        let file = std::env::temp_dir().join(format!("fuzz-{}-{}", entry.name, corpus::found_name(&finding.input)));
        std::fs::write(&file, &finding.input).expect("a folder that can be written to");
        panic!(
            "{}\nthe input is in {1}; again with: ./scripts/fuzz --replay {2} {1}",
            told(report),
            file.display(),
            entry.name
        );
    }
}

#[test]
fn every_input_of_the_corpus_holds_and_every_target_takes_some() {
    for entry in ALL {
        let report = replay_corpus(entry).unwrap();
        held(entry, &report);
        assert_eq!(report.executions, report.corpus as u64, "{}", told(&report));
        assert!(
            report.taken > 0,
            "{} takes nothing of its corpus: is it of an older form? make it anew with ./scripts/fuzz --seed-corpus",
            entry.name
        );
    }
}

/// A target that refuses what it should take would find nothing behind its first check.
#[test]
fn what_the_encoders_made_to_be_taken_is_taken() {
    for (target, file) in [
        ("frame", "many"),
        ("append", "overlap"),
        ("page", "live"),
        ("claims", "client"),
        ("claims", "service"),
        ("credential", "good-1"),
        ("session", "bare"),
        ("jwks", "rsa"),
        ("key", "p256-1"),
        ("store", "closed"),
        ("store", "killed"),
        ("config", "whole"),
        ("config", "environment"),
        ("request", "token"),
        ("request", "token-least"),
        ("request", "revoke"),
        ("answer", "token"),
        ("answer", "incompatible-by-headers"),
    ] {
        let input = std::fs::read(corpus::folder().join(target).join(file)).expect("a file of the corpus");
        let answer = replay(named(target).expect("a target"), &input).expect("a target that opens");
        assert_eq!(
            answer,
            Ok(Verdict::Taken),
            "{target}/{file}: made anew with ./scripts/fuzz --seed-corpus?"
        );
    }
}

#[test]
fn every_target_holds_for_what_is_made_of_its_corpus() {
    let seed = std::env::var("SYNC_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    for entry in ALL {
        let bounds = Bounds {
            time: TIME / ALL.len() as u32,
            executions: EXECUTIONS,
        };
        let report = fuzz(entry, seed, bounds, &mut None).unwrap();
        println!("{}", told(&report));
        held(entry, &report);
        assert!(
            report.executions > report.corpus as u64,
            "nothing was made: {}",
            told(&report)
        );
        assert!(report.taken > 0, "nothing was taken: {}", told(&report));
    }
}

/// A target that does not hold is found, made smaller, and said with its seed; a run is the same again.
#[test]
fn what_does_not_hold_is_found_again_with_its_seed() {
    use spacetime_sync_fuzz::target::{Seed, Target};

    /// Two bytes in a row that are the same: one of them wrongly.
    struct Broken;
    impl Target for Broken {
        fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
            assert!(!input.windows(2).any(|two| two == b"!!"), "two of them");
            Ok(Verdict::Taken)
        }
    }
    static BROKEN: Entry = Entry {
        // It has the corpus of another one: what it begins with does not matter.
        name: "topic",
        about: "",
        dictionary: &[b"!!"],
        most: 100,
        open: || Ok(Box::new(Broken)),
        seeds: || Ok(vec![Seed::new("x", "x")]),
    };
    let bounds = Bounds {
        time: Duration::from_secs(60),
        executions: 1_000_000,
    };
    let found = |seed| fuzz(&BROKEN, seed, bounds, &mut None).unwrap();
    let (first, second) = (found(1), found(1));
    let finding = first.finding.unwrap();
    assert_eq!(finding.input, b"!!", "it was not made smaller");
    assert!(
        finding.message.contains("two of them") && finding.message.contains("fuzz.rs"),
        "{}",
        finding.message
    );
    assert_eq!(
        (first.executions, second.executions),
        (second.executions, first.executions)
    );
    assert_ne!(found(2).executions, first.executions);
}
