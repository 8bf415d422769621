//! A whole lane on which every process has the rights that the documents ask for, and no more.

use serde_json::{Value, json};
use spacetime_sync_proto::access::REVOKE_PATH;
use spacetime_sync_tests::issuing::ADMIN;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, wait, wait_for};
use spacetime_sync_tests::tool;

use super::*;

struct Logins {
    runtime: Authority,
    bridge: BridgeOptions,
    reading: BridgeOptions,
}

async fn logins(lane: &Lane) -> Logins {
    let login = async |roles: &[&str]| lane.database.login(roles).await.unwrap().1;
    let options = |url: String| BridgeOptions {
        set: vec![
            ("authority.url", url),
            ("retention.windows", "on".to_owned()),
            ("retention.every_ms", "100".to_owned()),
            ("retention.beat_ms", "50".to_owned()),
            ("sessions.remember_days", "30".to_owned()),
        ],
        ..BridgeOptions::default()
    };
    let runtime = login(&["spacetime_sync_runtime"]).await;
    Logins {
        // The runtime has its own SQL, and may not look which migrations there are.
        runtime: Authority::unconnected(&runtime, 2).unwrap(),
        bridge: options(login(&["spacetime_sync_bridge", "spacetime_sync_purge"]).await),
        reading: options(login(&["spacetime_sync_reading"]).await),
    }
}

async fn operator(lane: &Lane, options: &BridgeOptions, bridge: &Bridge, arguments: &[&str]) -> Value {
    let http = bridge.addr().unwrap();
    let environment = lane.environment(options, http).unwrap();
    let environment: Vec<_> = environment
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let ended = tool::run("spacetime-sync", &[arguments, &["--json"]].concat(), &environment).await;
    serde_json::from_str(&ended.good()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rights_suffice_for_everything() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let Logins {
        runtime,
        bridge: options,
        reading,
    } = logins(&lane).await;
    lane.sql(
        "update runtime.sync_retention set window_events = 50, log_events = 100 where class = 'otherwise';
         update runtime.sync_session_retention set keep = interval '30 days';
         insert into runtime.sync_sessions (session_id, user_id, device_id, bound_at)
             values ('over', 'u', 'd', now() - interval '31 days')",
    )
    .await
    .unwrap();
    let bridge = lane.bridge_with(&options).unwrap();
    let leads = bridge.until("/healthz", SOON, |_, health| health["role"] == "leading");
    leads.await.unwrap();

    // Events flow, and a client gets a token, follows, and is brought up from history.
    let id = spacetime_sync_tests::lane::stream(1);
    let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    for n in 0..300 {
        runtime.append(&id, &event(&format!("{n}"))).await.unwrap();
        if n == 99 {
            assert!(lane.published(SOON).await);
            client.start().unwrap();
            wait(SOON, "the client applies 100 events", || client.applied() >= 100).await;
            client.kill();
        }
    }
    assert!(lane.published(SOON).await);
    let purged = async || lane.authority.extent(&id).await.unwrap().unwrap().oldest_seq.get() == 201;
    wait_for(SOON, "the bridge has purged", purged).await;
    let mut late = lane
        .client(std::slice::from_ref(&id))
        .await
        .unwrap()
        .option("--on-stale", "restart");
    late.start().unwrap();
    wait(SOON, "the late client applies what is kept", || late.applied() >= 100).await;
    wait_for(SOON, "the old session is forgotten", async || {
        let over = "select count(*) from runtime.sync_sessions where session_id = 'over'";
        sqlx::query_scalar::<_, i64>(over)
            .fetch_one(&mut owner(&lane.database).await)
            .await
            .unwrap()
            == 0
    })
    .await;

    // An admin ends a session.
    let session = late.session().unwrap();
    let request = reqwest::Client::new().post(format!("{}{REVOKE_PATH}", bridge.url()));
    let body = json!({ "session_ids": [session, "never-seen"], "reason": "a lost device" });
    let response = request.bearer_auth(ADMIN).json(&body).send().await.unwrap();
    let answer: Value = response.error_for_status().unwrap().json().await.unwrap();
    assert_eq!(
        (&answer["delivered"], &answer["unknown"]),
        (&json!(true), &json!(["never-seen"])),
        "{answer}"
    );

    // An operator looks with the right to read, and repairs with the bridge's rights.
    for arguments in [&["verify", "--deep"][..], &["parity", "--whole"]] {
        operator(&lane, &reading, &bridge, arguments).await;
        operator(&lane, &options, &bridge, arguments).await;
    }
    let epoch = lane.authority.epoch().await.unwrap().epoch;
    operator(&lane, &options, &bridge, &["rewind"]).await;
    operator(&lane, &options, &bridge, &["republish", "--all"]).await;
    assert_ne!(lane.authority.epoch().await.unwrap().epoch, epoch);
    runtime.append(&id, &event("after the repair")).await.unwrap();
    assert!(lane.published(SOON).await);
    let healthy = bridge.until("/healthz", SOON, |good, health| good && health["halted"] == json!([]));
    healthy.await.unwrap();

    // Everything that they did is on record.
    let acts = audit::acts(&lane.database).await;
    for (act, actor) in [
        ("open_session", "user:"),
        ("revoke_session", "admin"),
        ("rewind_stream", "operator:"),
        ("begin_epoch", "operator:"),
    ] {
        let is_there = |found: &audit::Found| found.act == act && found.actor.starts_with(actor);
        assert!(acts.iter().any(is_there), "{act} by {actor} in {acts:?}");
    }

    // A standby takes over.
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let standby = lane.bridge_with(&options).unwrap();
    let leads = standby.until("/healthz", SOON, |_, health| health["role"] == "leading");
    leads.await.unwrap();
    assert_eq!(standby.stop().await.unwrap(), 0);
    for bridge in [&bridge, &standby] {
        let log = bridge.process.log();
        assert!(
            !log.contains("denies access") && !log.contains("permission denied"),
            "{log}"
        );
    }
}
