//! The outbox: who sees it and changes it, what a repeat does, and its bounds.

use serde_json::json;
use spacetime_sync_client::{CallError, OutboxEvent, OutboxOutcome, OutboxStatus, SeenOutboxEvent};
use spacetime_sync_proto::{RefusalCode, limit};
use spacetime_sync_stdb::admin::Credential;

use super::work::{LONG, Stage, becomes};
use super::{ASKS, MIRRORS, PROVIDES, text};
use crate::access::guarded::Guarded;
use crate::lane::hostile::Said;

impl Guarded {
    async fn enqueue(&self, who: &Credential, event: &str, payload: &str) -> Said {
        let arguments = json!([event, "nostr", payload]);
        self.module.call(Some(who), "enqueue_bridge_event", &arguments).await
    }

    async fn mark(&self, who: &Credential, event: &str, published_as: &str) -> Said {
        let arguments = json!([event, published_as]);
        self.module.call(Some(who), "mark_bridge_event_sent", &arguments).await
    }

    /// What a caller sees of the outbox: name, payload, status, as what it was sent.
    async fn outbox(&self, who: &Credential) -> Vec<[String; 4]> {
        let statement = "SELECT event_id, payload, status, published_as FROM bridge_outbox";
        let rows = self.module.sql(Some(who), statement).await.unwrap();
        let mut seen: Vec<_> = rows
            .iter()
            .map(|row| [0, 1, 2, 3].map(|column: usize| text(&row[column])))
            .collect();
        seen.sort();
        seen
    }
}

fn event(event: &str, payload: &str, status: &str, published_as: &str) -> [String; 4] {
    [event, payload, status, published_as].map(str::to_owned)
}

#[tokio::test]
async fn only_a_mirror_sees_the_outbox_and_changes_it() {
    let guarded = Guarded::start().await;
    let mirror = guarded.scoped("7", "mirror", MIRRORS);
    guarded.enqueue(&mirror, "e1", "{}").await.done();
    let waits = [event("e1", "{}", "pending", "")];
    assert_eq!(guarded.outbox(&mirror).await, waits);
    let other = guarded.scoped("8", "mirror-of-another-user", MIRRORS);
    assert_eq!(guarded.outbox(&other).await, waits, "mirrors share the outbox");
    for scopes in [ASKS, PROVIDES, &["sync.subscribe"]] {
        let stranger = guarded.scoped("7", &format!("s{}", scopes.len()), scopes);
        let refused = guarded.enqueue(&stranger, "e2", "{}").await;
        refused.refused(RefusalCode::MissingScope);
        guarded
            .mark(&stranger, "e1", "n1")
            .await
            .refused(RefusalCode::MissingScope);
        assert_eq!(guarded.outbox(&stranger).await, [[""; 4]; 0], "{scopes:?}");
    }
    guarded.mark(&other, "e1", "n1").await.done();
    assert_eq!(guarded.outbox(&mirror).await, [event("e1", "", "sent", "n1")]);
}

#[tokio::test]
async fn an_event_is_put_in_once_and_sent_as_one_thing() {
    let guarded = Guarded::start().await;
    let mirror = guarded.scoped("7", "mirror", MIRRORS);
    let conflict = RefusalCode::OutboxConflict;
    for _ in 0..2 {
        guarded.enqueue(&mirror, "e1", "{\"a\":1}").await.done();
    }
    guarded.enqueue(&mirror, "e1", "{\"a\":2}").await.refused(conflict);
    assert_eq!(guarded.outbox(&mirror).await, [event("e1", "{\"a\":1}", "pending", "")]);
    guarded.mark(&mirror, "e2", "n2").await.refused(conflict);
    for _ in 0..2 {
        guarded.mark(&mirror, "e1", "n1").await.done();
    }
    for other in ["n2", ""] {
        guarded.mark(&mirror, "e1", other).await.refused(conflict);
    }
    // A late repeat brings nothing back.
    guarded.enqueue(&mirror, "e1", "{\"a\":1}").await.done();
    guarded.enqueue(&mirror, "e1", "{\"a\":2}").await.refused(conflict);
    assert_eq!(guarded.outbox(&mirror).await, [event("e1", "", "sent", "n1")]);
    // What was dropped may turn out to have been sent.
    guarded.enqueue(&mirror, "e3", "{}").await.done();
    for (published_as, status) in [("", "dropped"), ("n3", "sent")] {
        guarded.mark(&mirror, "e3", published_as).await.done();
        assert_eq!(guarded.outbox(&mirror).await[1], event("e3", "", status, published_as));
    }
    for (id, payload) in [("", "{}"), ("e 4", "{}"), ("e4", "[]"), ("e4", "")] {
        let refused = guarded.enqueue(&mirror, id, payload).await;
        refused.refused(RefusalCode::InvalidArgument);
    }
}

#[tokio::test]
async fn a_flood_is_bounded_and_what_waits_is_not_lost() {
    let guarded = Guarded::start().await;
    let mirror = guarded.scoped("7", "mirror", MIRRORS);
    let most = limit::OUTBOX_PENDING;
    for at in 0..most {
        guarded.enqueue(&mirror, &format!("e{at}"), "{}").await.done();
    }
    let full = guarded.enqueue(&mirror, "more", "{}").await;
    full.refused(RefusalCode::OutboxFull);
    guarded.enqueue(&mirror, "e0", "{}").await.done();
    // Each that was sent makes room for one.
    guarded.mark(&mirror, "e0", "n0").await.done();
    guarded.enqueue(&mirror, "more", "{}").await.done();
    let full = guarded.enqueue(&mirror, "much-more", "{}").await;
    full.refused(RefusalCode::OutboxFull);
    // What was sent first is forgotten first.
    for at in 1..limit::OUTBOX_SENT {
        guarded.mark(&mirror, &format!("e{at}"), "n").await.done();
    }
    let done = |seen: &[[String; 4]]| seen.iter().filter(|event| event[2] == "sent").count();
    let seen = guarded.outbox(&mirror).await;
    assert_eq!(
        (seen.len(), done(&seen)),
        (1 + limit::OUTBOX_SENT as usize, limit::OUTBOX_SENT as usize)
    );
    guarded.mark(&mirror, "more", "n").await.done();
    let seen = guarded.outbox(&mirror).await;
    assert_eq!(
        (seen.len(), done(&seen)),
        (limit::OUTBOX_SENT as usize, limit::OUTBOX_SENT as usize)
    );
    assert!(!seen.iter().any(|event| event[0] == "e0"), "e0 was sent first");
    let counts = guarded
        .module
        .sql(Some(&guarded.module.owner), "SELECT pending, done FROM outbox_count")
        .await;
    assert_eq!(counts.unwrap()[0], json!([0, limit::OUTBOX_SENT]));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_watch_the_outbox_and_their_calls_are_done_once_over_a_lost_answer() {
    let stage = Stage::set().await;
    let (runtime, mirror) = (stage.shaky("7", "runtime"), stage.steady("8", "mirror"));
    let [mut puts, mut sends] = [runtime.outbox(), mirror.outbox()];
    becomes(&mut puts, "the outbox is live", |seen| {
        seen.is_live() && seen.rows.is_empty()
    })
    .await;
    let event = |payload: &str| OutboxEvent {
        event_id: "e1".to_owned(),
        transport: "nostr".to_owned(),
        payload: payload.to_owned(),
    };
    let put = runtime.enqueue_event(event("{}"), LONG);
    let statement = "SELECT event_id FROM bridge_outbox";
    stage.loses_the_answer(put, statement).await.unwrap();
    becomes(&mut sends, "the event waits", |seen| {
        let waits = |one: &SeenOutboxEvent| {
            one.status == OutboxStatus::Pending && one.payload.as_deref() == Some("{}") && one.transport == "nostr"
        };
        seen.is_live() && seen.rows.len() == 1 && seen.rows.get("e1").is_some_and(waits)
    })
    .await;
    let other = runtime.enqueue_event(event("{ }"), LONG).await;
    let Err(CallError::Refused(refusal)) = other else {
        panic!("{other:?}");
    };
    assert_eq!(refusal.code, RefusalCode::OutboxConflict);
    let sent = OutboxOutcome {
        event_id: "e1".to_owned(),
        published_as: Some("n1".to_owned()),
    };
    mirror.mark_event(sent, LONG).await.unwrap();
    becomes(&mut puts, "the event was sent", |seen| {
        let is_sent = |one: &SeenOutboxEvent| {
            one.status == OutboxStatus::Sent && one.payload.is_none() && one.published_as.as_deref() == Some("n1")
        };
        seen.is_live() && seen.rows.get("e1").is_some_and(is_sent)
    })
    .await;
    for client in [runtime, mirror] {
        client.stop().await;
    }
}
