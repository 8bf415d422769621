//! The corpus, and a short run of every target.

use std::time::Duration;

use spacetime_sync_fuzz::run::{Bounds, Report, fuzz, replay, replay_corpus};
use spacetime_sync_fuzz::target::{Entry, Verdict};
use spacetime_sync_fuzz::{ALL, corpus, named};

/// The time for all targets together.
const TIME: Duration = Duration::from_secs(24);
/// The most inputs per target.
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

/// Asserts that a run has no finding. Keeps the input of a finding where a person can inspect it.
fn held(entry: &Entry, report: &Report) {
    if let Some(finding) = &report.finding {
        let file = std::env::temp_dir().join(format!("fuzz-{}-{}", entry.name, corpus::found_name(&finding.input)));
        std::fs::write(&file, &finding.input).expect("a folder that can be written to");
        panic!(
            "{}\nthe input is in {1}; replay it with: ./scripts/fuzz --replay {2} {1}",
            told(report),
            file.display(),
            entry.name
        );
    }
}

#[test]
fn every_corpus_input_passes_and_every_target_accepts_some() {
    for entry in ALL {
        let report = replay_corpus(entry).unwrap();
        held(entry, &report);
        assert_eq!(report.executions, report.corpus as u64, "{}", told(&report));
        assert!(
            report.taken > 0,
            "{} accepts nothing of its corpus: if its format has changed, make it again with ./scripts/fuzz --seed-corpus",
            entry.name
        );
    }
}

/// A target that refuses valid input would test nothing behind its first check.
#[test]
fn valid_inputs_of_the_encoders_are_accepted() {
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
        ("document", "names"),
        ("document", "deep"),
        ("request", "token"),
        ("request", "token-least"),
        ("request", "revoke"),
        ("answer", "token"),
        ("answer", "incompatible-by-headers"),
        ("seal", "at-1"),
        ("seal", "at-9"),
        ("heads", "question"),
        ("heads", "answer"),
    ] {
        let input = std::fs::read(corpus::folder().join(target).join(file)).expect("a file of the corpus");
        let answer = replay(named(target).expect("a target"), &input).expect("a target that opens");
        assert_eq!(
            answer,
            Ok(Verdict::Taken),
            "{target}/{file}: was the corpus made again with ./scripts/fuzz --seed-corpus?"
        );
    }
}

#[test]
fn every_target_passes_a_short_run() {
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
            "no input was made: {}",
            told(&report)
        );
        assert!(report.taken > 0, "no input was accepted: {}", told(&report));
    }
}

/// The runner finds a broken target, shrinks the input and reports the seed. The same seed gives the same run.
#[test]
fn a_finding_is_reproduced_by_its_seed() {
    use spacetime_sync_fuzz::target::{Seed, Target};

    /// A target that wrongly panics at two `!` in a row.
    struct Broken;
    impl Target for Broken {
        fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
            assert!(!input.windows(2).any(|two| two == b"!!"), "two of them");
            Ok(Verdict::Taken)
        }
    }
    static BROKEN: Entry = Entry {
        // It uses the corpus of another target, because the first inputs do not matter.
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
    assert_eq!(finding.input, b"!!", "the input was not minimised");
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
