use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use spacetime_sync_proto::{Position, Seal, StreamId};
use spacetime_sync_stdb::tokens::TokenSource;

use super::*;

/// A configuration whose authority and SpacetimeDB nobody serves, because these tests only need the runner.
const NOWHERE: [(&str, &str); 5] = [
    ("SPACETIME_SYNC__AUTHORITY__URL", "postgres://nobody@127.0.0.1:1/none"),
    ("SPACETIME_SYNC__SPACETIMEDB__URI", "http://127.0.0.1:1"),
    ("SPACETIME_SYNC__SPACETIMEDB__DATABASE", "lane"),
    ("SPACETIME_SYNC__SPACETIMEDB__TOKEN", "none"),
    ("SPACETIME_SYNC__SEALS__KEYS_DIR", "nowhere"),
];

/// Seals nothing.
struct NoKey;

impl Sealer for NoKey {
    fn seal(&self, _: &StreamId, _: &Position) -> Option<Seal> {
        None
    }

    fn check(&self, _: &StreamId, _: &Position, _: &Seal) -> Option<bool> {
        None
    }

    fn is_ready(&self) -> bool {
        false
    }
}

fn runner() -> Runner {
    let set = NOWHERE.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config = Config::load(None, set.into_iter()).unwrap();
    let target = Target {
        uri: config.spacetimedb.uri.clone(),
        transport: config.spacetimedb.transport().unwrap(),
        database: config.spacetimedb.database.clone(),
        pin: None,
        tokens: TokenSource::Fixed("none".to_owned().into()),
        compatibility: None,
        deadline: Duration::from_secs(1),
    };
    let status = Arc::new(Status::new(Duration::from_secs(10)));
    Runner::new(config, target, Arc::new(NoKey), status, None)
}

#[tokio::test]
async fn a_panic_in_a_task_ends_the_bridge() {
    let mut runner = runner();
    runner.tasks.spawn(async { panic!("on purpose") });
    let (_stop, stopping) = watch::channel(false);
    let (_report, reports) = mpsc::channel(1);
    let ran = AssertUnwindSafe(runner.run(reports, stopping)).catch_unwind();
    let ran = tokio::time::timeout(Duration::from_secs(10), ran).await;
    assert!(ran.expect("the bridge still runs").is_err());
}

#[tokio::test]
async fn a_bridge_without_its_authority_can_be_stopped() {
    let runner = runner();
    let status = runner.status.clone();
    let (stop, stopping) = watch::channel(false);
    let (_report, reports) = mpsc::channel(1);
    let ran = tokio::spawn(runner.run(reports, stopping));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !status.health(Instant::now()).problems[0].contains("not available") {
        assert!(
            Instant::now() < deadline,
            "health does not say that the authority is away"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(true).unwrap();
    let ran = tokio::time::timeout(Duration::from_secs(10), ran).await;
    assert!(ran.expect("the bridge still runs").unwrap().is_ok());
}
