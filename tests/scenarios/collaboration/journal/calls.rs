//! The module's calls about the journal, made one by one in the bridge's place.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use spacetime_sync_proto::journal::{PAGE_BYTES, PAGE_ENTRIES};
use spacetime_sync_proto::{RefusalCode, limit};

use super::super::{ASKS, PROVIDES, is, text};
use crate::access::guarded::Guarded;
use crate::lane::hostile::Said;

const SOON: Duration = Duration::from_secs(30);

impl Guarded {
    /// Calls as the bridge.
    async fn bridge(&self, function: &str, arguments: Value) -> Said {
        self.module.call(Some(&self.module.bridge), function, &arguments).await
    }

    /// Settled, newest, to, and the entries as the bridge reads them.
    async fn page(&self, most: u64) -> ([u64; 3], Vec<(String, Value)>) {
        let page = self.bridge("read_journal", json!([most])).await.done();
        let number = |at: usize| page[at].as_u64().unwrap();
        let entries = page[8].as_array().unwrap().iter();
        let entries = entries.map(|entry| (text(&entry[1]), entry.clone()));
        ([number(2), number(4), number(7)], entries.collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_after_it_was_read_is_read_again() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    guarded.provider("8", "one", "p1").await;
    for request in ["r1", "r2", "r3"] {
        guarded.open(&asks, request, "p1", "{}", 600).await.done();
    }
    let keys = |entries: &[(String, Value)]| entries.iter().map(|entry| entry.0.clone()).collect::<Vec<_>>();
    let (numbers, entries) = guarded.page(2).await;
    assert_eq!(numbers, [0, 4, 2]);
    assert_eq!(keys(&entries), ["capability/p1/gpu", "assignment/r1"]);
    // It changes between the read and the settlement.
    guarded.update(&asks, "r1", 1, "cancelled", "").await.done();
    guarded.bridge("settle_journal", json!([2])).await.done();
    guarded.bridge("settle_journal", json!([1])).await.done();
    let (numbers, entries) = guarded.page(256).await;
    assert_eq!(numbers, [2, 5, 5]);
    assert_eq!(keys(&entries), ["assignment/r2", "assignment/r3", "assignment/r1"]);
    assert!(entries[2].1.to_string().contains("cancelled"), "{entries:?}");
    let said = guarded.bridge("settle_journal", json!([6])).await;
    said.refused(RefusalCode::InvalidArgument);
    guarded.bridge("settle_journal", json!([5])).await.done();
    assert_eq!(guarded.page(256).await, ([5, 5, 5], Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_module_has_written_comes_back_and_only_while_the_journal_is_closed() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    guarded.open(&asks, "r1", "", "{}", 600).await.done();
    guarded.update(&one, "r1", 1, "accepted", "p1").await.done();
    let (_, old) = guarded.page(256).await;
    guarded.update(&one, "r1", 2, "running", "").await.done();
    let (_, new) = guarded.page(256).await;
    let entries = |entries: &[(String, Value)]| json!([entries.iter().map(|entry| &entry.1).collect::<Vec<_>>()]);
    let [old, new] = [entries(&old), entries(&new)];
    let invalid = RefusalCode::InvalidArgument;
    // While the journal is open, the bridge finds out by the same call whether the module lacks anything.
    let before = guarded.module.everything().await;
    for known in [&old, &new] {
        guarded.bridge("bring_back", known.clone()).await.done();
    }
    let document = new[0][1][2].as_str().unwrap();
    assert!(document.contains("running"), "{document}");
    let with = |key: &str, document: &str| json!([9, key, document]);
    let newer = document.replacen("\"changed_at\":", "\"changed_at\":1", 1);
    for lacking in [with("assignment/r3", document), with("assignment/r1", &newer)] {
        // What cannot be read hides nothing that is lacking.
        for page in [
            json!([[new[0][0], lacking]]),
            json!([[with("assignment/r2", "{}"), lacking]]),
        ] {
            guarded.bridge("bring_back", page).await.refused(RefusalCode::Lacking);
        }
    }
    let unreadable = json!([[new[0][0], with("assignment/r2", "{}")]]);
    guarded.bridge("bring_back", unreadable).await.refused(invalid);
    // What only a later release knows is lacking in every module of this one.
    let later = json!([[with("draft/r1", "{}"), with("assignment/r1", r#"{"draft":{}}"#)]]);
    guarded.bridge("bring_back", later.clone()).await.done();
    assert_eq!(guarded.module.everything().await, before);
    guarded.bridge("close_journal", json!([7])).await.refused(invalid);
    guarded.bridge("close_journal", json!([0])).await.done();
    let closed = guarded.update(&one, "r1", 3, "succeeded", "").await;
    closed.refused(RefusalCode::BeingBroughtBack);

    // What is held already, or is older, changes nothing.
    let before = guarded.module.everything().await;
    for known in [old, new.clone(), new.clone(), later] {
        guarded.bridge("bring_back", known).await.done();
        assert_eq!(guarded.module.everything().await, before);
    }
    // Nothing of a page is written if a part of it is wrong.
    let fresh = document.replacen("\"version\":3", "\"version\":4", 1);
    for wrong in [
        with("assignment/r2", "{}"),
        with("assignment/r2", ""),
        with("assignment/r2", &fresh),
        with("capability/p1/gpu", document),
        with("r2", document),
        with("assignment/r2", &document.replace("running", "paused")),
    ] {
        let page = json!([[new[0][0], with("assignment/r3", document), wrong]]);
        guarded.bridge("bring_back", page).await.refused(invalid);
    }
    let many = vec![with("assignment/r3", document); PAGE_ENTRIES + 1];
    guarded.bridge("bring_back", json!([many])).await.refused(invalid);
    let filled = format!("{document}{}", " ".repeat(100_000));
    let large = vec![with("assignment/r3", &filled); PAGE_BYTES / 100_000 + 2];
    guarded.bridge("bring_back", json!([large])).await.refused(invalid);
    assert_eq!(guarded.module.everything().await, before);
    for (epoch, newest) in [("", 0), (&*"e".repeat(limit::NAME_BYTES + 1), 0), ("epoch", u64::MAX)] {
        let said = guarded.bridge("open_journal", json!([epoch, newest])).await;
        said.refused(invalid);
    }

    // An assignment that the module did not know, and a name that belongs to another user.
    let claim = text(&new[0][0][2]).replace("\"user_id\":\"8\"", "\"user_id\":\"9\"");
    guarded
        .bridge(
            "bring_back",
            json!([[with("capability/p1/gpu", &claim), with("assignment/r3", document)]]),
        )
        .await
        .done();
    guarded.bridge("open_journal", json!(["epoch", 0])).await.done();
    assert_eq!(
        guarded.assignments(&asks).await,
        [is("r1", 3, "running", "p1"), is("r3", 3, "running", "p1")]
    );
    guarded.update(&one, "r3", 3, "succeeded", "").await.done();
    let said = guarded.publish(&one, "p1", "gpu", 9, "{}", 60).await;
    said.refused(RefusalCode::CapabilityConflict);
}

/// A name that is known, then free, and then taken again by the same call, as for work that is asked for every day. The module is
/// an older copy, or the settlement was lost with the link.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_same_call_has_opened_again_comes_back_and_what_is_over_by_now_does_not() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    guarded.open(&asks, "r1", "", "{}", 600).await.done();
    let (_, entries) = guarded.page(256).await;
    let again = text(&entries[0].1[2]);
    let opened: Value = serde_json::from_str(&again).unwrap();
    let opened = &opened["assignment"];
    let opened_at = opened["opened_at"].as_u64().unwrap();
    let forgotten = |opened_at: u64, until: u64| {
        let forgotten = json!({ "forgotten": {
            "requester": "7", "opened_as": opened["opened_as"], "until": until, "opened_at": opened_at
        } });
        forgotten.to_string()
    };
    let day_us = 86_400_000_000;
    let earlier = forgotten(opened_at - 2 * day_us, opened_at + day_us);
    let give = async |key: &str, document: &str| guarded.bridge("bring_back", json!([[[9, key, document]]])).await;
    guarded.bridge("close_journal", json!([0])).await.done();
    give("assignment/r2", &earlier).await.done();
    guarded.bridge("open_journal", json!(["epoch", 0])).await.done();

    let before = guarded.module.everything().await;
    give("assignment/r1", &forgotten(opened_at - 2 * day_us, opened_at))
        .await
        .done();
    give("assignment/r2", &earlier).await.done();
    // It had expired, and was forgotten, before the one was opened that is forgotten now.
    let due_at = opened["due_at"].as_u64().unwrap();
    let long_ago = [opened_at, due_at].iter().fold(again.clone(), |document, at| {
        document.replace(&at.to_string(), &(at - 4 * day_us).to_string())
    });
    give("assignment/r2", &long_ago).await.done();
    assert_eq!(guarded.module.everything().await, before);
    give("assignment/r2", &again).await.refused(RefusalCode::Lacking);
    guarded.bridge("close_journal", json!([0])).await.done();
    give("assignment/r2", &again).await.done();
    guarded.bridge("open_journal", json!(["epoch", 0])).await.done();
    let open = [is("r1", 1, "open", ""), is("r2", 1, "open", "")];
    assert_eq!(guarded.assignments(&asks).await, open);

    give("assignment/r3", &forgotten(opened_at - 2 * day_us, opened_at))
        .await
        .done();
    let (_, entries) = guarded.page(256).await;
    let last = entries.last().unwrap();
    assert_eq!((&*last.0, &last.1[2]), ("assignment/r3", &json!("")));
    assert_eq!(guarded.assignments(&asks).await, open);
}

/// More than the module looks at, at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_another_history_is_told_everything_in_bounded_steps() {
    const THINGS: u64 = 5 * PAGE_ENTRIES as u64;
    let guarded = Guarded::start().await;
    guarded.page(256).await;
    guarded.bridge("close_journal", json!([0])).await.done();
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    // Due over two days, from an hour from now on.
    let until = |nth: u64| now_us + 3_600_000_000 + nth * (2 * 86_400_000_000 / THINGS);
    let things: Vec<Value> = (0..THINGS)
        .map(|nth| {
            let digest = "ab".repeat(32);
            let forgotten = json!({ "forgotten": { "requester": "7", "opened_as": digest, "until": until(nth) } });
            json!([nth + 1, format!("assignment/r{nth}"), forgotten.to_string()])
        })
        .collect();
    for page in things.chunks(PAGE_ENTRIES) {
        guarded.bridge("bring_back", json!([page])).await.done();
    }
    guarded.bridge("open_journal", json!(["one", THINGS])).await.done();
    assert_eq!(guarded.page(256).await, ([THINGS, THINGS, THINGS], Vec::new()));
    guarded.bridge("open_journal", json!(["two", THINGS])).await.done();
    let mut told = Vec::new();
    let deadline = Instant::now() + 2 * SOON;
    loop {
        let ([settled, newest, to], entries) = guarded.page(256).await;
        let waiting = guarded.column("SELECT key FROM journal_mark").await.len();
        assert!(waiting < 2 * PAGE_ENTRIES, "{waiting} wait at once");
        told.extend(entries.into_iter().map(|(key, _)| key));
        if to > settled {
            guarded.bridge("settle_journal", json!([to])).await.done();
        }
        if to == newest && guarded.column("SELECT kinds FROM journal_pass").await.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "only {} were told", told.len());
    }
    told.sort();
    told.dedup();
    assert_eq!(told.len() as u64, THINGS);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_bridge_reads_or_writes_the_journal() {
    let guarded = Guarded::start().await;
    let everybody = guarded.scoped("7", "asks", &[ASKS, PROVIDES].concat());
    guarded.open(&everybody, "r1", "", "{}", 600).await.done();
    let before = guarded.module.everything().await;
    for (function, arguments) in [
        ("read_journal", json!([256])),
        ("settle_journal", json!([1])),
        ("close_journal", json!([0])),
        ("bring_back", json!([[]])),
        ("open_journal", json!(["epoch", 0])),
    ] {
        for who in [&everybody, &guarded.module.owner] {
            let said = guarded.module.call(Some(who), function, &arguments).await;
            said.refused(RefusalCode::Unauthorized);
        }
    }
    assert_eq!(guarded.module.everything().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_written_down_what_a_wipe_costs_for_each_table() {
    let guarded = Guarded::start().await;
    let document = include_str!("../../../../docs/recovery.md");
    let (_, costs) = document.split_once("| table of the module |").unwrap();
    for table in guarded.module.tables().await {
        assert!(
            costs.contains(&format!("`{table}`")),
            "docs/recovery.md says nothing of {table}"
        );
    }
}
