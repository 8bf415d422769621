//! One hostile session beside an honest client, in each way that a session can do harm.

use clap::ValueEnum as _;
use spacetime_sync_tests::figures::Samples;
use spacetime_sync_tests::hostile::{Hostile, Kind};
use spacetime_sync_tests::lane::wait_for;

use super::*;

/// Single events of the honest client without and with somebody hostile beside it, for each kind.
const EVENTS: (u64, u64) = (20, 40);
/// How many times as late an event may come. Two busy cores alone make it twice or three times.
const RATIO: f64 = 5.0;
/// Percentiles of the latency, and the milliseconds that each may lose besides, because one pause of a busy machine is
/// longer than a quiet event takes.
const BUSY_MS: [(f64, f64); 2] = [(50.0, 50.0), (90.0, 150.0)];
/// The gate's limits of calls: so many in a second, and so many at once.
const CALLS: (u64, u64) = (50, 500);
/// So many messages pass besides a session's calls: the honest client's, and subscriptions.
const OTHERS: u64 = 200;

/// The latencies of so many events, one after the other.
async fn latencies(writer: &mut Writer, client: &Follower, events: u64) -> Samples {
    let before = client.applied();
    for done in 1..=events {
        writer.append(1).await.unwrap();
        client.until_applied(before + done, SOON).await.unwrap();
    }
    let (id, last) = (writer.stream_id(), before + events);
    let mut samples = Samples::default();
    for us in client.latencies_us(id, before + 1, last).unwrap() {
        samples.record_us(us);
    }
    samples
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_that_does_its_worst_costs_the_honest_client_beside_it_little() {
    let set = [
        ("calls_per_second", CALLS.0.to_string()),
        ("calls_burst", CALLS.1.to_string()),
        // A client that reads nothing is found out while the test lasts.
        ("slow_after_ms", "1000".to_owned()),
        ("buffer_bytes", "1048576".to_owned()),
    ];
    let guarded = Guarded::start(&set).await;
    let Guarded { lane, bridge, gate } = &guarded;
    let (id, log) = (stream(1), stream(2));
    let mut long = Writer::new(&lane.authority, &log, "long", Payload::UpTo(1_000), 2);
    long.append_all(2_000, 500).await.unwrap();
    let mut writer = writer(lane, &id);
    writer.append(1).await.unwrap();
    let honest = guarded.client(std::slice::from_ref(&id), 1).await;
    assert!(lane.published(SOON).await);
    let readable = [log, id.clone()];

    for kind in Kind::value_variants() {
        let quiet = latencies(&mut writer, &honest, EVENTS.0).await;
        let mut signs = Vec::new();
        for sign in kind.signs() {
            signs.push((*sign, sign.read(bridge, gate, None).await.unwrap()));
        }
        let (began, passed) = (Instant::now(), gate.metric("passed_messages_total").await.unwrap());
        let hostile = Hostile::start(lane, bridge, gate, *kind, &readable).await.unwrap();
        let beside = latencies(&mut writer, &honest, EVENTS.1).await;
        if *kind == Kind::CallsOnEight {
            let passed = gate.metric("passed_messages_total").await.unwrap() - passed;
            let most = CALLS.1 + CALLS.0 * (began.elapsed().as_secs() + 1) + OTHERS;
            assert!(passed <= most, "{passed} messages passed, at most {most} may");
        }
        for (sign, before) in signs {
            let what = format!("{kind:?} is held up: {sign:?} rises from {before}");
            let rises = async || sign.read(bridge, gate, Some(&hostile)).await.unwrap() > before;
            wait_for(SOON, &what, rises).await;
        }
        assert!(hostile.is_running(), "{kind:?} has given up");
        for (of_hundred, busy_ms) in BUSY_MS {
            let ms = |samples: &Samples| samples.percentile(of_hundred).unwrap() as f64 / 1_000.0;
            let (quiet, beside) = (ms(&quiet), ms(&beside));
            eprintln!("{kind:?}: p{of_hundred} {beside:.1} ms instead of {quiet:.1} ms");
            let most = RATIO * quiet + busy_ms;
            assert!(
                beside <= most,
                "{kind:?}: p{of_hundred} {beside:.1} ms, at most {most:.1} ms: {:?}",
                hostile.tally()
            );
        }
    }

    // Where nothing limits calls, the same client brings through what no gate above let through.
    let much = || "1000000".to_owned();
    let open = lane
        .gate(&[("calls_per_second", much()), ("calls_burst", much())])
        .unwrap();
    open.until_ready(true).await.unwrap();
    let _flood = Hostile::start(lane, bridge, &open, Kind::CallsOnEight, &readable)
        .await
        .unwrap();
    let much = 4 * CALLS.1;
    let passes = async || open.metric("passed_messages_total").await.unwrap() > much;
    wait_for(SOON, "calls pass a gate that does not limit them", passes).await;

    assert_eq!(honest.status()["phase"], "live", "{}", honest.log());
    assert!(honest.compare(&lane.authority).await.unwrap().is_equal());
}
