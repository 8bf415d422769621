//! The terminal program in a terminal, on a whole lane with another device of the same user: what a person reads on its screen,
//! and what the keys do.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal as ToProcess;
use spacetime_sync_client::{Capability, Presence, Says, Signal, Subject};
use spacetime_sync_tests::device::{Change, Device, Opening, Wish};
use spacetime_sync_tests::lane::{Bridge, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::built;
use spacetime_sync_tests::proxy::Proxy;
use spacetime_sync_tests::scene::ready;
use spacetime_sync_tests::tty::Tty;

use super::clients::{SOON, run, with_tokens};
use super::nostr::Holder;
use super::work::LONG;

/// A lane, the terminal program behind two proxies, and another device.
struct Stage {
    tty: Tty,
    /// Where the program's client keeps how far it has applied streams.
    store: PathBuf,
    laptop: Device,
    writer: Writer,
    proxies: [Proxy; 2],
    bridge: Bridge,
    lane: Lane,
}

impl Stage {
    async fn set() -> Self {
        let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
        let bridge = lane.bridge().unwrap();
        lane.sql("insert into runtime.sync_scope_policy values ('user:7', 'sync.provider')")
            .await
            .unwrap();
        ready(&bridge, SOON).await.unwrap();
        let mut writer = Writer::new(&lane.authority, &stream(1), "w", Payload::UpTo(300), 1);
        writer.append(3).await.unwrap();
        assert!(lane.published(SOON).await);
        let targets = [lane.server.addr().unwrap(), bridge.addr().unwrap()];
        let laptop = lane.device("7", "laptop", &[stream(1)]).await.unwrap();
        let mut laptop = Device::new(laptop, "n-laptop", targets).await.unwrap();
        laptop.start().unwrap();

        let [server, issuer] = targets;
        let proxies = [Proxy::start(server).await.unwrap(), Proxy::start(issuer).await.unwrap()];
        let [uri, url] = proxies.each_ref().map(|proxy| format!("http://{}", proxy.addr()));
        let session = lane.device("7", "terminal", &[stream(1)]).await.unwrap();
        let mut command = Command::new(built("spacetime-sync-terminal"));
        let session = session.through(&uri, &url);
        command.args(session.arguments());
        command.args(["--node", "n-here", "--provider", "maker-1", "--retry-ms", "200"]);
        let tty = Tty::start(&command, [100, 40]).unwrap();
        let stage = Self {
            store: session.store().to_owned(),
            lane,
            bridge,
            proxies,
            tty,
            laptop,
            writer,
        };
        stage.is_live().await;
        stage
    }

    /// Waits until the program says that everything is live.
    async fn is_live(&self) {
        self.tty
            .shows(SOON, "everything is live", |lines| {
                lines[1].starts_with("│live;")
                    && has(lines, &["providers online: ", ", live"])
                    && lines.iter().filter(|line| line.contains("): live")).count() == PANES
            })
            .await;
    }

    /// Waits until a line of the screen has all these words, in this order.
    async fn reads(&self, words: &[&str]) {
        let what = format!("a line with {words:?}");
        self.tty.shows(SOON, &what, |lines| has(lines, words)).await;
    }

    async fn breaks(&self) {
        for proxy in &self.proxies {
            proxy.refuse().await;
            proxy.cut();
        }
    }

    async fn mends(&self) {
        for proxy in &self.proxies {
            proxy.accept().await;
        }
    }

    async fn laptop_calls(&mut self, wish: Wish) {
        let number = self.laptop.ask(wish).unwrap();
        assert_eq!(self.laptop.answered(number, SOON).await, "done");
    }

    /// The program has ended with success, and the terminal is as it was.
    async fn leaves_it_clean(mut self) {
        let status = self.tty.ended(SOON).await.expect("the program ends");
        assert_eq!(status.exit_code(), 0, "{status}");
        wait(SOON, "another screen and no cursor are gone", || {
            self.tty.is_taken() == (false, false)
        })
        .await;
        let mut settings = Command::new("stty");
        settings.arg("-a");
        self.tty.then(&settings).unwrap();
        self.reads(&[" icanon ", " echo "]).await;
    }
}

fn has(lines: &[String], words: &[&str]) -> bool {
    lines.iter().any(|line| {
        let mut rest = line.as_str();
        words.iter().all(|word| {
            let found = rest.find(word);
            found.is_some_and(|at| {
                rest = &rest[at + word.len()..];
                true
            })
        })
    })
}

/// For how many seconds the first stale pane says that it has been stale.
fn stale_for(lines: &[String]) -> Option<u64> {
    let (_, rest) = lines.iter().find_map(|line| line.split_once("STALE for "))?;
    rest.split_once('s')?.0.parse().ok()
}

fn open(request: &str) -> Wish {
    Wish::Open(Opening {
        request: request.to_owned(),
    })
}

fn accept(request: &str) -> Wish {
    Wish::Change(Change {
        request: request.to_owned(),
        update: format!("laptop-takes-{request}"),
        version: 1,
        to: "accepted".to_owned(),
        provider: Some("maker-1".to_owned()),
    })
}

fn render(version: u64) -> Capability {
    Capability {
        provider_id: "maker-2".to_owned(),
        capability: "render".to_owned(),
        version,
        price_hint_sats: 21,
        region: "eu".to_owned(),
        document: "{}".to_owned(),
        stands_for: Duration::from_secs(3_600),
    }
}

fn typing(note: &str) -> Signal {
    Signal {
        node_id: "n-phone".to_owned(),
        subject: Subject::User("notes".to_owned()),
        says: Says::Typing { note: note.to_owned() },
    }
}

/// How many panes say how fresh they are.
const PANES: usize = 5;
const DOWN: &str = "\x1b[B";
const TAB: &str = "\t";

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_what_other_devices_do_and_changes_assignments() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.tty.is_taken(), (true, true));
    stage.reads(&["session-laptop", "n-laptop", "online"]).await;
    stage.reads(&["this one", "n-here", "online", "terminal"]).await;
    stage.reads(&["runtime.run.1.events", "live", "3", "3", "0"]).await;
    // As long as somebody else writes to the client's store, it cannot apply what it has.
    let store = rusqlite::Connection::open(&stage.store).unwrap();
    store.execute_batch("BEGIN IMMEDIATE").unwrap();
    stage.writer.append(39).await.unwrap();
    stage.reads(&["runtime.run.1.events", " 3 ", " 42 ", " 39 "]).await;
    store.execute_batch("ROLLBACK").unwrap();
    stage.reads(&["runtime.run.1.events", "live", "42", "42", "0"]).await;

    // Its own provider, and an assignment of the other device from its opening to its end.
    stage.tty.press("p").unwrap();
    stage.reads(&["publish maker-1 anything: done"]).await;
    stage.laptop_calls(open("r1")).await;
    stage.reads(&["r1", "open", "1", "-", "by requester"]).await;
    stage.tty.press(DOWN).unwrap();
    stage.reads(&["> r1"]).await;
    stage.reads(&["q quit", "a accept", "x cancel"]).await;
    for (key, said, row) in [
        ("a", "accept r1: done", ["> r1", "accepted", "2", "maker-1"]),
        ("s", "start r1: done", ["> r1", "running", "3", "maker-1"]),
        ("d", "done r1: done", ["> r1", "succeeded", "4", "maker-1"]),
    ] {
        stage.tty.press(key).unwrap();
        stage.reads(&[said]).await;
        stage.reads(&row).await;
    }
    stage
        .laptop
        .sees(SOON, "that r1 has succeeded", |shown| {
            shown["assignments"][0][2] == "succeeded"
        })
        .await;
    stage.tty.press("x").unwrap();
    stage.reads(&["cancel r1: not asked for"]).await;

    // What the other device changes is there without a key.
    stage.laptop_calls(open("r2")).await;
    stage.laptop_calls(accept("r2")).await;
    stage.reads(&["r2", "accepted", "2", "maker-1", "by provider"]).await;
    // What is opened here is there.
    stage.tty.press("n").unwrap();
    stage.reads(&["open r-", ": done"]).await;
    stage
        .laptop
        .sees(SOON, "three assignments", |shown| {
            shown["assignments"].as_array().is_some_and(|all| all.len() == 3)
        })
        .await;
    stage.laptop.stop(SOON).await.unwrap();
    stage.reads(&["session-laptop", "n-laptop", "left"]).await;
    stage.tty.press("q").unwrap();
    stage.leaves_it_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_the_screen_says_since_when_it_is_stale_and_what_became_of_calls() {
    let mut stage = Stage::set().await;
    stage.tty.press("p").unwrap();
    stage.reads(&["publish maker-1 anything: done"]).await;
    for request in ["r1", "r2"] {
        stage.laptop_calls(open(request)).await;
        stage.reads(&[request, "open", "1"]).await;
    }
    stage.tty.press(DOWN).unwrap();
    stage.reads(&["> r2"]).await;
    stage.reads(&["last disconnect: none"]).await;

    stage.breaks().await;
    stage
        .tty
        .shows(SOON, "it says what it does and what is stale", |lines| {
            let stale = lines.iter().filter(|line| line.contains("): STALE for ")).count();
            lines[1].contains("reconnecting: attempt ") && stale == PANES && has(lines, &["> r2", "open", "1"])
        })
        .await;
    // Somebody else changes what the screen shows, and this program asks for changes to what it shows.
    stage.laptop_calls(accept("r2")).await;
    stage.writer.append(5).await.unwrap();
    stage.tty.press("a").unwrap();
    stage.reads(&["accept r2: no answer for"]).await;
    stage.tty.press(DOWN).unwrap();
    stage.reads(&["> r1", "open", "1"]).await;
    stage.tty.press("x").unwrap();
    stage.reads(&["Calls (2 without an answer)"]).await;
    stage
        .tty
        .shows(SOON, "nothing of it is shown", |lines| {
            stale_for(lines).is_some_and(|seconds| seconds >= 3)
                && has(lines, &["r2", "open", "1"])
                && has(lines, &["waiting", "3", "3", "0"])
        })
        .await;

    stage.mends().await;
    stage.is_live().await;
    stage.reads(&["r2", "accepted", "2", "maker-1"]).await;
    stage.reads(&["> r1", "cancelled", "2"]).await;
    stage.reads(&["cancel r1: done"]).await;
    stage.reads(&["accept r2: refused:", "r2"]).await;
    stage.reads(&["runtime.run.1.events", "live", "8", "8", "0"]).await;
    stage.reads(&["live;", "reconnects 1"]).await;
    stage.reads(&["last disconnect ", " ago: "]).await;
    // The bridge ends, and SpacetimeDB does not.
    assert_eq!(stage.bridge.stop().await.unwrap(), 0);
    stage.laptop_calls(open("r3")).await;
    stage.reads(&["r3", "open", "1"]).await;
    if stage.lane.server.is_own() {
        stage.lane.server.kill();
        stage.reads(&["Assignments (3): STALE for "]).await;
    }
    stage.tty.press("\x03").unwrap();
    stage.leaves_it_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_who_can_do_what_and_hears_what_is_told_in_passing_or_that_it_was_not_heard() {
    let mut stage = Stage::set().await;
    stage.tty.resize([100, 30]).unwrap();
    stage.reads(&["providers online: 0, live"]).await;
    let mut config = with_tokens(&stage.lane, &stage.bridge, stage.lane.server.uri(), "phone");
    config.provides = true;
    let phone = run(&stage.lane, config, "phone");
    phone.presence(Presence::online("n-phone")).unwrap();
    stage.reads(&["phone", "n-phone", "online"]).await;
    let (holder, challenge) = (Holder::new(5), phone.nostr_challenge("n-phone").await.unwrap());
    let signature = holder.sign_digest(&challenge.to_sign()).parse().unwrap();
    phone
        .bind_nostr_key(challenge, holder.key().parse().unwrap(), signature)
        .await
        .unwrap();
    stage.reads(&["providers online: 1, live"]).await;
    phone.publish_capability(render(3), LONG).await.unwrap();
    stage
        .reads(&["maker-2", "render", "3", "21 sats", "eu", "in 59m"])
        .await;
    // There is no room for one more pane, and its title says what was told last.
    phone.signal(typing("one")).await.unwrap();
    stage
        .reads(&[
            "─ Told in passing (",
            "): live; ",
            "phone/n-phone, user's notes: types: one",
        ])
        .await;
    stage.tty.press(TAB).unwrap();
    stage.tty.press(TAB).unwrap();
    stage
        .reads(&["> ", "phone/n-phone", "user's notes", "types: one"])
        .await;

    stage.tty.resize([100, 50]).unwrap();
    stage.breaks().await;
    stage.reads(&["providers online: 1, STALE for "]).await;
    phone.signal(typing("two")).await.unwrap();
    phone.publish_capability(render(4), LONG).await.unwrap();
    stage
        .tty
        .shows(SOON, "nothing of it is shown", |lines| {
            stale_for(lines).is_some_and(|seconds| seconds >= 3)
                && has(lines, &["Who can do what (1): STALE for "])
                && has(lines, &["maker-2", "render", "3"])
                && has(lines, &["Told in passing (", "): STALE for "])
        })
        .await;
    stage.mends().await;
    stage.is_live().await;
    stage.reads(&["maker-2", "render", "4"]).await;
    stage.reads(&["not everything was heard for "]).await;
    let note = "the rest follows".to_owned();
    let progress = Signal {
        says: Says::Progress {
            done: 3,
            total: 4,
            note,
        },
        ..typing("")
    };
    phone.signal(progress).await.unwrap();
    let said = ["phone/n-phone", "user's notes", "3 of 4 steps done: the rest"];
    stage.reads(&said).await;
    let lines = stage.tty.lines();
    assert!(!has(&lines, &["types: two"]), "nobody tells it again: {lines:#?}");
    phone.stop().await;
    stage.reads(&["phone", "n-phone", "left"]).await;
    stage.reads(&["providers online: 0, live"]).await;
    stage.tty.press("q").unwrap();
    stage.leaves_it_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_screen_follows_its_terminals_size_and_gives_it_back_at_a_signal() {
    let mut stage = Stage::set().await;
    for size in [[60, 22], [140, 50], [100, 30]] {
        stage.tty.resize(size).unwrap();
        let [columns, rows] = size.map(usize::from);
        stage
            .tty
            .shows(SOON, &format!("{columns} columns and {rows} lines are used"), |lines| {
                lines.len() == rows
                    && lines[rows - 1].starts_with("q quit")
                    && lines[0].starts_with("┌ spacetime-sync: lane-")
                    && lines[0].chars().count() == columns
                    && lines[0].ends_with('┐')
            })
            .await;
    }
    stage.tty.press(TAB).unwrap();
    stage.reads(&["> runtime.run.1.events"]).await;
    stage.tty.signal(ToProcess::TERM).unwrap();
    stage.leaves_it_clean().await;
}

#[test]
fn without_a_terminal_it_says_so_and_ends() {
    let mut command = Command::new(built("spacetime-sync-terminal"));
    command.args([
        "--database",
        "lane",
        "--stream",
        "notes",
        "--token-file",
        "none",
        "--db",
        "none",
    ]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("expected a terminal"), "{said}");
    assert!(output.stdout.is_empty(), "nothing is drawn: {:?}", output.stdout);
}
