//! Who sees an assignment and its history, by SQL and by subscription, while its audience changes.

use std::time::Duration;

use serde_json::json;
use spacetime_sync_bindings::{ComputeAssignmentChangeTableAccess as _, ComputeAssignmentTableAccess as _};
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_stdb::admin::Credential;
use spacetime_sync_tests::lane::wait;
use spacetimedb_sdk::Table as _;

use super::{ASKS, is};
use crate::access::guarded::Guarded;
use crate::lane::hostile::newcomer;
use crate::lane::hostile::visibility::Listener;

const SOON: Duration = Duration::from_secs(20);

/// Who is there: a requester and another session of its user, two providers, one who may only read, and one from outside.
struct Cast {
    guarded: Guarded,
    asks: Credential,
    beside: Credential,
    one: Credential,
    two: Credential,
    reads: Credential,
}

impl Cast {
    async fn gather() -> Self {
        let guarded = Guarded::start().await;
        Self {
            asks: guarded.scoped("7", "asks", ASKS),
            beside: guarded.scoped("7", "beside", &["sync.subscribe"]),
            one: guarded.provider("8", "one", "p1").await,
            two: guarded.provider("9", "two", "p2").await,
            reads: guarded.scoped("10", "reads", &["sync.subscribe", "sync.assignment.open"]),
            guarded,
        }
    }

    /// Which of them see the assignment, and with it its whole history.
    async fn seen_by(&self, request: &str) -> Vec<&'static str> {
        let mut seen_by = Vec::new();
        for (name, who) in [
            ("asks", &self.asks),
            ("beside", &self.beside),
            ("one", &self.one),
            ("two", &self.two),
            ("reads", &self.reads),
        ] {
            let row = self
                .guarded
                .assignments(who)
                .await
                .into_iter()
                .find(|row| row.0 == request);
            let history = self.guarded.history(who, request).await;
            match row {
                Some((_, version, ..)) => {
                    let versions: Vec<u64> = history.iter().map(|change| change.0).collect();
                    assert_eq!(versions, (1..=version).collect::<Vec<_>>(), "{name} sees {request}");
                    seen_by.push(name);
                }
                None => assert_eq!(history, [], "{name} sees the history of {request} alone"),
            }
        }
        seen_by
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_is_seen_by_its_parties_and_while_it_is_open_to_all_by_all_providers() {
    let cast = Cast::gather().await;
    let guarded = &cast.guarded;
    guarded.open(&cast.asks, "r1", "", "{}", 600).await.done();
    assert_eq!(cast.seen_by("r1").await, ["asks", "beside", "one", "two"]);
    guarded.update(&cast.one, "r1", 1, "accepted", "p1").await.done();
    assert_eq!(cast.seen_by("r1").await, ["asks", "beside", "one"]);
    guarded.update(&cast.one, "r1", 2, "open", "").await.done();
    assert_eq!(cast.seen_by("r1").await, ["asks", "beside", "one", "two"]);
    guarded.update(&cast.asks, "r1", 3, "offered", "p2").await.done();
    assert_eq!(cast.seen_by("r1").await, ["asks", "beside", "two"]);
    guarded.update(&cast.two, "r1", 4, "accepted", "").await.done();
    guarded.update(&cast.two, "r1", 5, "failed", "").await.done();
    assert_eq!(cast.seen_by("r1").await, ["asks", "beside", "two"]);

    // What is offered to one alone stays hidden from the others when that one declines.
    guarded.open(&cast.asks, "r2", "p1", "{}", 600).await.done();
    assert_eq!(cast.seen_by("r2").await, ["asks", "beside", "one"]);
    guarded.update(&cast.one, "r2", 1, "open", "").await.done();
    assert_eq!(cast.seen_by("r2").await, ["asks", "beside"]);
    let forbidden = RefusalCode::ForbiddenAssignment;
    for (who, request) in [
        (&cast.one, "r2"),
        (&cast.two, "r2"),
        (&cast.reads, "r2"),
        (&cast.reads, "r1"),
    ] {
        let there = guarded
            .update(who, request, 2, "accepted", "p2")
            .await
            .refused(forbidden);
        let not_there = guarded.update(who, "r9", 2, "accepted", "p2").await.refused(forbidden);
        assert_eq!(there, not_there, "nobody learns which assignments there are");
    }
    guarded.update(&cast.asks, "r2", 2, "open", "").await.done();
    assert_eq!(cast.seen_by("r2").await, ["asks", "beside", "one", "two"]);
    guarded.update(&cast.asks, "r2", 3, "cancelled", "").await.done();
    assert_eq!(cast.seen_by("r2").await, ["asks", "beside"]);

    // One user may be both.
    let both = guarded.scoped("8", "both", ASKS);
    guarded.open(&both, "r3", "p1", "{}", 600).await.done();
    assert_eq!(cast.seen_by("r3").await, ["one"]);
    guarded.update(&cast.one, "r3", 1, "accepted", "").await.done();
    guarded.update(&both, "r3", 2, "cancelled", "").await.done();
    assert_eq!(cast.seen_by("r3").await, ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_took_part_once_learns_nothing_more_by_the_name_of_its_change() {
    let cast = Cast::gather().await;
    let guarded = &cast.guarded;
    guarded.open(&cast.asks, "r1", "p1", "{}", 600).await.done();
    let decline = async |document| guarded.change(&cast.one, "r1", "u1", 1, "open", ["", document]).await;
    decline("").await.done();
    guarded.update(&cast.asks, "r1", 2, "offered", "p2").await.done();
    assert_eq!(cast.seen_by("r1").await, ["asks", "beside", "two"]);
    // It may hear that its own change was made, and nothing of what came after.
    decline("").await.done();
    let refusal = decline(r#"{"why":"busy"}"#)
        .await
        .refused(RefusalCode::AssignmentConflict);
    assert!(refusal.message.contains("u1"), "{refusal}");
    for secret in ["p2", "offered", "version 3"] {
        assert!(!refusal.message.contains(secret), "{refusal}");
    }
    guarded
        .update(&cast.one, "r1", 3, "accepted", "p1")
        .await
        .refused(RefusalCode::ForbiddenAssignment);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_what_is_anothers_whatever_the_query_and_everybody_sees_capabilities() {
    let cast = Cast::gather().await;
    let module = &cast.guarded.module;
    let [request, document] = ["secret-request", r#"{"a":"secret-document"}"#];
    cast.guarded.open(&cast.asks, request, "p1", document, 600).await.done();
    cast.guarded.update(&cast.one, request, 1, "accepted", "").await.done();
    let owned = module
        .sql(Some(&module.owner), "SELECT audience_key FROM compute_assignment")
        .await
        .unwrap();
    assert_eq!(owned.len(), 2);
    let key = owned[0][0].as_u64().unwrap();
    let by_hand = newcomer(&module.server).await;
    module
        .as_owner()
        .grant(
            &by_hand.identity,
            &crate::lane::hostile::stream("notes"),
            Duration::from_secs(600),
        )
        .await
        .unwrap();
    for table in ["compute_assignment", "compute_assignment_change"] {
        let all = format!("SELECT * FROM {table}");
        let join = format!("SELECT t.* FROM {table} t JOIN stream_grant g ON t.audience_key = g.stream_key");
        for statement in [
            all.clone(),
            format!("{all} WHERE audience_key = {key}"),
            format!("{all} WHERE audience_key = {key} OR audience_key = 0"),
            format!("{all} WHERE request_id = '{request}'"),
            join.clone(),
            format!("{join} WHERE t.audience_key = {key}"),
        ] {
            for who in [&cast.two, &cast.reads, &by_hand, &module.bridge] {
                // A statement that the server refuses shows nothing either.
                let rows = module.sql(Some(who), &statement).await.unwrap_or_default();
                assert!(rows.is_empty(), "{statement}: {rows:?}");
            }
        }
        let count = format!("SELECT COUNT(*) AS n FROM {table}");
        assert_eq!(module.sql(Some(&cast.two), &count).await.unwrap()[0][0], json!(0));
        for who in [&cast.asks, &cast.beside, &cast.one] {
            let rows = json!(module.sql(Some(who), &all).await.unwrap()).to_string();
            assert!(rows.contains(request), "{rows}");
        }
    }
    // What names a user is for the owner alone.
    for table in ["assignment_party", "assignment_update", "capability_claim"] {
        let all = format!("SELECT * FROM {table}");
        assert!(
            !module.sql(Some(&module.owner), &all).await.unwrap().is_empty(),
            "{table}"
        );
        for who in [&cast.asks, &cast.one, &cast.reads, &by_hand, &module.bridge] {
            let refused = module.sql(Some(who), &all).await.unwrap_err();
            assert!(refused.contains("no such table"), "{table}: {refused}");
        }
    }
    for who in [&cast.asks, &cast.reads, &by_hand] {
        let rows = module
            .sql(Some(who), "SELECT provider_id FROM provider_capability")
            .await;
        let mut names: Vec<_> = rows.unwrap().iter().map(|row| super::text(&row[0])).collect();
        names.sort();
        assert_eq!(names, ["p1", "p2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_follows_the_audience() {
    let cast = Cast::gather().await;
    let guarded = &cast.guarded;
    let mut listeners = Vec::new();
    for who in [&cast.asks, &cast.one, &cast.two, &cast.reads] {
        let listener = Listener::connect(&guarded.module, who).await;
        for table in ["compute_assignment", "compute_assignment_change"] {
            listener.subscribe(&format!("SELECT * FROM {table}")).await.unwrap();
        }
        listeners.push(listener);
    }
    let [asks, one, two, reads] = listeners.try_into().ok().unwrap();
    let holds = |listener: &Listener| {
        let db = &listener.connection.db;
        let rows: Vec<_> = db.compute_assignment().iter().collect();
        let mut versions: Vec<u64> = db.compute_assignment_change().iter().map(|row| row.version).collect();
        versions.sort_unstable();
        match rows.as_slice() {
            [] => (None, versions),
            [row] => (Some(row.status.clone()), versions),
            more => panic!("an assignment is there twice: {more:?}"),
        }
    };
    let becomes = async |listener: &Listener, status: Option<&str>, changes: u64| {
        let expected = (status.map(str::to_owned), (1..=changes).collect::<Vec<_>>());
        let what = format!("a listener holds {expected:?}");
        wait(SOON, &what, || holds(listener) == expected).await;
    };
    guarded.open(&cast.asks, "r1", "", "{}", 600).await.done();
    for listener in [&asks, &one, &two] {
        becomes(listener, Some("open"), 1).await;
    }
    guarded.update(&cast.one, "r1", 1, "accepted", "p1").await.done();
    becomes(&two, None, 0).await;
    for listener in [&asks, &one] {
        becomes(listener, Some("accepted"), 2).await;
    }
    guarded.update(&cast.one, "r1", 2, "open", "").await.done();
    for listener in [&asks, &one, &two] {
        becomes(listener, Some("open"), 3).await;
    }
    // A session that may not provide any more sees nothing of it, on a live connection too.
    let fewer = guarded.scoped("9", "two", &["sync.subscribe"]);
    assert_eq!(guarded.assignments(&fewer).await, []);
    becomes(&two, None, 0).await;
    let revoke = json!(["one"]);
    let module = &guarded.module;
    module.call(Some(&module.owner), "revoke_session", &revoke).await.done();
    becomes(&one, None, 0).await;
    assert_eq!(guarded.assignments(&cast.asks).await, [is("r1", 3, "open", "")]);
    for listener in [&one, &two, &reads] {
        listener.fence().await;
        assert_eq!(holds(listener), (None, Vec::new()));
    }
}
