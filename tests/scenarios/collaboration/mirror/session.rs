//! The mirror's session at SpacetimeDB: providers are advertised, and what trusted keys announce is a capability here.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, stream};
use nostr::{Event, EventBuilder, Keys, Kind as NostrKind, Tag, TagKind, Timestamp};
use serde_json::json;
use spacetime_sync_client::{
    Capability, CapabilityKey, ClientConfig, Credential, HandlerError, HttpTokens, OutboxEvent, OutboxOutcome,
    SqliteStore, SyncClient, TokenError,
};
use spacetime_sync_proto::limit;
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::issuing::BUILD;
use spacetime_sync_tests::lane::{Bridge, Lane, wait, wait_for};
use spacetime_sync_tests::mirror::Mirrors;
use spacetime_sync_tests::relays::{OddRelay, Treats};
use spacetime_sync_tests::scene::ready;
use spacetime_sync_tests::write_secret;

use super::*;

/// A lane with tokens, a mirror's user, and a provider.
struct Collaboration {
    lane: Lane,
    bridge: Bridge,
    mirrors: Mirrors,
    relay: OddRelay,
}

impl Collaboration {
    async fn new() -> Self {
        let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
        let bridge = lane.bridge().unwrap();
        ready(&bridge, SOON).await.unwrap();
        lane.allow("everyone", &["notes"]).await.unwrap();
        for (user, scope) in [
            ("mirror", "sync.provider"),
            ("mirror", "sync.mirror"),
            ("maker", "sync.provider"),
            ("other", "sync.mirror"),
        ] {
            let policy = format!("insert into runtime.sync_scope_policy values ('user:{user}', '{scope}')");
            lane.sql(&policy).await.unwrap();
        }
        let mirrors = Mirrors::of(&lane.database).await.unwrap();
        let session = mirrors.folder().join("mirror.session");
        write_secret(&session, lane.keys().unwrap().session("mirror", "mirror-1")).unwrap();
        let relay = OddRelay::start(Treats::Honestly).await.unwrap();
        lane.sql(&format!(
            "insert into runtime.sync_mirror_policy (policy_id, source, schema, nostr_kind, relays)
             values ('ads', 'capabilities', 'openagents.bridge.provider_ad.v1', 31990, '{{{}}}')",
            relay.url()
        ))
        .await
        .unwrap();
        Self {
            lane,
            bridge,
            mirrors,
            relay,
        }
    }

    fn mirror(&self) -> spacetime_sync_tests::mirror::Mirror {
        let session = self.mirrors.folder().join("mirror.session").display().to_string();
        let set = [
            ("spacetimedb_uri", self.lane.server.uri()),
            ("database", &self.lane.name),
            ("bridge_url", self.bridge.url()),
            ("session_file", &session),
            ("stream", "notes"),
            ("refresh_seconds", "2"),
            ("attempts", "1000"),
        ];
        self.mirrors.start(&set).unwrap()
    }

    /// A client of a user who provides.
    fn client(&self, user: &'static str) -> SyncClient {
        let credential = self.lane.keys().unwrap().session(user, user);
        let tokens = HttpTokens::new(self.bridge.url(), move || {
            let credential = credential.clone();
            async move { Ok::<_, TokenError>(credential) }
        });
        let notes = StreamId::new("notes").unwrap();
        let mut config = ClientConfig::new(self.lane.server.uri(), &self.lane.name, vec![notes]);
        config.credential = Credential::provider(tokens.unwrap());
        config.client_build_id = BUILD.to_owned();
        config.provides = true;
        config.mirrors = true;
        let store = SqliteStore::open(self.lane.path(user)).unwrap();
        let ignore = |_: &mut rusqlite::Transaction<'_>, _: &StreamId, _: &[spacetime_sync_client::Event]| {
            Ok::<(), HandlerError>(())
        };
        SyncClient::start(config, store, ignore).unwrap()
    }
}

fn gpu(version: u64, stands_for: Duration) -> Capability {
    Capability {
        provider_id: "maker-1".to_owned(),
        capability: "gpu".to_owned(),
        version,
        price_hint_sats: 21,
        region: "eu".to_owned(),
        document: r#"{"vram":80}"#.to_owned(),
        stands_for,
    }
}

/// The advertisements of a provider that a relay heard: their times, and the ids of each time.
fn advertised(relay: &OddRelay, provider: &str) -> BTreeMap<u64, Vec<String>> {
    let mut ids: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let all = relay.received.all();
    for event in all.iter().filter(|event| event.tags.identifier() == Some(provider)) {
        assert_eq!(event.kind.as_u16(), 31_990);
        let ids = ids.entry(event.created_at.as_secs()).or_default();
        if !ids.contains(&event.id.to_hex()) {
            ids.push(event.id.to_hex());
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_advertised_in_each_slot_as_one_event_however_often_the_mirror_dies() {
    let stage = Collaboration::new().await;
    let maker = stage.client("maker");
    maker.publish_capability(gpu(1, SOON * 10), SOON).await.unwrap();
    for _ in 0..3 {
        let slots = advertised(&stage.relay, "maker-1").len();
        let mirror = stage.mirror();
        wait(SOON, "two more slots are advertised", || {
            advertised(&stage.relay, "maker-1").len() >= slots + 2
        })
        .await;
        mirror.process.kill();
    }
    let slots = advertised(&stage.relay, "maker-1");
    assert!(
        slots.iter().all(|(slot, ids)| slot % 2 == 0 && ids.len() == 1),
        "{slots:?}"
    );
    let last = stage.relay.received.all().pop().unwrap();
    assert!(
        last.content.contains(r#""price_hint_sats":21"#) && last.content.contains("vram"),
        "{}",
        last.content
    );
    let ends = last.tags.expiration().unwrap().as_secs();
    assert_eq!(ends, last.created_at.as_secs() + 6);
    // A provider that is gone is advertised no more, and another one is.
    maker.publish_capability(gpu(2, Duration::ZERO), SOON).await.unwrap();
    let other = Capability {
        provider_id: "maker-2".to_owned(),
        ..gpu(1, SOON * 10)
    };
    maker.publish_capability(other, SOON).await.unwrap();
    let _mirror = stage.mirror();
    let other = || advertised(&stage.relay, "maker-2");
    wait(SOON, "the other provider is advertised twice", || other().len() >= 2).await;
    let (first, gone) = (*other().keys().next().unwrap(), advertised(&stage.relay, "maker-1"));
    assert!(gone.keys().all(|slot| *slot <= first), "{gone:?} after {first}");
    maker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertisement_that_no_relay_has_is_replaced_by_the_next() {
    let stage = Collaboration::new().await;
    stage.relay.treat(Treats::Refusing("error: not now"));
    let maker = stage.client("maker");
    maker.publish_capability(gpu(1, SOON * 10), SOON).await.unwrap();
    let mirror = stage.mirror();
    wait(SOON, "four slots are tried", || {
        advertised(&stage.relay, "maker-1").len() >= 4
    })
    .await;
    wait_for(SOON, "one waits, and those before are dropped", async || {
        let shown = shown(&stage.lane).await;
        let count = |status: &str| shown.iter().filter(|(_, found, _)| found == status).count();
        count("pending") <= 1 && count("dropped") >= 3
    })
    .await;
    assert_eq!(mirror.metric("outbox_parked").await, Some(0));
    stage.relay.treat(Treats::Honestly);
    mirror.until("published_total", SOON, |count| count >= 1).await;
    maker.stop().await;
}

/// An advertisement of another mirror, for the provider `maker-1`.
fn announcement(keys: &Keys, price: u64, created_at: u64) -> Event {
    let one = json!({ "capability": "gpu", "document": "{}", "price_hint_sats": price, "region": "", "version": 1 });
    let content = json!({ "capabilities": [one], "provider_id": "maker-1" }).to_string();
    EventBuilder::new(NostrKind::from_u16(31_990), content)
        .tags([
            Tag::identifier("maker-1"),
            Tag::custom(TagKind::custom("oa_schema"), ["openagents.bridge.provider_ad.v1"]),
            Tag::expiration(Timestamp::from_secs(created_at + 300)),
        ])
        .custom_created_at(Timestamp::from_secs(created_at))
        .sign_with_keys(keys)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_trusted_key_announces_is_a_capability_here_and_goes_out_to_nobody_again() {
    let stage = Collaboration::new().await;
    let (friend, stranger) = (Keys::generate(), Keys::generate());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut forged = announcement(&friend, 1, now + 1);
    forged.content = forged.content.replace("\"price_hint_sats\":1", "\"price_hint_sats\":2");
    for event in [
        announcement(&stranger, 5, now),
        forged,
        announcement(&friend, 7, now - 400),
        announcement(&friend, 42, now),
    ] {
        stage.relay.holds(event);
    }
    stage
        .lane
        .sql(&format!(
            "insert into runtime.sync_mirror_trusted_keys values ('{}', 'friend.')",
            friend.public_key().to_hex()
        ))
        .await
        .unwrap();
    let mirror = stage.mirror();
    let maker = stage.client("maker");
    let mut seen = maker.capabilities();
    let key = CapabilityKey {
        provider_id: "friend.maker-1".to_owned(),
        capability: "gpu".to_owned(),
    };
    let found = tokio::time::timeout(SOON, seen.wait_for(|seen| seen.rows.contains_key(&key)))
        .await
        .unwrap()
        .unwrap()
        .rows
        .clone();
    assert_eq!(found.len(), 1, "{found:?}");
    let one = &found[&key];
    assert_eq!((one.price_hint_sats, one.version), (42, now));
    mirror.until("heard_capabilities_total", SOON, |count| count == 1).await;
    // Another slot begins, and only our own provider is advertised.
    maker.publish_capability(gpu(1, SOON * 10), SOON).await.unwrap();
    wait(SOON, "two slots are advertised", || {
        advertised(&stage.relay, "maker-1").len() >= 2
    })
    .await;
    assert_eq!(advertised(&stage.relay, "friend.maker-1").len(), 0);
    assert_eq!(mirror.metric("heard_capabilities_total").await, Some(1));
    maker.stop().await;
}

/// How long a mirror waits after SpacetimeDB's outbox was full.
const FULL: Duration = Duration::from_secs(5);

/// What the module's outbox says, as its owner sees it: the name, the status, and what it was sent as.
async fn shown(lane: &Lane) -> Vec<(String, String, String)> {
    let query = "SELECT event_id, status, published_as FROM bridge_outbox";
    let rows = lane.rows(query, false).await.unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut shown: Vec<_> = rows
        .iter()
        .map(|row| (text(&row[0]), text(&row[1]), text(&row[2])))
        .collect();
    shown.sort();
    shown
}

/// Waits until the module's outbox shows exactly what the authority's says: these counts of what waits and what was sent.
async fn until_shown(stage: &Collaboration, waiting: usize, sent: usize) {
    let mut owner = PgConnection::connect(stage.lane.database.url()).await.unwrap();
    wait_for(SOON, "SpacetimeDB shows what the authority says", async || {
        let shown = shown(&stage.lane).await;
        let count = |status: &str| shown.iter().filter(|(_, found, _)| found == status).count();
        let said: Vec<(String, String)> = sqlx::query_as(
            "select replace(event_id, 'enqueued:', ''), published_as from runtime.sync_outbox where status = 'sent'",
        )
        .fetch_all(&mut owner)
        .await
        .unwrap();
        let is_said = |(name, status, id): &(String, String, String)| {
            status != "sent" || said.iter().any(|(said, as_id)| (said, as_id) == (name, id))
        };
        count("pending") == waiting && count("sent") == sent && shown.iter().all(is_said)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_shows_in_spacetimedb_and_comes_back_after_a_wipe() {
    let stage = Collaboration::new().await;
    let mut owner = PgConnection::connect(stage.lane.database.url()).await.unwrap();
    policy(&mut owner, "s", &[], &[stage.relay.url()], None).await;
    let append = async |lane: &Lane, count| append(&lane.authority, "s", "step", count).await;
    append(&stage.lane, 20).await;
    let mirror = stage.mirror();
    until_shown(&stage, 0, 20).await;
    // With no relay what is new waits, and SpacetimeDB says so.
    stage.relay.treat(Treats::Refusing("error: not now"));
    append(&stage.lane, 10).await;
    until_shown(&stage, 10, 20).await;
    stage.lane.publish(Breaking::DeleteData).await.unwrap();
    // What waits is back. What was sent before the wipe is in the authority, and nobody waits for it.
    until_shown(&stage, 10, 0).await;
    stage.relay.treat(Treats::Honestly);
    until_shown(&stage, 0, 10).await;
    let ids = stage.relay.received.ids();
    assert!(ids.len() == 30 && ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    assert_eq!(mirror.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_session_enqueues_is_published_if_a_policy_names_it_and_else_parked() {
    let stage = Collaboration::new().await;
    let notes = |schema: &str, kind: u32| {
        let relay = stage.relay.url();
        format!(
            "insert into runtime.sync_mirror_policy (policy_id, source, schema, nostr_kind, relays)
             values ('notes', 'enqueued', '{schema}', {kind}, '{{{relay}}}')"
        )
    };
    // Nothing that would replace what the mirror itself says.
    for (schema, kind) in [
        ("notes.v1", 30_078),
        ("notes.v1", 31_990),
        ("openagents.bridge.receipt_ptr.v1", 30_079),
        ("openagents.bridge.provider_ad.v1", 30_079),
        ("notes.v1", 1),
    ] {
        let refused = stage.lane.sql(&notes(schema, kind)).await;
        assert!(refused.is_err(), "{schema} {kind}");
    }
    stage.lane.sql(&notes("notes.v1", 30_079)).await.unwrap();
    let ahead = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    let ahead = format!(r#"{{"kind":30079,"schema":"notes.v1","d":"n-3","content":"hello","created_at":{ahead}}}"#);
    let other = stage.client("other");
    for (name, payload) in [
        (
            "named",
            r#"{"kind":30079,"schema":"notes.v1","d":"n-1","content":"hello","created_at":1700000000}"#,
        ),
        (
            "unnamed",
            r#"{"kind":30078,"schema":"other.v1","d":"n-2","content":"hello","created_at":1700000000}"#,
        ),
        ("malformed", r#"{"kind":"x"}"#),
        ("ahead", &ahead),
    ] {
        let event = OutboxEvent {
            event_id: name.to_owned(),
            transport: "nostr".to_owned(),
            payload: payload.to_owned(),
        };
        other.enqueue_event(event, SOON).await.unwrap();
    }
    let elsewhere = OutboxEvent {
        event_id: "elsewhere".to_owned(),
        transport: "mail".to_owned(),
        payload: "{}".to_owned(),
    };
    other.enqueue_event(elsewhere, SOON).await.unwrap();
    let mirror = stage.mirror();
    // What is parked waits for a person, and not there.
    until_shown(&stage, 1, 1).await;
    mirror.until("outbox_parked", SOON, |count| count == 3).await;
    let found = stage.relay.received.all();
    let found: Vec<_> = found
        .iter()
        .map(|event| (event.tags.identifier(), event.content.as_str()))
        .collect();
    assert!(
        found.iter().all(|found| *found == (Some("n-1"), "hello")) && !found.is_empty(),
        "{found:?}"
    );
    assert_eq!(stage.relay.received.ids()["n-1"].len(), 1);
    let shown = shown(&stage.lane).await;
    let status = |name: &str| &shown.iter().find(|(found, _, _)| found == name).unwrap().1;
    assert!(
        ["unnamed", "malformed", "ahead"]
            .iter()
            .all(|name| status(name) == "dropped"),
        "{shown:?}"
    );
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_the_name_of_a_receipt_keeps_it_from_no_relay_and_is_not_shown_as_sent() {
    let stage = Collaboration::new().await;
    let mut owner = PgConnection::connect(stage.lane.database.url()).await.unwrap();
    policy(&mut owner, "s", &[], &[stage.relay.url()], None).await;
    stage
        .lane
        .sql(&format!(
            "insert into runtime.sync_mirror_policy (policy_id, source, schema, nostr_kind, relays)
             values ('notes', 'enqueued', 'notes.v1', 30079, '{{{}}}')",
            stage.relay.url()
        ))
        .await
        .unwrap();
    let other = stage.client("other");
    let taken: String = sqlx::query_scalar("select 'receipt_ptr.v1:' || encode(sha256('s:1'), 'hex')")
        .fetch_one(&mut owner)
        .await
        .unwrap();
    let forged = r#"{"kind":30079,"schema":"notes.v1","d":"forged","content":"hello","created_at":1700000000}"#;
    // One of an event that comes, one of an event that never comes, and one that says it was adopted.
    let adopted = format!("enqueued:{taken}");
    for name in [taken.as_str(), "receipt_ptr.v1:0", adopted.as_str()] {
        let event = OutboxEvent {
            event_id: name.to_owned(),
            transport: "nostr".to_owned(),
            payload: forged.to_owned(),
        };
        other.enqueue_event(event, SOON).await.unwrap();
    }
    append(&stage.lane.authority, "s", "step", 2).await;
    let mirror = stage.mirror();
    mirror.until("published_total", SOON, |count| count == 2).await;
    // The one is refuted, and so are those that are nobody's. The other event's row is its own.
    wait_for(SOON, "nothing waits, and nothing forged was sent", async || {
        let shown = shown(&stage.lane).await;
        let count = |status: &str| shown.iter().filter(|(_, found, _)| found == status).count();
        let is_taken = |name: &str| [taken.as_str(), "receipt_ptr.v1:0", adopted.as_str()].contains(&name);
        count("pending") == 0
            && count("sent") == 1
            && shown
                .iter()
                .all(|(name, status, _)| is_taken(name) == (status == "dropped"))
    })
    .await;
    let ids = stage.relay.received.ids();
    assert_eq!(ids.keys().collect::<Vec<_>>(), ["s:1", "s:2"]);
    assert_eq!(mirror.metric("outbox_parked").await, Some(0));
    other.stop().await;
}

/// Puts so many events into the outbox that no mirror takes, because they go by something else than Nostr.
async fn put_letters(other: &SyncClient, count: u32) {
    let put = |nth: u32| put(other, format!("letter-{nth}"), "mail");
    let puts = stream::iter(0..count).map(put).buffer_unordered(16);
    puts.collect::<Vec<()>>().await;
}

async fn put(other: &SyncClient, event_id: String, transport: &str) {
    let event = OutboxEvent {
        event_id,
        transport: transport.to_owned(),
        payload: "{}".to_owned(),
    };
    other.enqueue_event(event, SOON).await.unwrap();
}

/// More entries than a mirror looks at once are over and have no row in a full outbox, and the one that takes the last place in it stands
/// under the name of a newer entry.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_a_full_outbox_is_resolved_however_many_older_entries_have_no_row() {
    let stage = Collaboration::new().await;
    let mut owner = PgConnection::connect(stage.lane.database.url()).await.unwrap();
    policy(&mut owner, "s", &[], &[stage.relay.url()], None).await;
    append(&stage.lane.authority, "s", "step", 300).await;
    let without_spacetimedb = stage.mirrors.start(&[]).unwrap();
    wait_for(SOON, "all are sent", async || {
        let sent = "select count(*) from runtime.sync_outbox where status = 'sent'";
        sqlx::query_scalar::<_, i64>(sent).fetch_one(&mut owner).await.unwrap() == 300
    })
    .await;
    assert_eq!(without_spacetimedb.stop().await.unwrap(), 0);
    let newest = "update runtime.sync_outbox set enqueued_at = enqueued_at + interval '1 minute'
        where event_id = (select min(event_id) from runtime.sync_outbox) returning event_id";
    let newest: String = sqlx::query_scalar(newest).fetch_one(&mut owner).await.unwrap();
    let other = stage.client("other");
    put_letters(&other, limit::OUTBOX_PENDING - 1).await;
    put(&other, newest.clone(), "nostr").await;
    let mirror = stage.mirror();
    wait_for(SOON, "what waits under the name of an entry is resolved", async || {
        let shown = shown(&stage.lane).await;
        shown
            .iter()
            .any(|(name, status, _)| *name == newest && status != "pending")
    })
    .await;
    assert_eq!(mirror.stop().await.unwrap(), 0);
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_is_tried_again_seldom_and_shows_everything_once_there_is_room() {
    let stage = Collaboration::new().await;
    let mut owner = PgConnection::connect(stage.lane.database.url()).await.unwrap();
    policy(&mut owner, "s", &[], &[stage.relay.url()], None).await;
    stage.relay.treat(Treats::Refusing("error: not now"));
    let other = stage.client("other");
    put_letters(&other, limit::OUTBOX_PENDING).await;
    append(&stage.lane.authority, "s", "step", 20).await;
    let mirror = stage.mirror();
    let began = Instant::now();
    mirror
        .until("spacetimedb_outbox_full_total", SOON, |count| count >= 3)
        .await;
    // Between the first time and the third it has waited twice.
    assert!(began.elapsed() >= 2 * FULL, "{:?}", began.elapsed());
    for nth in 0..20 {
        let sent = OutboxOutcome {
            event_id: format!("letter-{nth}"),
            published_as: Some("letter".to_owned()),
        };
        other.mark_event(sent, SOON).await.unwrap();
    }
    wait_for(SOON, "there is room, and what waits is shown", async || {
        let shown = shown(&stage.lane).await;
        let ours = shown
            .iter()
            .filter(|(name, status, _)| name.starts_with("receipt") && status == "pending");
        ours.count() == 20
    })
    .await;
    assert_eq!(mirror.stop().await.unwrap(), 0);
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_never_answer_a_question_keep_nobody_else_from_being_heard_or_shown() {
    let stage = Collaboration::new().await;
    let mut owner = PgConnection::connect(stage.lane.database.url()).await.unwrap();
    let silent = [
        OddRelay::start(Treats::NoHandshake).await.unwrap(),
        OddRelay::start(Treats::Silently).await.unwrap(),
    ];
    // Two of three say nothing, whatever the order in which they are asked.
    let all: Vec<String> = silent.iter().chain([&stage.relay]).map(OddRelay::url).collect();
    sqlx::query("update runtime.sync_mirror_policy set relays = $1, quorum = 1 where source = 'capabilities'")
        .bind(&all)
        .execute(&mut owner)
        .await
        .unwrap();
    policy(&mut owner, "s", &[], &[stage.relay.url()], None).await;
    let friend = Keys::generate();
    let trust = format!(
        "insert into runtime.sync_mirror_trusted_keys values ('{}', 'friend.')",
        friend.public_key().to_hex()
    );
    stage.lane.sql(&trust).await.unwrap();
    let mirror = stage.mirror();
    for round in 1..=3_u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        stage.relay.holds(announcement(&friend, round, now + round));
        append(&stage.lane.authority, "s", "step", 5).await;
        mirror
            .until("heard_capabilities_total", SOON, |count| count >= round)
            .await;
        until_shown(&stage, 0, usize::try_from(5 * round).unwrap()).await;
    }
    assert_eq!(mirror.stop().await.unwrap(), 0);
}
