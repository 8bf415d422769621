//! One of the two databases is restored to an earlier state.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use spacetime_sync_proto::{Seq, StreamId};
use spacetime_sync_tests::lane::{BridgeOptions, Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::tool;

/// How soon a restore is noticed, and a repaired lane has recovered.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn watching() -> BridgeOptions {
    BridgeOptions {
        set: vec![("retention.beat_ms", "50".to_owned())],
        ..BridgeOptions::default()
    }
}

async fn write(lane: &Lane, stream_id: &StreamId, name: &str, events: u64) {
    let mut writer = Writer::new(&lane.authority, stream_id, name, Payload::Fixed(100), events);
    writer.append_all(events, 100).await.unwrap();
}

/// Runs an operator's command and parses its JSON. The command asks no bridge.
pub(crate) async fn operator(lane: &Lane, arguments: &[&str]) -> (i32, Value) {
    operator_beside(lane, ([127, 0, 0, 1], 0).into(), arguments).await
}

/// The same, for a lane whose bridge listens at `http`.
async fn operator_beside(lane: &Lane, http: SocketAddr, arguments: &[&str]) -> (i32, Value) {
    let environment = lane.environment(&BridgeOptions::default(), http).unwrap();
    let environment: Vec<_> = environment
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let ended = tool::run("spacetime-sync", &[arguments, &["--json"]].concat(), &environment).await;
    let said = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr));
    (ended.code, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_authority_is_noticed_and_repaired() {
    let lane = Lane::start().await.unwrap();
    let streams = [stream(1), stream(2), stream(3), stream(4)];
    let [diverging, shorter, whole, unknown] = &streams;
    for stream_id in &streams[..3] {
        write(&lane, stream_id, "before", 300).await;
    }
    let bridge = lane.bridge_with(&watching()).unwrap();
    assert!(lane.published(SOON).await);
    let backup = lane.database.back_up().await.unwrap();
    for stream_id in [diverging, shorter, unknown] {
        write(&lane, stream_id, "lost", 200).await;
    }
    assert!(lane.published(SOON).await);
    assert_eq!(lane.held(&streams).await.unwrap(), [500, 500, 300, 200]);
    // Enough beats that the restored authority is behind.
    let beats = lane.authority.epoch().await.unwrap().beat + 3;
    while lane.authority.epoch().await.unwrap().beat < beats {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bridge.stop().await.unwrap(), 0);

    lane.database.restore(backup).await.unwrap();
    write(&lane, diverging, "after", 250).await;
    write(&lane, whole, "after", 10).await;
    let bridge = lane.bridge_with(&watching()).unwrap();
    let health = bridge
        .until("/healthz", SOON, |_, health| {
            health["authority_restored"] == true && health["halted"].as_array().is_some_and(|halted| halted.len() == 2)
        })
        .await
        .unwrap();
    let codes: Vec<_> = health["halted"]
        .as_array()
        .unwrap()
        .iter()
        .map(|halted| &halted["code"])
        .collect();
    assert_eq!(codes, ["diverged", "ahead_of_authority"], "{health}");
    // A stream without a contradiction continues.
    assert!(
        lane.authority
            .position(whole)
            .await
            .unwrap()
            .is_some_and(|position| position.published_seq.get() >= 300)
    );

    let (code, dry) = operator(&lane, &["rewind", "--dry-run"]).await;
    assert_eq!(
        (code, &dry["rewound"], &dry["dry_run"]),
        (0, &3.into(), &true.into()),
        "{dry}"
    );
    assert_eq!(
        lane.held(&streams[1..]).await.unwrap()[0],
        500,
        "a dry run changes nothing"
    );
    let (code, _) = operator(&lane, &["verify"]).await;
    assert_eq!(code, 1);
    // The authority's beat has not caught up with what it lost.
    assert!(lane.authority.epoch().await.unwrap().beat < beats);
    let (_, health) = bridge.ask("/healthz").await.unwrap();
    assert_eq!(health["authority_restored"], true);
    let (code, done) = operator(&lane, &["rewind"]).await;
    assert_eq!((code, &done["rewound"]), (0, &3.into()), "{done}");
    let ends: Vec<_> = done["reports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|report| &report["rewound_to"])
        .collect();
    assert_eq!(
        ends,
        [&300, &300, &0].map(|end| Value::from(*end)).iter().collect::<Vec<_>>(),
        "{done}"
    );

    // The running bridge resumes the streams by itself.
    bridge
        .until("/healthz", SOON, |healthy, health| {
            healthy && health["authority_restored"] == false && health["halted"].as_array().is_some_and(Vec::is_empty)
        })
        .await
        .unwrap();
    for stream_id in &streams {
        write(&lane, stream_id, "later", 20).await;
    }
    assert!(lane.published(SOON).await);
    assert_eq!(lane.held(&streams).await.unwrap(), [570, 320, 330, 20]);
    lane.verified().await;
    let mut client = lane.client(&streams).await.unwrap();
    client.start().unwrap();
    client.until_applied(570 + 320 + 330 + 20, SOON).await.unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_spacetimedb_catches_up_by_itself() {
    let mut lane = Lane::start().await.unwrap();
    if !lane.server.is_own() {
        return;
    }
    let streams = [stream(1), stream(2)];
    write(&lane, &streams[0], "before", 300).await;
    let bridge = lane.bridge_with(&watching()).unwrap();
    assert!(lane.published(SOON).await);
    lane.server.kill();
    let (data, copy) = (lane.path("host"), lane.path("copy"));
    copy_folder(&data, &copy);
    lane.server.restart().await.unwrap();
    write(&lane, &streams[0], "lost", 200).await;
    write(&lane, &streams[1], "lost", 200).await;
    assert!(lane.published(SOON).await);

    lane.server.kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    lane.server.restart().await.unwrap();
    bridge.until("/readyz", SOON, |ready, _| ready).await.unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while lane.held(&streams).await.unwrap() != [500, 200] {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            lane.held(&streams).await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lane.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_republished_while_everything_runs() {
    let lane = Lane::start().await.unwrap();
    let streams = [stream(1), stream(2)];
    let mut client = lane.client(&streams).await.unwrap();
    client.start().unwrap();
    for stream_id in &streams {
        write(&lane, stream_id, "before", 500).await;
    }
    let bridge = lane.bridge_with(&watching()).unwrap();
    client.until_applied(1_000, SOON).await.unwrap();
    let name = streams[0].as_str();
    let (code, dry) = operator(&lane, &["republish", "--stream", name, "--dry-run"]).await;
    assert_eq!((code, &dry["rewound"]), (0, &1.into()), "{dry}");
    let (code, done) = operator(&lane, &["republish", "--stream", name]).await;
    assert_eq!((code, &done["rewound"]), (0, &1.into()), "{done}");
    write(&lane, &streams[0], "later", 100).await;
    assert!(lane.published(SOON).await);
    assert_eq!(lane.held(&streams).await.unwrap(), [600, 500]);
    lane.verified().await;
    assert!(bridge.process.is_running());
    let unknown = tool::run(
        "spacetime-sync",
        &["republish", "--stream", "no.such.stream"],
        &lane
            .environment(&BridgeOptions::default(), ([127, 0, 0, 1], 0).into())
            .unwrap()
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect::<Vec<_>>(),
    )
    .await;
    unknown.failed(1, &["neither the authority nor SpacetimeDB has stream no.such.stream"]);
    assert_eq!(
        lane.authority
            .position(&streams[0])
            .await
            .unwrap()
            .unwrap()
            .published_seq,
        Seq::new(600).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_be_published_are_reported_with_and_without_a_bridge() {
    let lane = Lane::start().await.unwrap();
    let [broken, sound] = [stream(1), stream(2)];
    for stream_id in [&broken, &sound] {
        write(&lane, stream_id, "w", 5).await;
    }
    // Bypasses the trigger that would refuse this.
    let set = async |payload: &str| {
        lane.sql(&format!(
            "set session_replication_role = replica;
             create table if not exists kept as select payload from runtime.sync_stream_events
               where stream_id = '{broken}' and seq = 3;
             update runtime.sync_stream_events set payload = {payload} where stream_id = '{broken}' and seq = 3"
        ))
        .await
        .unwrap();
    };
    set("'something else'").await;
    // Each problem with its stream.
    let findings = |said: &Value| -> Vec<(String, String, String)> {
        let report = |report: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let finding = &report["findings"][0];
            let what = if finding["what"].is_null() { "reason" } else { "what" };
            (
                text(&report["stream_id"]),
                text(&finding["finding"]),
                text(&finding[what]),
            )
        };
        said["reports"].as_array().unwrap().iter().map(report).collect()
    };
    let why = "the payload of seq 3 does not match its payload hash";
    for arguments in [&["verify"][..], &["verify", "--deep"]] {
        let (code, said) = operator(&lane, arguments).await;
        let found = findings(&said);
        assert!(code == 1 && found.len() == 1, "{said}");
        assert_eq!((&*found[0].0, &*found[0].1), (broken.as_str(), "unpublishable"));
        assert!(found[0].2.contains(why), "{said}");
    }
    let (code, said) = operator(&lane, &["parity"]).await;
    let mismatch = &said["rounds"][0]["mismatches"][0];
    assert_eq!((code, &said["mismatches"]), (1, &1.into()), "{said}");
    assert_eq!(
        (&mismatch["party"], &mismatch["seq"]),
        (&"authority".into(), &1.into()),
        "{said}"
    );
    assert!(mismatch["what"].as_str().unwrap().contains(why), "{said}");

    // The rows are restored, but the bridge had already halted the stream.
    let bridge = lane.bridge_with(&watching()).unwrap();
    let halted = |health: &Value, count: usize| health["halted"].as_array().is_some_and(|all| all.len() == count);
    bridge
        .until("/healthz", SOON, |_, health| halted(health, 1))
        .await
        .unwrap();
    set("(select payload from kept)").await;
    let http = bridge.addr().unwrap();
    let (code, said) = operator_beside(&lane, http, &["verify", "--deep"]).await;
    let found = findings(&said);
    assert!(code == 1 && found.len() == 1, "{said}");
    assert_eq!((&*found[0].0, &*found[0].1), (broken.as_str(), "halted"));
    assert!(found[0].2.contains(why), "{said}");
    let (code, said) = operator_beside(&lane, http, &["parity"]).await;
    assert_eq!(
        (code, &said["mismatches"], &said["halted"][0]["code"]),
        (1, &0.into(), &"broken_log".into())
    );

    // The steps of docs/recovery.md.
    let (code, _) = operator_beside(&lane, http, &["rewind"]).await;
    assert_eq!(code, 0);
    bridge
        .until("/healthz", SOON, |_, health| halted(health, 0))
        .await
        .unwrap();
    assert!(lane.published(SOON).await);
    for arguments in [&["verify", "--deep"][..], &["parity"]] {
        let (code, said) = operator_beside(&lane, http, arguments).await;
        assert_eq!(code, 0, "{said}");
    }
}

pub(crate) fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
