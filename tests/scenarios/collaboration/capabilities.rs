//! What providers say they can do.

use std::time::Duration;

use serde_json::json;
use spacetime_sync_proto::{RefusalCode, limit};
use spacetime_sync_tests::lane::wait_for;

use super::{PROVIDES, micros};
use crate::access::guarded::Guarded;
use crate::lane::hostile::Said;

const SOON: Duration = Duration::from_secs(20);
const CAPABILITIES: &str = "SELECT * FROM provider_capability";

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_changes_nothing_and_versions_only_grow() {
    let guarded = Guarded::start().await;
    let who = guarded.scoped("7", "s1", PROVIDES);
    guarded.publish(&who, "p1", "gpu", 3, r#"{"a":1}"#, 600).await.done();
    let before = guarded.module.everything().await;
    guarded.publish(&who, "p1", "gpu", 3, r#"{"a":1}"#, 600).await.done();
    assert_eq!(
        guarded.module.everything().await,
        before,
        "a repeat changes nothing, and the capability stands no longer"
    );
    for (version, document, seconds, names) in [
        (3, r#"{"a":2}"#, 600, "version 3"),
        (3, r#"{"a":1}"#, 601, "version 3"),
        (2, r#"{"a":1}"#, 600, "at version 3"),
        (1, r#"{"a":2}"#, 600, "at version 3"),
    ] {
        let said = guarded.publish(&who, "p1", "gpu", version, document, seconds).await;
        let refusal = said.refused(RefusalCode::CapabilityConflict);
        assert!(refusal.message.contains(names), "{refusal}");
        assert_eq!(guarded.module.everything().await, before, "{version} {document}");
    }
    guarded.publish(&who, "p1", "gpu", 9, r#"{"a":2}"#, 600).await.done();
    guarded.publish(&who, "p1", "cpu", 1, "{}", 600).await.done();
    let mut rows = guarded
        .column("SELECT version FROM provider_capability")
        .await
        .iter()
        .map(|version| version.as_u64().unwrap())
        .collect::<Vec<_>>();
    rows.sort_unstable();
    assert_eq!(rows, [1, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_ends_by_itself_or_is_withdrawn_and_no_late_call_brings_it_back() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let who = guarded.scoped("7", "s1", PROVIDES);
    let stand = async || {
        let mut standing: Vec<_> = guarded
            .column("SELECT capability FROM provider_capability")
            .await
            .iter()
            .map(super::text)
            .collect();
        standing.sort();
        standing
    };
    guarded.publish(&who, "p1", "brief", 1, "{}", 1).await.done();
    guarded.publish(&who, "p1", "long", 1, "{}", 600).await.done();
    guarded.publish(&who, "p1", "withdrawn", 1, "{}", 600).await.done();
    guarded.publish(&who, "p1", "withdrawn", 2, "{}", 0).await.done();
    assert!(!stand().await.contains(&"withdrawn".to_owned()));
    wait_for(SOON, "the brief one has ended", async || {
        stand().await == ["long".to_owned()]
    })
    .await;
    // What is repeated or comes too late changes nothing.
    for (capability, version, seconds) in [("brief", 1, 1), ("withdrawn", 2, 0)] {
        guarded
            .publish(&who, "p1", capability, version, "{}", seconds)
            .await
            .done();
    }
    let late = guarded.publish(&who, "p1", "withdrawn", 1, "{}", 600).await;
    late.refused(RefusalCode::CapabilityConflict);
    assert_eq!(stand().await, ["long"]);
    guarded.publish(&who, "p1", "brief", 2, "{}", 600).await.done();
    assert_eq!(stand().await, ["brief", "long"]);
    // It is remembered for a week, and what was withdrawn for as long as was first said.
    let times = "SELECT ends_at, until, capability FROM capability_claim";
    for row in module.sql(Some(&module.owner), times).await.unwrap() {
        let longer = micros(&row[1]) - micros(&row[0]) - 7 * 86_400_000_000;
        if super::text(&row[2]) == "withdrawn" {
            assert!((1..=600_000_000).contains(&longer), "{longer}");
        } else {
            assert_eq!(longer, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_over_a_providers_name_while_it_stands_or_when_it_has_just_ended() {
    let guarded = Guarded::start().await;
    let [owner, other_session] = ["s1", "s2"].map(|session| guarded.scoped("7", session, PROVIDES));
    let thief = guarded.scoped("8", "s3", PROVIDES);
    guarded.publish(&owner, "p1", "gpu", 1, "{}", 600).await.done();
    let before = guarded.module.everything().await;
    for (capability, version) in [("gpu", 1), ("gpu", 2), ("another", 1)] {
        let said = guarded.publish(&thief, "p1", capability, version, "{}", 600).await;
        let refusal = said.refused(RefusalCode::CapabilityConflict);
        assert!(!refusal.message.contains('7'), "it names nobody: {refusal}");
    }
    let after = guarded.module.everything().await;
    let capabilities = |all: &[(String, Vec<serde_json::Value>)]| {
        let table = all.iter().find(|(table, _)| table == "provider_capability");
        table.unwrap().1.clone()
    };
    assert_eq!(capabilities(&after), capabilities(&before));
    // Another session of the same user is the same provider.
    guarded.publish(&other_session, "p1", "gpu", 2, "{}", 0).await.done();
    assert_eq!(guarded.column(CAPABILITIES).await.len(), 0);
    let said = guarded.publish(&thief, "p1", "gpu", 9, "{}", 600).await;
    said.refused(RefusalCode::CapabilityConflict);
    guarded.publish(&thief, "p2", "gpu", 1, "{}", 600).await.done();
    guarded.publish(&owner, "p1", "gpu", 3, "{}", 600).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_huge_malformed_or_overflows_is_refused_and_leaves_nothing() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let who = guarded.scoped("7", "s1", PROVIDES);
    guarded.publish(&who, "p1", "gpu", 1, "{}", 600).await.done();
    let before = module.everything().await;
    let sized = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(1_500), "]".repeat(1_500));
    let publish =
        async |arguments: serde_json::Value| module.call(Some(&who), "publish_provider_capability", &arguments).await;
    for arguments in [
        json!(["", "gpu", 2, 0, "", "{}", 60]),
        json!(["p/1", "gpu", 2, 0, "", "{}", 60]),
        json!(["p1", "g pu", 2, 0, "", "{}", 60]),
        json!(["p1", "x".repeat(limit::NAME_BYTES + 1), 2, 0, "", "{}", 60]),
        json!(["p1", "gpu", 0, 0, "", "{}", 60]),
        json!(["p1", "gpu", 2, limit::PRICE_SATS + 1, "", "{}", 60]),
        json!(["p1", "gpu", 2, u64::MAX, "", "{}", 60]),
        json!(["p1", "gpu", 2, 0, "e u", "{}", 60]),
        json!(["p1", "gpu", 2, 0, "", sized(limit::CAPABILITY_BYTES + 1), 60]),
        json!(["p1", "gpu", 2, 0, "", sized(1 << 20), 60]),
        json!(["p1", "gpu", 2, 0, "", deep, 60]),
        json!(["p1", "gpu", 2, 0, "", "", 60]),
        json!(["p1", "gpu", 2, 0, "", "[]", 60]),
        json!(["p1", "gpu", 2, 0, "", "{", 60]),
        json!(["p1", "gpu", 2, 0, "", "{}", limit::CAPABILITY_SECONDS + 1]),
        json!(["p1", "gpu", 2, 0, "", "{}", u64::MAX]),
    ] {
        let said = publish(arguments.clone()).await;
        assert_eq!(
            said.code(),
            Some(RefusalCode::InvalidArgument),
            "{said:?} {arguments:.80}"
        );
    }
    // The server itself refuses what does not fit into the arguments.
    for price in [json!(-1), json!(1.5), json!(1e30), json!("1")] {
        let said = publish(json!(["p1", "gpu", 2, price, "", "{}", 60])).await;
        assert!(matches!(said, Said::Failed(400, _)), "{said:?}");
    }
    assert_eq!(module.everything().await, before);
    let most = json!([
        "p1",
        "gpu",
        u64::MAX,
        limit::PRICE_SATS,
        "eu",
        sized(limit::CAPABILITY_BYTES),
        limit::CAPABILITY_SECONDS
    ]);
    publish(most).await.done();
    let said = guarded.publish(&who, "p1", "gpu", u64::MAX, "{}", 60).await;
    said.refused(RefusalCode::CapabilityConflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_a_bounded_number_of_capabilities() {
    let guarded = Guarded::start().await;
    let [who, again] = ["s1", "s2"].map(|session| guarded.scoped("7", session, PROVIDES));
    for nth in 1..=limit::CAPABILITIES {
        let provider = format!("p{}", nth % 5);
        guarded
            .publish(&who, &provider, &format!("c{nth}"), 1, "{}", 600)
            .await
            .done();
    }
    let said = guarded.publish(&again, "p9", "one-more", 1, "{}", 600).await;
    said.refused(RefusalCode::InvalidArgument);
    let other = guarded.scoped("8", "s3", PROVIDES);
    guarded.publish(&other, "q1", "gpu", 1, "{}", 600).await.done();
    guarded.publish(&who, "p3", "c3", 2, "{}", 0).await.done();
    guarded.publish(&again, "p9", "one-more", 1, "{}", 600).await.done();
    let names = guarded.column("SELECT capability FROM capability_claim").await;
    assert_eq!(names.len(), limit::CAPABILITIES + 1);
    assert!(!names.contains(&json!("c3")), "what was withdrawn has made room");
}
