//! Reports: what only a client notices, it tells the bridge. The bridge walks through the stream's window twice, 15 s apart,
//! tells a person, and puts the authority's events in the place of what it did not seal.

use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_ops::repair::Finding;
use spacetime_sync_proto::{Event, Frame, Position, Seq, StreamId, limit};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Forger, Lane, invented, stream, wait, wait_for};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;

const SOON: Duration = Duration::from_secs(30);
/// Within this time a reported forgery is gone.
const HEALED: Duration = Duration::from_secs(60);

/// A lane whose bridge has compared all streams, of which there are none yet, and compares them again in a day.
async fn compared() -> (Lane, Bridge) {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let options = BridgeOptions {
        set: vec![("bridge.compare_every_ms", "86400000".to_owned())],
        says: Some("info,sqlx=warn,spacetime_sync_bridge=debug".to_owned()),
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    let is_compared = || bridge.process.log().contains("compared 0 streams with SpacetimeDB");
    wait(SOON, "the bridge compares all streams", is_compared).await;
    (lane, bridge)
}

fn writers<const N: usize>(lane: &Lane, streams: &[StreamId; N]) -> [Writer; N] {
    streams
        .each_ref()
        .map(|id| Writer::new(&lane.authority, id, "w", Payload::UpTo(300), 1))
}

async fn append(lane: &Lane, writers: &mut [Writer], events: usize) {
    for writer in writers {
        writer.append(events).await.unwrap();
    }
    assert!(lane.published(SOON).await, "not everything is published");
}

async fn log(lane: &Lane, id: &StreamId) -> Vec<Event> {
    let log = lane.authority.read_events(id, Seq::ZERO, 1_000, 1 << 20).await;
    log.unwrap()
}

/// Whether SpacetimeDB holds the authority's log, whole and unaltered.
async fn holds_the_log(lane: &Lane, forger: &Forger, id: &StreamId) -> bool {
    forger.read(id).await.unwrap().0 == log(lane, id).await
}

fn end_of(events: &[Event]) -> Position {
    let last = events.last().unwrap();
    Position {
        seq: last.seq,
        chain: last.chain_hash,
    }
}

/// Whether `spacetime-sync verify --deep` finds this in a stream.
async fn verify_finds(lane: &Lane, id: &StreamId, expected: &str) {
    let mut reports = lane.verify().await;
    reports.retain(|report| report.stream_id == *id);
    let finding = reports.first().and_then(|report| report.findings.first());
    assert!(
        matches!(finding, Some(Finding::Broken { what }) if what.contains(expected)),
        "{reports:?}"
    );
}

/// Whether the bridge has told a person of a forgery, and that it publishes again what follows a seq.
fn told(bridge: &Bridge, id: &StreamId, after: u64) -> bool {
    let of_stream = format!("wrote events of stream {id} into SpacetimeDB");
    let from = format!("after seq {after} again");
    let said = bridge.process.log();
    let mut errors = said.lines().filter(|line| line.contains("ERROR"));
    errors.any(|line| line.contains(&of_stream) && line.contains(&from))
}

async fn counted(bridge: &Bridge, walks: u64, forgeries: u64) {
    let metrics = bridge.text("/metrics").await.unwrap();
    for (name, value) in [("walks", walks), ("forgeries", forgeries)] {
        let line = format!("\nspacetime_sync_{name}_total {value}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

/// Waits until a client is live at so many events, and checks that they are the authority's, and that it never started over.
async fn went_on(client: &Follower, lane: &Lane, events: u64) {
    client.until_applied(events, SOON).await.unwrap();
    client.until_live(SOON).await.unwrap();
    let verdict = client.compare(&lane.authority).await.unwrap();
    assert!(verdict.is_equal() && verdict.applied == events, "{verdict:?}");
    let status = client.status();
    let counters = &status["counters"];
    assert!(counters["restarts"] == 0 && counters["rebootstraps"] == 0, "{counters}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_event_in_an_idle_stream_is_removed_once_a_client_has_reported_it() {
    let (lane, bridge) = compared().await;
    let streams = [stream(1), stream(2)];
    let [followed, unread] = &streams;
    let mut writers = writers(&lane, &streams);
    append(&lane, &mut writers, 5).await;
    let mut client = lane.client(std::slice::from_ref(followed)).await.unwrap();
    client.start().unwrap();
    client.until_applied(5, SOON).await.unwrap();
    client.until_live(SOON).await.unwrap();

    let forger = lane.forger().await.unwrap();
    for id in &streams {
        let (held, seal) = forger.read(id).await.unwrap();
        let end = end_of(&held);
        let next = invented(end, 1).unwrap();
        // It has no other seal to show than that of another position.
        forger.write(id, end, &next, seal.as_ref()).await.unwrap();
    }
    assert_eq!(lane.held(&streams).await.unwrap(), [6, 6]);
    let noticed = || client.log().contains("not proven to be the authority's");
    wait(SOON, "the client notices the forged event", noticed).await;

    wait(HEALED, "the bridge tells a person", || told(&bridge, followed, 5)).await;
    wait_for(SOON, "the forged event is removed", async || {
        holds_the_log(&lane, &forger, followed).await
    })
    .await;
    counted(&bridge, 2, 1).await;
    // By itself the bridge has not looked: nobody reads the other stream, and there the forged event is still.
    assert!(!holds_the_log(&lane, &forger, unread).await);
    assert!(!told(&bridge, unread, 5));

    append(&lane, &mut writers[..1], 1).await;
    went_on(&client, &lane, 6).await;
    // The next event of the other stream does not fit what SpacetimeDB holds there.
    append(&lane, &mut writers[1..], 1).await;
    counted(&bridge, 2, 2).await;
    lane.verified().await;
    let (healthy, health) = bridge.ask("/healthz").await.unwrap();
    assert!(healthy, "{health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_altered_within_a_window_is_replaced_once_clients_have_reported_it() {
    let (lane, bridge) = compared().await;
    let streams = [stream(1), stream(2), stream(3), stream(4)];
    let [replaced, altered, garbled, dated] = &streams;
    let mut writers = writers(&lane, &streams);
    append(&lane, &mut writers, 4).await;
    append(&lane, &mut writers, 6).await;
    let mut away = lane.client(&streams).await.unwrap();
    away.start().unwrap();
    away.until_applied(40, SOON).await.unwrap();
    away.kill();

    let forger = lane.forger().await.unwrap();
    // Other events in place of the last six.
    let kept = end_of(&log(&lane, replaced).await[..4]);
    let others = invented(kept, 6).unwrap();
    forger.write(replaced, kept, &others, None).await.unwrap();
    // The same events, one with another payload. All hashes are as they were, and so is the seal: where the log ends, nothing
    // has changed.
    let (mut events, seal) = forger.read(altered).await.unwrap();
    events[6].payload = Bytes::from_static(b"not of the authority");
    let kept = end_of(&events[..4]);
    forger.write(altered, kept, &events[4..], seal.as_ref()).await.unwrap();
    // Bytes that are no frame, said to be the same events. The module does not look into them.
    let events = log(&lane, garbled).await;
    let (kept, end) = (end_of(&events[..4]), end_of(&events));
    let garbage = Bytes::from_static(&[0xff; limit::FRAME_PADDED_BYTES]);
    forger
        .write_bytes(garbled, kept, end, 1, garbage.clone())
        .await
        .unwrap();
    // The same events, said to have been committed at another time, which no client looks at. What follows them brings the
    // report.
    let events = log(&lane, dated).await;
    let [kept, middle, end] = [4, 8, 10].map(|to| end_of(&events[..to]));
    let seal = lane.seal(dated, &middle).unwrap();
    let sealed = Frame::encode(&events[4..8], Some(&seal));
    forger.write_bytes(dated, kept, middle, i64::MAX, sealed).await.unwrap();
    forger.write_bytes(dated, middle, end, 1, garbage).await.unwrap();
    assert_eq!(lane.held(&streams).await.unwrap(), [10; 4]);
    for (id, found) in [
        (replaced, "the frame at seq 5 is not the authority's"),
        (altered, "the payload of seq 7 is not what was hashed"),
        (garbled, "the frame at seq 5 is invalid"),
        (dated, "the row at seq 5 says that its last event was committed at"),
    ] {
        verify_finds(&lane, id, found).await;
    }

    let mut late = Vec::new();
    for (id, seen) in [
        (replaced, "not proven to be the authority's"),
        (altered, "it was altered on its way"),
        (garbled, "is invalid"),
        (dated, "is invalid"),
    ] {
        let mut client = lane.client(std::slice::from_ref(id)).await.unwrap();
        client.start().unwrap();
        let noticed = || client.log().contains(seen);
        wait(SOON, "the client notices what is not the authority's", noticed).await;
        // It has the authority's events from the bridge.
        client.until_applied(10, SOON).await.unwrap();
        late.push(client);
    }
    for (id, after) in [(replaced, 0), (altered, 4), (garbled, 4), (dated, 4)] {
        wait(HEALED, "the bridge tells a person", || told(&bridge, id, after)).await;
        wait_for(SOON, "the authority's events are back", async || {
            holds_the_log(&lane, &forger, id).await
        })
        .await;
    }
    counted(&bridge, 8, 4).await;

    append(&lane, &mut writers, 1).await;
    for client in &late {
        went_on(client, &lane, 11).await;
    }
    away.start().unwrap();
    went_on(&away, &lane, 44).await;
    lane.verified().await;
    let (healthy, health) = bridge.ask("/healthz").await.unwrap();
    assert!(healthy, "{health}");
}
