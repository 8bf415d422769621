use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use spacetime_sync_proto::{Refusal, RefusalCode};

use super::*;
use spacetime_sync_stdb::tokens::TokenSource;

/// Where nobody listens: what is tested here is what the pump makes of what it hears.
const NOWHERE: [(&str, &str); 4] = [
    ("SPACETIME_SYNC__AUTHORITY__URL", "postgres://nobody@127.0.0.1:1/none"),
    ("SPACETIME_SYNC__SPACETIMEDB__URI", "http://127.0.0.1:1"),
    ("SPACETIME_SYNC__SPACETIMEDB__DATABASE", "lane"),
    ("SPACETIME_SYNC__SPACETIMEDB__TOKEN", "none"),
];

fn config() -> Config {
    let set = NOWHERE.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Config::load(None, set.into_iter()).unwrap()
}

fn pump(config: &Config) -> Pump<'_> {
    let target = Target {
        uri: config.spacetimedb.uri.clone(),
        database: config.spacetimedb.database.clone(),
        tokens: TokenSource::Fixed(config.spacetimedb.token().unwrap().unwrap()),
        compatibility: None,
        deadline: Duration::from_secs(1),
    };
    let authority = Authority::unconnected(config.authority.url.expose(), 1).unwrap();
    let status = Arc::new(Status::new(Duration::from_secs(10)));
    Pump::new(config, authority, status, target, None)
}

#[tokio::test]
async fn a_panic_in_a_task_of_the_pump_is_one_of_the_pump() {
    let config = config();
    let mut pump = pump(&config);
    pump.tasks.spawn(async { panic!("on purpose") });
    let (_stop, mut stopping) = watch::channel(false);
    let led = AssertUnwindSafe(pump.lead(None, &mut stopping)).catch_unwind();
    let led = tokio::time::timeout(Duration::from_secs(10), led).await;
    assert!(led.expect("it goes on").is_err());
}

#[tokio::test]
async fn a_link_that_is_down_is_not_connected_twice() {
    let config = config();
    let mut pump = pump(&config);
    pump.connect(Duration::ZERO);
    let tasks = pump.tasks.len();
    let mut effects = Vec::new();
    pump.hear(News::EpochBegun, &mut effects);
    pump.answer(Answer::Closed("again".to_owned()), &mut effects);
    pump.carry_out(vec![Effect::DropLink(Refusal::new(RefusalCode::TokenExpired, ""))]);
    assert_eq!(pump.tasks.len(), tasks);
}

#[tokio::test]
async fn a_standby_whose_authority_is_silent_does_not_stand_still() {
    // It is connected to, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let (authority, limit) = (Authority::unconnected(&url, 1).unwrap(), Duration::from_secs(60));
    let (status, start) = (Status::new(limit), Instant::now());
    let turned = async {
        while !status.health(start + limit + LEAD_EVERY / 2).healthy {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = take_lead(&authority, &status) => panic!("who said so?"),
        turned = tokio::time::timeout(Duration::from_secs(10), turned) => turned.unwrap(),
    }
}
