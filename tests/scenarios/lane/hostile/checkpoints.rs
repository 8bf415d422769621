//! A client that starts on a file that is not its own, or no longer. It stops, says what to do, and leaves the file
//! untouched.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::follower::{Follower, forge_checkpoint};
use spacetime_sync_tests::lane::{Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::tool::{self, Ended};

const SOON: Duration = Duration::from_secs(30);
const EVENTS: u64 = 20;

/// Everything in a file that a client could change.
fn contents(store: &Path) -> Vec<String> {
    let store = Connection::open(store).unwrap();
    let mut all = Vec::new();
    for query in [
        "SELECT group_concat(name || sql, '|') FROM sqlite_schema",
        "SELECT group_concat(stream_id || ' ' || seq || ' ' || hex(chain_hash), '|') FROM spacetime_sync_checkpoint",
        "SELECT group_concat(stream_id || ' ' || seq || ' ' || hex(chain_hash), '|') FROM applied",
    ] {
        all.push(
            store
                .query_row(query, [], |row| row.get::<_, Option<String>>(0))
                .unwrap()
                .unwrap_or_default(),
        );
    }
    all
}

struct Desk {
    lane: Lane,
    seal_keys: PathBuf,
    client: Follower,
    streams: [StreamId; 2],
}

impl Desk {
    /// A copy of the client's file with a change.
    fn copy(&self, name: &str, change: &str) -> PathBuf {
        let path = self.lane.path(name);
        std::fs::copy(self.client.store(), &path).unwrap();
        Connection::open(&path).unwrap().execute_batch(change).unwrap();
        path
    }

    fn arguments<'a>(&'a self, store: &'a Path, database: &'a str, streams: &'a [StreamId]) -> Vec<&'a str> {
        let token = self.client.token_file().to_str().unwrap();
        let mut arguments = vec![
            "--uri",
            self.lane.server.uri(),
            "--database",
            database,
            "--token-file",
            token,
            "--seal-keys",
            self.seal_keys.to_str().unwrap(),
        ];
        arguments.extend(["--db", store.to_str().unwrap()]);
        arguments.extend(streams.iter().flat_map(|id| ["--stream", id.as_str()]));
        arguments
    }

    async fn follow(&self, store: &Path, database: &str) -> Ended {
        tool::run(
            "examples/follow",
            &self.arguments(store, database, &self.streams[..1]),
            &[],
        )
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_store_stops_the_client_and_is_left_untouched() {
    let lane = Lane::start().await.unwrap();
    let streams = [stream(1), stream(2)];
    for id in &streams {
        Writer::new(&lane.authority, id, "w", Payload::UpTo(100), 1)
            .append_all(EVENTS, 5)
            .await
            .unwrap();
    }
    let bridge = lane.bridge().unwrap();
    let mut client = lane.client(&streams).await.unwrap();
    client = client.option("--until", EVENTS);
    client.start().unwrap();
    client.until_applied(2 * EVENTS, SOON).await.unwrap();
    assert!(client.process().unwrap().ended(SOON).await.unwrap().success());
    // Without a separate journal, so that a copy of the file is complete.
    let pragma = "PRAGMA journal_mode = DELETE";
    Connection::open(client.store())
        .unwrap()
        .query_row(pragma, [], |row| row.get::<_, String>(0))
        .unwrap();
    let seal_keys = lane.seal_keys_file();
    let desk = Desk {
        lane,
        seal_keys,
        client,
        streams,
    };
    let name = desk.lane.name.clone();

    // Files that are no client's file at all.
    let random: Vec<u8> = (0..8192u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let rubbish = desk.lane.path("rubbish.sqlite");
    std::fs::write(&rubbish, random).unwrap();
    let foreign = desk.lane.path("foreign.sqlite");
    let table = "CREATE TABLE spacetime_sync_checkpoint (stream TEXT, at INTEGER); INSERT INTO spacetime_sync_checkpoint VALUES ('x', 1)";
    Connection::open(&foreign).unwrap().execute_batch(table).unwrap();
    let damaged = desk.lane.path("damaged.sqlite");
    let mut bytes = std::fs::read(desk.client.store()).unwrap();
    let half = bytes.len() / 2;
    bytes[100..half].fill(0x55);
    std::fs::write(&damaged, bytes).unwrap();
    let newer = desk.copy("newer.sqlite", "UPDATE spacetime_sync_meta SET format = 3");
    let short = desk.copy(
        "short.sqlite",
        "UPDATE spacetime_sync_checkpoint SET chain_hash = x'00'",
    );
    let negative = desk.copy("negative.sqlite", "UPDATE spacetime_sync_checkpoint SET seq = -1");
    let turned = "UPDATE spacetime_sync_checkpoint SET seq = seq + 1 WHERE stream_id = 'runtime.run.1.events'";
    let turned = desk.copy("turned.sqlite", turned);
    let whole = desk.copy("whole.sqlite", "");
    for (path, database, said) in [
        (
            &rubbish,
            name.as_str(),
            &["damaged, or not a SQLite database", "restore it from a backup"][..],
        ),
        (
            &damaged,
            &name,
            &["damaged, or not a SQLite database", "restore it from a backup"],
        ),
        (
            &foreign,
            &name,
            &[
                "the table spacetime_sync_checkpoint was not made by this client",
                "give the client another file",
            ],
        ),
        (
            &newer,
            &name,
            &[
                "written in format 3, but this release knows only 2",
                "use the release that wrote it",
            ],
        ),
        (
            &short,
            &name,
            &["the checkpoint of runtime.run.1.events is invalid", "expected 32"],
        ),
        (
            &negative,
            &name,
            &[
                "the checkpoint of runtime.run.1.events is invalid",
                "seq -1 is negative",
            ],
        ),
        (
            &turned,
            &name,
            &[
                "the checkpoint of runtime.run.1.events is invalid",
                "its checksum does not match seq 21",
            ],
        ),
        (
            &whole,
            "another-lane",
            &[
                "its checkpoints belong to database",
                "another-lane",
                "change one of the two",
            ],
        ),
    ] {
        let before = std::fs::read(path).unwrap();
        desk.follow(path, database).await.failed(1, said);
        assert!(std::fs::read(path).unwrap() == before, "{} was changed", path.display());
    }

    // A client's file with a checkpoint that the lane does not know.
    let first = &desk.streams[0];
    let ahead = desk.copy("ahead.sqlite", "");
    forge_checkpoint(&ahead, first, |seq, chain_hash| (seq + 5, chain_hash)).unwrap();
    let wrong = desk.copy("wrong.sqlite", "");
    forge_checkpoint(&wrong, first, |seq, _| (seq, [7; 32])).unwrap();
    for (path, code, said) in [
        (
            &ahead,
            "ahead_of_lane",
            "seq 25 is applied, but SpacetimeDB's head is 20",
        ),
        (
            &wrong,
            "chain_mismatch",
            "compare both with the authority before using this store again",
        ),
    ] {
        let before = contents(path);
        let ended = desk.follow(path, &name).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        let last: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&last["phase"], &last["reason"]),
            (&"stopped".into(), &"every_stream_stopped".into()),
            "{last}"
        );
        let stopped = &last["streams"]["runtime.run.1.events"];
        assert_eq!(
            (&stopped["phase"], &stopped["reason"]),
            (&"stopped".into(), &code.into()),
            "{last}"
        );
        assert!(stopped["detail"].as_str().unwrap().contains(said), "{last}");
        assert_eq!(contents(path), before);
    }

    // A stream that cannot continue does not stop the other stream, which still receives new events.
    let mut arguments = desk.arguments(&wrong, &name, &desk.streams);
    arguments.extend(["--until", "21"]);
    let mut command = std::process::Command::new(spacetime_sync_tests::process::built("examples/follow"));
    let log = desk.lane.path("beside.log");
    let beside = spacetime_sync_tests::process::Process::start("client", command.args(arguments), &log).unwrap();
    for id in &desk.streams {
        Writer::new(&desk.lane.authority, id, "x", Payload::UpTo(100), 2)
            .append(1)
            .await
            .unwrap();
    }
    wait(SOON, "the other stream goes on", || {
        contents(&wrong)[2].contains("runtime.run.2.events 21 ")
    })
    .await;
    assert!(
        !contents(&wrong)[2].contains("runtime.run.1.events 21 "),
        "{}",
        beside.log()
    );
    assert!(beside.is_running(), "{}", beside.log());

    // The intact file is still intact: its client continues from where it was.
    let mut client = desk.client;
    client.clear_options();
    client = client.option("--until", EVENTS + 1);
    client.start().unwrap();
    client.until_applied(2 * EVENTS + 2, SOON).await.unwrap();
    assert!(client.compare(&desk.lane.authority).await.unwrap().is_equal());
    assert_eq!(bridge.stop().await.unwrap(), 0);
}
