//! Rights end when they end: what a newer token, a revocation or time has taken comes back only with a newer token, or with
//! a new grant by hand.

use std::time::Duration;

use serde_json::json;
use spacetime_sync_issuer::keys::now;
use spacetime_sync_proto::{RefusalCode, limit};
use spacetime_sync_tests::lane::wait_for;

use super::guarded::Guarded;
use super::sessions::append_all;
use crate::lane::hostile::{Module, identity, newcomer, stream};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn an_older_token_does_not_open_a_session_again_whose_newest_token_has_ended() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let id = stream("user:7:secret");
    append_all(module, &id, 1).await;
    let read = json!([id.as_str(), 0]);
    let token = |signed: u64, ends: u64, streams: &[&str]| {
        let mut claims = guarded.issuer.claims("7", "s1", streams);
        for (claim, time) in [("iat", signed), ("nbf", signed), ("exp", ends)] {
            claims[claim] = json!(time);
        }
        guarded.with(&claims)
    };
    let broad = token(now() - 10, now() + 300, &["user:7:*"]);
    module.call(Some(&broad), "read_events", &read).await.done();
    let narrow = token(now(), now() + 2, &["user:7:other"]);
    let said = module.call(Some(&narrow), "read_events", &read).await;
    said.refused(RefusalCode::ForbiddenStream);
    wait_for(SOON, "the narrow token has ended and was swept", async || {
        let sessions = module.sql(Some(&module.owner), "SELECT * FROM sync_session").await;
        sessions.is_ok_and(|sessions| sessions.is_empty())
    })
    .await;
    let said = module.call(Some(&broad), "read_events", &read).await;
    said.refused(RefusalCode::TokenExpired);
    let renewed = token(now(), now() + 300, &["user:7:*"]);
    module.call(Some(&renewed), "read_events", &read).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_stream_comes_back_with_a_newer_token_alone() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let id = stream("user:7:notes");
    append_all(module, &id, 1).await;
    let read = json!([id.as_str(), 0]);
    let holder = guarded.session("7", "s1", &[id.as_str()]);
    module.call(Some(&holder), "read_events", &read).await.done();
    let holds = spacetimedb_sdk::Identity::from_claims(&guarded.issuer.url, "user:7/session:s1").to_hex();
    module.as_owner().revoke(&holds, &id).await.unwrap();
    for _ in 0..2 {
        let said = module.call(Some(&holder), "read_events", &read).await;
        said.refused(RefusalCode::ForbiddenStream);
    }
    let newer = guarded.session("7", "s1", &[id.as_str()]);
    module.call(Some(&newer), "read_events", &read).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_by_hand_is_listed_and_ends_by_itself() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let owner = module.as_owner();
    let ids = ["runtime.run.1.events", "runtime.run.2.events"].map(stream);
    for id in &ids {
        append_all(module, id, 1).await;
    }
    let tool = newcomer(&module.server).await;
    let read = async |id: &str| module.call(Some(&tool), "read_events", &json!([id, 0])).await;
    read(ids[0].as_str()).await.refused(RefusalCode::Unauthorized);

    let began = now();
    owner
        .grant(&tool.identity, &ids[0], Duration::from_secs(3))
        .await
        .unwrap();
    owner
        .grant(&tool.identity, &ids[1], Duration::from_secs(1))
        .await
        .unwrap();
    // Given again, it ends later.
    owner
        .grant(&tool.identity, &ids[1], Duration::from_secs(3_600))
        .await
        .unwrap();
    read(ids[0].as_str()).await.done();
    let grants = owner.grants().await.unwrap();
    let mut ends = Vec::new();
    for grant in &grants {
        assert_eq!(grant.identity, tool.identity);
        let (stream_id, at_us) = grant.ends.as_ref().unwrap();
        ends.push((stream_id.as_str(), at_us / 1_000_000 - began));
    }
    assert_eq!(ends.len(), 2, "{grants:?}");
    assert!(ends[0].0 == ids[0].as_str() && (3..20).contains(&ends[0].1), "{ends:?}");
    assert!(
        ends[1].0 == ids[1].as_str() && (3_600..3_620).contains(&ends[1].1),
        "{ends:?}"
    );

    wait_for(SOON, "the first grant has ended", async || {
        owner.grants().await.is_ok_and(|grants| grants.len() == 1)
    })
    .await;
    assert!(now() >= began + 3);
    read(ids[0].as_str()).await.refused(RefusalCode::ForbiddenStream);
    read(ids[1].as_str()).await.done();
    owner.revoke(&tool.identity, &ids[1]).await.unwrap();
    read(ids[1].as_str()).await.refused(RefusalCode::Unauthorized);
    assert_eq!(owner.grants().await.unwrap(), []);
    assert_eq!(guarded.grants().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_by_hand_has_an_end() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    for (seconds, good) in [
        (0, false),
        (1, true),
        (limit::GRANT_SECONDS, true),
        (limit::GRANT_SECONDS + 1, false),
    ] {
        let arguments = json!([identity(&module.bridge), "runtime.run.1.events", seconds]);
        let said = module.call(Some(&module.owner), "grant_stream", &arguments).await;
        assert_eq!(
            said.code(),
            (!good).then_some(RefusalCode::InvalidArgument),
            "{seconds}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_gave_ends_and_what_a_session_has_by_its_token_remains() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let ids = ["user:7:notes", "runtime.run.1.events"].map(stream);
    for id in &ids {
        append_all(module, id, 1).await;
    }
    let session = guarded.session("7", "s1", &["user:7:*"]);
    let read = async |id: &str| module.call(Some(&session), "read_events", &json!([id, 0])).await;
    read(ids[0].as_str()).await.done();
    let owner = module.as_owner();
    let holds = spacetimedb_sdk::Identity::from_claims(&guarded.issuer.url, "user:7/session:s1").to_hex();
    for id in &ids {
        owner.grant(&holds, id, Duration::from_secs(1)).await.unwrap();
    }
    wait_for(SOON, "both grants have ended", async || {
        owner.grants().await.is_ok_and(|grants| grants.is_empty())
    })
    .await;
    read(ids[0].as_str()).await.done();
    read(ids[1].as_str()).await.refused(RefusalCode::ForbiddenStream);

    // What is revoked under a pattern comes back with a newer token, too.
    owner.revoke(&holds, &ids[0]).await.unwrap();
    read(ids[0].as_str()).await.refused(RefusalCode::ForbiddenStream);
    let newer = guarded.session("7", "s1", &["user:7:*"]);
    let read = json!([ids[0].as_str(), 0]);
    module.call(Some(&newer), "read_events", &read).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_by_hand_ends_where_no_issuer_is_trusted_as_well() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    append_all(&module, &id, 1).await;
    let (owner, tool) = (module.as_owner(), newcomer(&module.server).await);
    owner.grant(&tool.identity, &id, Duration::from_secs(1)).await.unwrap();
    wait_for(SOON, "the grant has ended for live connections, too", async || {
        let held = module.sql(Some(&module.owner), "SELECT * FROM stream_grant").await;
        held.is_ok_and(|held| held.is_empty())
    })
    .await;
    assert_eq!(owner.grants().await.unwrap(), []);
}
