//! `mutants`: switches on one deliberate defect after the other and shows which test notices. Builds the tests with the
//! switch in them; programs and module only for defects that show on real processes alone. Started by `scripts/mutants`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};

/// Breaks the lane on purpose, one thing at a time.
#[derive(Parser)]
struct Arguments {
    /// Only these; all of them if none is named.
    names: Vec<String>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

/// A test binary, by the name and the kind of its target, and which of its tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tests {
    target: &'static str,
    kind: &'static str,
    filter: &'static str,
}

/// A defect.
struct Mutant {
    name: &'static str,
    breaks: &'static str,
    invariant: &'static str,
    /// The cheapest first.
    caught_by: &'static [Tests],
    /// Whether it is in the module as published, and not only in its rules.
    in_wasm: bool,
}

const SIM: Tests = Tests {
    target: "sim",
    kind: "test",
    filter: "reliability::sim::two_thousand_seeds_hold_every_invariant",
};

const fn client(filter: &'static str) -> Tests {
    let (target, kind) = ("spacetime_sync_client", "lib");
    Tests { target, kind, filter }
}

const fn bridge(filter: &'static str) -> Tests {
    let (target, kind) = ("spacetime_sync_bridge", "lib");
    Tests { target, kind, filter }
}

const fn rules(filter: &'static str) -> Tests {
    let (target, kind) = ("spacetime_sync_rules", "lib");
    Tests { target, kind, filter }
}

const fn scenario(filter: &'static str) -> Tests {
    let (target, kind) = ("scenarios", "test");
    Tests { target, kind, filter }
}

const fn pure(
    name: &'static str,
    invariant: &'static str,
    breaks: &'static str,
    caught_by: &'static [Tests],
) -> Mutant {
    Mutant {
        name,
        breaks,
        invariant,
        caught_by,
        in_wasm: false,
    }
}

const fn published(
    name: &'static str,
    invariant: &'static str,
    breaks: &'static str,
    caught_by: &'static [Tests],
) -> Mutant {
    Mutant {
        name,
        breaks,
        invariant,
        caught_by,
        in_wasm: true,
    }
}

const MUTANTS: &[Mutant] = &[
    pure(
        "client-skips-the-chain-check",
        "I3 I7",
        "a frame is applied whatever it follows",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-applies-over-a-hole",
        "I2",
        "what lies before a frame is not missed",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-pages-no-hole",
        "I10",
        "a hole is noticed and not filled",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-applies-duplicates",
        "I1",
        "a frame that overlaps is applied whole",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-starts-at-the-head",
        "I8",
        "a fresh client begins where the lane is, and skips what was before",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-clamps-to-the-head",
        "I8",
        "a cursor above the head is moved to it, and nobody hears of it",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-takes-any-page",
        "I7",
        "a page is not held to the head that it claims",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-goes-on-after-a-failure",
        "I10",
        "the cursor is not set back when applying failed",
        &[SIM, client("apply::")],
    ),
    pure(
        "client-applies-what-does-not-continue",
        "I2",
        "a batch is applied that does not begin at what is saved",
        &[SIM, client("applier::")],
    ),
    pure(
        "client-takes-an-altered-payload",
        "I3",
        "payloads are not hashed before they are applied",
        &[SIM, client("applier::")],
    ),
    pure(
        "store-saves-the-checkpoint-apart",
        "I6",
        "effects and checkpoint are two transactions",
        &[client("store::sqlite::")],
    ),
    pure(
        "store-overwrites-a-moved-checkpoint",
        "I6",
        "a checkpoint that somebody else moved is overwritten",
        &[client("store::sqlite::")],
    ),
    pure(
        "bridge-counts-in-flight-as-published",
        "I4",
        "what is in flight when the link breaks counts as published",
        &[SIM, bridge("core::")],
    ),
    pure(
        "bridge-advances-at-send",
        "I4",
        "a frame counts as published when it is sent, and not when it is durable",
        &[SIM, bridge("core::")],
    ),
    pure(
        "bridge-takes-an-altered-payload",
        "I3",
        "payloads are not hashed before they are sent",
        &[SIM, bridge("core::")],
    ),
    pure(
        "bridge-skips-the-chain-check",
        "I3",
        "the authority's chain is not checked before it is sent",
        &[bridge("core::")],
    ),
    pure(
        "bridge-halts-every-stream",
        "I13",
        "one halted stream halts the reading of all",
        &[SIM, bridge("core::")],
    ),
    pure(
        "bridge-goes-on-without-learning",
        "I10",
        "after a failure the head is not asked for",
        &[SIM, bridge("core::")],
    ),
    pure(
        "bridge-compares-no-heads",
        "I4 I10",
        "what SpacetimeDB holds is taken to be what is published",
        &[SIM, bridge("core::")],
    ),
    pure(
        "bridge-is-always-green",
        "I11",
        "health is green whatever stands still",
        &[bridge("status::")],
    ),
    pure(
        "module-takes-a-gap",
        "I2",
        "a frame past the head is appended",
        &[SIM, rules("append::")],
    ),
    pure(
        "module-takes-another-chain",
        "I3",
        "a frame that does not follow the log is appended",
        &[SIM, rules("append::")],
    ),
    pure(
        "module-takes-another-event-at-a-held-seq",
        "I3",
        "a frame that contradicts what is held is taken for a repeat",
        &[SIM, rules("append::")],
    ),
    pure(
        "module-takes-acks-backwards",
        "I8",
        "an acknowledgement may go back",
        &[SIM, rules("checkpoint::")],
    ),
    pure(
        "module-takes-acks-past-the-head",
        "I8",
        "an acknowledgement may be past the head",
        &[SIM, rules("checkpoint::")],
    ),
    pure(
        "module-takes-acks-of-another-log",
        "I8",
        "an acknowledgement may be of another log",
        &[rules("checkpoint::")],
    ),
    pure(
        "module-sweeps-the-whole-window",
        "I7",
        "retention removes what clients may still page",
        &[SIM, rules("retention::")],
    ),
    pure(
        "module-rewinds-on-any-chain",
        "I3",
        "a rewind keeps what is of another log",
        &[rules("rewind::")],
    ),
    pure(
        "module-lets-an-ended-token-in",
        "I9",
        "a token's end is not looked at",
        &[rules("session::")],
    ),
    pure(
        "module-lets-a-revoked-session-in",
        "I9",
        "a revoked session opens again",
        &[rules("session::")],
    ),
    published(
        "module-sweep-keeps-grants",
        "I9",
        "a session that ends keeps its grants",
        &[scenario("access::sessions::a_session_that_has_ended_sees_nothing_more")],
    ),
    published(
        "module-calls-outlive-the-session",
        "I9",
        "calls do not look at the session's end",
        &[scenario("access::sessions::calls_on_a_connection_that_is_up_end")],
    ),
    published(
        "module-reads-without-a-grant",
        "I9",
        "reading asks for no grant",
        &[scenario("lane::hostile::access::each_function_is_for_those_who_may")],
    ),
    published(
        "module-revocation-keeps-grants",
        "I9",
        "revoking a stream changes nothing",
        &[scenario("lane::hostile::visibility::")],
    ),
    published(
        "module-anyone-may-append",
        "I3",
        "appending does not ask who calls",
        &[scenario("lane::hostile::access::each_function_is_for_those_who_may")],
    ),
];

/// Longer than any of these tests takes; a defect may make one wait for ever.
const LIMIT: Duration = Duration::from_secs(300);

struct Verdict {
    mutant: &'static Mutant,
    caught_by: Option<String>,
    took: Duration,
}

struct Runner {
    binaries: BTreeMap<(String, String), PathBuf>,
    /// Where what is built and said is left.
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let chosen: Vec<&'static Mutant> = MUTANTS
        .iter()
        .filter(|mutant| arguments.names.is_empty() || arguments.names.iter().any(|name| name == mutant.name))
        .collect();
    if let Some(unknown) = arguments
        .names
        .iter()
        .find(|name| !MUTANTS.iter().any(|mutant| mutant.name == name.as_str()))
    {
        let known: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        bail!("there is no mutant {unknown}; there are {}", known.join(", "));
    }
    let mut runner = Runner {
        binaries: BTreeMap::new(),
        folder: std::env::current_dir()?.join("target/mutants"),
    };
    std::fs::create_dir_all(&runner.folder)?;
    runner.build_tests(&["--lib", "--test", "sim"])?;
    if chosen.iter().any(|mutant| mutant.in_wasm) {
        runner.build_module("none")?;
        cargo(WORKSPACE, &["build", "--bins", "--examples"])?;
        runner.build_tests(&["--test", "scenarios"])?;
    }
    runner.whole(&chosen)?;

    println!("{:<42} {:<7} {:>7}  caught by", "mutant", "breaks", "seconds");
    let mut survivors = 0;
    let mut told = Vec::new();
    for mutant in chosen {
        let Verdict {
            mutant,
            caught_by,
            took,
        } = runner.judge(mutant)?;
        survivors += usize::from(caught_by.is_none());
        let (seconds, caught) = (took.as_secs_f64(), caught_by.as_deref().unwrap_or("NOBODY"));
        println!("{:<42} {:<7} {seconds:>7.1}  {caught}", mutant.name, mutant.invariant);
        told.push(json!({
            "mutant": mutant.name,
            "what": mutant.breaks,
            "invariant": mutant.invariant,
            "caught_by": caught_by,
            "seconds": seconds,
        }));
    }
    println!("{} mutants, {survivors} survived", told.len());
    if arguments.json {
        println!("{}", json!({ "mutants": told, "survived": survivors }));
    }
    ensure!(survivors == 0, "a defect goes unnoticed");
    Ok(())
}

/// What is built natively.
const WORKSPACE: &[&str] = &[
    "--locked",
    "--release",
    "--workspace",
    "--exclude",
    "spacetime-sync-module",
    "--features",
    "spacetime-sync-proto/mutants",
];
/// What is published.
const MODULE: &[&str] = &[
    "--locked",
    "--release",
    "--package",
    "spacetime-sync-module",
    "--target",
    "wasm32-unknown-unknown",
    "--features",
    "spacetime-sync-proto/mutants",
];

/// Runs cargo and returns what it says.
fn cargo(what: &[&str], how: &[&str]) -> anyhow::Result<String> {
    let (verb, rest) = how.split_first().context("cargo is to do something")?;
    let output = Command::new("cargo")
        .arg(verb)
        .args(what)
        .args(rest)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cargo {verb} fails");
    Ok(String::from_utf8(output.stdout)?)
}

impl Runner {
    /// Builds tests and remembers where they are, by target and kind.
    fn build_tests(&mut self, which: &[&str]) -> anyhow::Result<()> {
        let how = [&["test", "--no-run", "--message-format", "json"], which].concat();
        for line in cargo(WORKSPACE, &how)?.lines() {
            let Ok(message) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if let (Some(executable), Some(true)) =
                (message["executable"].as_str(), message["profile"]["test"].as_bool())
            {
                let target = message["target"]["name"].as_str().unwrap_or_default();
                let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
                let key = (target.to_owned(), kind.to_owned());
                self.binaries.insert(key, PathBuf::from(executable));
            }
        }
        Ok(())
    }

    /// The module with a defect in it, or none.
    fn build_module(&self, mutant: &str) -> anyhow::Result<PathBuf> {
        let built = Command::new("cargo")
            .arg("build")
            .args(MODULE)
            .env("SYNC_MUTANT", mutant)
            .stderr(Stdio::null())
            .status()?;
        ensure!(built.success(), "the module with {mutant} does not build");
        let wasm = self.wasm(mutant);
        let made = "target/wasm32-unknown-unknown/release/spacetime_sync_module.wasm";
        std::fs::copy(made, &wasm)?;
        Ok(wasm)
    }

    fn wasm(&self, mutant: &str) -> PathBuf {
        self.folder.join(format!("{mutant}.wasm"))
    }

    /// Without any defect all that is to notice one must be green, or nothing is proved.
    fn whole(&self, chosen: &[&Mutant]) -> anyhow::Result<()> {
        let mut all: Vec<_> = chosen.iter().flat_map(|mutant| mutant.caught_by).copied().collect();
        all.sort_unstable();
        all.dedup();
        for tests in all {
            let started = Instant::now();
            if let Some(failed) = self.run(tests, None, &self.wasm("none"))? {
                bail!("without any defect, {failed} fails: see {}", self.folder.display());
            }
            eprintln!(
                "mutants: {} is green, {:.1} s",
                tests.filter,
                started.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }

    fn judge(&self, mutant: &'static Mutant) -> anyhow::Result<Verdict> {
        let started = Instant::now();
        let wasm = if mutant.in_wasm {
            self.build_module(mutant.name)?
        } else {
            self.wasm("none")
        };
        let mut caught_by = None;
        for tests in mutant.caught_by {
            caught_by = self.run(*tests, Some(mutant), &wasm)?;
            if caught_by.is_some() {
                break;
            }
        }
        Ok(Verdict {
            mutant,
            caught_by,
            took: started.elapsed(),
        })
    }

    /// Runs tests and says which one failed first, if one did.
    fn run(&self, tests: Tests, mutant: Option<&Mutant>, wasm: &Path) -> anyhow::Result<Option<String>> {
        let key = (tests.target.to_owned(), tests.kind.to_owned());
        let binary = self
            .binaries
            .get(&key)
            .with_context(|| format!("no test binary {key:?}"))?;
        let path = self
            .folder
            .join(format!("{}.log", mutant.map_or("none", |mutant| mutant.name)));
        let log = File::create(&path)?;
        let mut command = Command::new(binary);
        command
            .args([tests.filter, "--test-threads", "2"])
            .env_remove("SYNC_MUTANT")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(mutant) = mutant {
            command.env("SYNC_MUTANT", mutant.name);
        }
        command.env("SYNC_MODULE_WASM", wasm);
        let mut child = command.spawn().with_context(|| binary.display().to_string())?;
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        File::open(&path)?.read_to_string(&mut said)?;
        let failed = said
            .lines()
            .find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
        match (status, failed) {
            (None, _) => Ok(Some(format!("{} (it never ends)", tests.filter))),
            (Some(status), _) if status.success() => {
                ensure!(
                    !said.contains("running 0 tests"),
                    "no test has the name {}",
                    tests.filter
                );
                Ok(None)
            }
            (Some(_), Some(failed)) => Ok(Some(format!("{}: {failed}{}", tests.target, violated(&said)))),
            (Some(status), None) => Ok(Some(format!("{}: {} ({status})", tests.target, tests.filter))),
        }
    }
}

/// Which invariant the simulation found broken.
fn violated(said: &str) -> String {
    let invariant = said
        .split_once("invariant: \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(invariant, _)| invariant);
    invariant.map_or_else(String::new, |invariant| format!(" ({invariant})"))
}
