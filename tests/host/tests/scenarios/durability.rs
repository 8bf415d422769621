//! What was acknowledged as durable survives a SIGKILL.

use std::collections::BTreeSet;

use spacetimedb_client_api_messages::websocket::v2::ServerMessage;

use crate::support::{DEADLINE, Host, Person, Socket, outcome};

/// Number of calls in flight at once.
const IN_FLIGHT: u64 = 64;

/// Adds notes from `first` on until `enough` are acknowledged, then kills the host with more calls in flight. Returns
/// the acknowledged notes.
async fn stream_into_a_kill(host: Host, owner: &Person, first: u64, enough: usize) -> BTreeSet<u64> {
    let mut socket = Socket::open(&host, "demo", owner).await;
    let mut acknowledged = BTreeSet::new();
    let mut sent = Vec::new();
    let mut next = first;
    while acknowledged.len() < enough {
        while (sent.len() - acknowledged.len()) < IN_FLIGHT as usize {
            let id = socket.start_call("add_note", &(next, "x".repeat(200))).await;
            assert_eq!(id as usize, sent.len() + 1, "requests are numbered from one");
            sent.push(next);
            next += 1;
        }
        let message = socket.next().await.expect("the connection holds");
        acknowledged.extend(acknowledgement(&message, &sent));
    }
    host.kill().await;
    // Messages that were sent before the kill can still be read.
    let rest = async {
        while let Ok(message) = socket.next().await {
            acknowledged.extend(acknowledgement(&message, &sent));
        }
    };
    tokio::time::timeout(DEADLINE, rest)
        .await
        .expect("a killed host's connection ends");
    acknowledged
}

/// With confirmed reads the host sends a result only once it is durable.
fn acknowledgement(message: &ServerMessage, sent: &[u64]) -> Option<u64> {
    match message {
        ServerMessage::ReducerResult(result) => {
            outcome(&result.result).expect("adding a note works");
            Some(sent[result.request_id as usize - 1])
        }
        _ => None,
    }
}

#[tokio::test]
async fn everything_acknowledged_survives_a_kill() {
    let (dir, mut host, owner) = Host::with_demo().await;
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        acknowledged.extend(stream_into_a_kill(host, &owner, round * 1_000_000, 1500).await);
        host = Host::start(dir.path()).await;
        let rows = host.rows("demo", "SELECT id FROM note", &owner).await;
        let there: BTreeSet<u64> = rows
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row[0].as_u64().unwrap())
            .collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "acknowledged and lost in round {round}: {lost:?}");
        // One connection's calls run in order, so the remaining notes have no gaps.
        for start in (0..=round).map(|r| r * 1_000_000) {
            let ids: Vec<u64> = there.range(start..start + 1_000_000).copied().collect();
            assert_eq!(ids, (start..start + ids.len() as u64).collect::<Vec<_>>());
        }
    }
    assert!(acknowledged.len() >= 4500);
}
