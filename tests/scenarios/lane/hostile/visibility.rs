//! Who sees which row, by SQL over HTTP, by subscription and by procedure, with whatever query.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use spacetime_sync_bindings::{
    DbConnection, StreamGrantTableAccess as _, SyncCheckpointTableAccess as _, SyncEventTableAccess as _,
    SyncHeadTableAccess as _, SyncStreamTableAccess as _,
};
use spacetime_sync_proto::{ChainHash, RefusalCode};
use spacetime_sync_stdb::admin::Credential;
use spacetime_sync_tests::lane::{A_DAY, wait};
use spacetimedb_sdk::{DbContext as _, Table as _};
use tokio::sync::oneshot;

use super::{Module, Said, column, log, newcomer, stream};

const SOON: Duration = Duration::from_secs(20);

/// Who may see the rows of a table.
enum Seen {
    /// Anyone.
    Anyone,
    /// Anyone; only sessions fill the table, see `collaboration::visibility`.
    AnyoneOfSessions,
    /// Whoever holds a grant for the row's stream.
    Granted,
    /// The identity that the row belongs to.
    Own,
    /// The owner of the database.
    Owner,
    /// The owner of the database; only sessions fill the table, see `access::sessions`.
    OwnerOfSessions,
    /// Everybody whom a session's presence, an assignment or a signal is meant for; see `access::presence`,
    /// `collaboration::visibility` and `collaboration::signals`.
    Audience,
}

fn expectations() -> BTreeMap<&'static str, Seen> {
    BTreeMap::from([
        ("sync_contract", Seen::Anyone),
        ("stream_grant", Seen::Anyone),
        ("sync_event", Seen::Granted),
        ("sync_head", Seen::Granted),
        ("sync_stream", Seen::Granted),
        ("sync_checkpoint", Seen::Own),
        ("sync_trust", Seen::Owner),
        ("lane_epoch", Seen::Owner),
        ("retention_class", Seen::Owner),
        ("log_window", Seen::Owner),
        ("log_sweep", Seen::Owner),
        ("sync_session", Seen::OwnerOfSessions),
        ("grant_pattern", Seen::OwnerOfSessions),
        ("grant_count", Seen::OwnerOfSessions),
        ("revoked_session", Seen::OwnerOfSessions),
        ("access_sweep", Seen::OwnerOfSessions),
        ("ended_session", Seen::OwnerOfSessions),
        ("caller_quota", Seen::OwnerOfSessions),
        ("standing_grant", Seen::Owner),
        ("session_presence", Seen::Audience),
        ("presence_change", Seen::Audience),
        ("session_signal", Seen::Audience),
        ("presence_count", Seen::AnyoneOfSessions),
        ("presence_beat", Seen::OwnerOfSessions),
        ("nostr_binding", Seen::OwnerOfSessions),
        ("nostr_challenge", Seen::OwnerOfSessions),
        ("compute_assignment", Seen::Audience),
        ("compute_assignment_change", Seen::Audience),
        ("assignment_party", Seen::OwnerOfSessions),
        ("assignment_update", Seen::OwnerOfSessions),
        ("forgotten_assignment", Seen::OwnerOfSessions),
        ("capability_claim", Seen::OwnerOfSessions),
        ("journal_state", Seen::Owner),
        ("journal_mark", Seen::OwnerOfSessions),
        ("journal_pass", Seen::OwnerOfSessions),
        ("provider_capability", Seen::AnyoneOfSessions),
        ("bridge_outbox", Seen::Audience),
        ("outbox_entry", Seen::OwnerOfSessions),
        ("outbox_count", Seen::OwnerOfSessions),
    ])
}

#[tokio::test]
async fn no_sql_statement_shows_a_row_to_the_wrong_caller() {
    let module = Module::start().await;
    let [secret, other] = [stream("runtime.secret.events"), stream("runtime.other.events")];
    for id in [&secret, &other] {
        module.append(id, &log(id, 3, 1), &ChainHash::genesis(id)).await.done();
    }
    let [reader, elsewhere] = [module.client(&[&secret]).await, module.client(&[&other]).await];
    let ack = json!([secret.as_str(), 3, column(&log(&secret, 3, 1)[2].chain_hash)]);
    module.call(Some(&reader), "ack_checkpoint", &ack).await.done();
    let class = json!([[{ "class": "c", "stream_prefix": "", "window_events": 9, "window_age": 1_i64 << 60, "durable_reads": true }]]);
    module.call(Some(&module.owner), "set_retention", &class).await.done();
    let epoch = json!(["e", 1, false]);
    module.call(Some(&module.owner), "mark_epoch", &epoch).await.done();
    let stranger = newcomer(&module.server).await;
    let page = module
        .call(Some(&module.owner), "read_events", &json!([secret.as_str(), 0]))
        .await
        .done();
    let key = page[0].as_u64().unwrap();

    let expectations = expectations();
    let tables = module.tables().await;
    assert_eq!(
        tables.len(),
        expectations.len(),
        "the list names a table that no longer exists, or lacks one: {tables:?}"
    );
    let blind: [(&str, Option<&Credential>); 4] = [
        ("a stranger", Some(&stranger)),
        ("nobody", None),
        ("a client of another stream", Some(&elsewhere)),
        // The bridge appends, but does not read by SQL.
        ("the bridge", Some(&module.bridge)),
    ];
    for table in &tables {
        let seen = expectations
            .get(table.as_str())
            .unwrap_or_else(|| panic!("add {table} to the list and say who may see it"));
        let all = format!("SELECT * FROM {table}");
        let count = format!("SELECT COUNT(*) AS n FROM {table}");
        let owned = module.sql(Some(&module.owner), &all).await.unwrap();
        if !matches!(seen, Seen::OwnerOfSessions | Seen::AnyoneOfSessions | Seen::Audience) {
            assert!(!owned.is_empty(), "{table} is empty, so the test proves nothing");
        }
        match seen {
            Seen::Audience => {}
            Seen::Anyone | Seen::AnyoneOfSessions => {
                for (who, caller) in blind {
                    assert_eq!(
                        module.sql(caller, &all).await.unwrap().len(),
                        owned.len(),
                        "{who} reads {table}"
                    );
                }
            }
            Seen::Owner | Seen::OwnerOfSessions => {
                for (who, caller) in blind.into_iter().chain([("the reader", Some(&reader))]) {
                    for statement in [&all, &count] {
                        let refused = module.sql(caller, statement).await.unwrap_err();
                        assert!(refused.contains("no such table"), "{who} reads {table}: {refused}");
                    }
                }
            }
            Seen::Granted | Seen::Own => {
                let by_key = format!("SELECT * FROM {table} WHERE stream_key = {key}");
                let of_reader = format!("WHERE g.identity = 0x{}", reader.identity);
                let join = format!("SELECT t.* FROM {table} t JOIN stream_grant g ON t.stream_key = g.stream_key");
                let turned = format!("SELECT g.* FROM stream_grant g JOIN {table} t ON t.stream_key = g.stream_key");
                let statements = [
                    by_key.clone(),
                    format!("{by_key} OR stream_key = 0"),
                    format!("{all} WHERE stream_key > 0 AND stream_key = {key}"),
                    format!("SELECT stream_key FROM {table} WHERE stream_key = {key}"),
                    format!("{join} {of_reader}"),
                    format!("{turned} {of_reader}"),
                    format!("{join} WHERE t.stream_key = {key}"),
                    format!("{turned} WHERE t.stream_key = {key}"),
                    format!("{join} JOIN sync_contract c ON c.id = c.id WHERE t.stream_key = {key}"),
                ];
                for (who, caller) in blind {
                    for statement in &statements {
                        // A statement that the server refuses shows nothing either.
                        let rows = module.sql(caller, statement).await.unwrap_or_default();
                        assert!(rows.is_empty(), "{who}: {statement}: {rows:?}");
                    }
                    let rows = module.sql(caller, &all).await.unwrap();
                    let shown = rows.iter().any(|row| row.to_string().contains(&key.to_string()));
                    assert!(!shown, "{who}: {all}: {rows:?}");
                    let counted = module.sql(caller, &count).await.unwrap();
                    assert_eq!(counted[0][0], json!(rows.len()), "{who}: {count}");
                    let counted = module
                        .sql(caller, &format!("{count} WHERE stream_key = {key}"))
                        .await
                        .unwrap();
                    assert_eq!(counted[0][0], json!(0), "{who} counts {table}");
                }
                // The statements are meaningful: whoever may see the rows sees them with these statements, and no
                // others.
                for statement in [&all, &statements[0], &statements[3], &statements[4]] {
                    let rows = module.sql(Some(&reader), statement).await.unwrap();
                    assert!(!rows.is_empty(), "the reader: {statement}");
                    let only_own = rows.iter().all(|row| row.to_string().contains(&key.to_string()));
                    assert!(only_own, "the reader: {statement}: {rows:?}");
                }
                let counted = module.sql(Some(&reader), &count).await.unwrap();
                let rows = module.sql(Some(&reader), &all).await.unwrap();
                assert_eq!(counted[0][0], json!(rows.len()), "the reader counts {table}");
            }
        }
    }
    // What everybody can read reveals no names.
    let grants = json!(module.sql(Some(&stranger), "SELECT * FROM stream_grant").await.unwrap()).to_string();
    assert!(
        grants.contains(&key.to_string()) && !grants.contains("secret"),
        "{grants}"
    );
    // The owner of a database sees all of it, and so does everybody who holds the owner's token.
    assert_eq!(
        module
            .sql(Some(&module.owner), "SELECT * FROM sync_event")
            .await
            .unwrap()
            .len(),
        2
    );

    // Nobody can write by SQL either.
    let before = module.everything().await;
    for (who, caller) in blind.into_iter().chain([("the reader", Some(&reader))]) {
        for table in &tables {
            for statement in [
                format!("DELETE FROM {table}"),
                format!("UPDATE {table} SET stream_key = 1"),
                format!("INSERT INTO {table} (stream_key) VALUES (1)"),
                format!(
                    "INSERT INTO stream_grant (grant_id, identity, stream_key) VALUES (0, 0x{}, {key})",
                    stranger.identity
                ),
            ] {
                assert!(module.sql(caller, &statement).await.is_err(), "{who}: {statement}");
            }
        }
    }
    assert_eq!(module.everything().await, before);
}

/// A client that subscribes to everything it can name.
pub(crate) struct Listener {
    pub(crate) connection: DbConnection,
}

impl Listener {
    pub(crate) async fn connect(module: &Module, who: &Credential) -> Self {
        let (connected, is_connected) = oneshot::channel();
        let connection = DbConnection::builder()
            .with_uri(module.server.uri())
            .with_database_name(module.name.as_str())
            .with_token(Some(who.token.expose()))
            .on_connect(|_, _, _| {
                // The receiver is gone only if the test has failed.
                let _ = connected.send(());
            })
            .build()
            .unwrap();
        connection.run_threaded();
        is_connected.await.unwrap();
        Self { connection }
    }

    /// Subscribes, and waits for the initial rows. Returns the error if the subscription is refused.
    pub(crate) async fn subscribe(&self, query: &str) -> Result<(), String> {
        let (applied, answer) = oneshot::channel();
        let applied = std::sync::Arc::new(std::sync::Mutex::new(Some(applied)));
        let failed = applied.clone();
        let say = |to: &std::sync::Mutex<Option<oneshot::Sender<_>>>, what| {
            if let Some(sender) = to.lock().unwrap().take() {
                let _ = sender.send(what);
            }
        };
        self.connection
            .subscription_builder()
            .on_applied(move |_| say(&applied, Ok(())))
            .on_error(move |_, error| say(&failed, Err(error.to_string())))
            .subscribe(query);
        tokio::time::timeout(SOON, answer)
            .await
            .expect("the host answers")
            .unwrap()
    }

    /// When this returns, everything delivered before has been processed, because answers and updates arrive in order.
    pub(crate) async fn fence(&self) {
        self.subscribe("SELECT * FROM sync_contract").await.unwrap();
    }

    /// Rows of tables that need a grant.
    pub(crate) fn guarded(&self) -> u64 {
        let db = &self.connection.db;
        db.sync_event().count() + db.sync_head().count() + db.sync_stream().count() + db.sync_checkpoint().count()
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.connection
            .db
            .sync_event()
            .iter()
            .map(|row| row.last_seq)
            .max()
            .unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_delivers_no_row_to_the_wrong_client() {
    let module = Module::start().await;
    let [id, other] = [stream("runtime.run.1.events"), stream("runtime.run.2.events")];
    let events = log(&id, 4, 1);
    module.append(&id, &events[..2], &ChainHash::genesis(&id)).await.done();
    let [first, second, elsewhere] = [
        module.client(&[&id]).await,
        module.client(&[&id]).await,
        module.client(&[&other]).await,
    ];
    let stranger = newcomer(&module.server).await;
    let page = module
        .call(Some(&first), "read_events", &json!([id.as_str(), 0]))
        .await
        .done();
    let key = page[0].as_u64().unwrap();

    let exact = format!("SELECT * FROM sync_event WHERE stream_key = {key}");
    let join = |table: &str| format!("SELECT t.* FROM {table} t JOIN stream_grant g ON t.stream_key = g.stream_key");
    let mut listeners = Vec::new();
    for who in [&stranger, &elsewhere, &first, &second] {
        let listener = Listener::connect(&module, who).await;
        for query in [
            "sync_event",
            "sync_head",
            "sync_stream",
            "sync_checkpoint",
            "stream_grant",
        ] {
            listener.subscribe(&format!("SELECT * FROM {query}")).await.unwrap();
        }
        listener.subscribe(&exact).await.unwrap();
        listener.subscribe(&format!("{exact} AND last_seq > 0")).await.unwrap();
        // If the server refuses joins of filtered tables, they show nothing either.
        for table in ["sync_event", "sync_head", "sync_stream", "sync_checkpoint"] {
            let _ = listener.subscribe(&join(table)).await;
        }
        let refused = listener.subscribe("SELECT * FROM sync_trust").await.unwrap_err();
        assert!(refused.contains("no such table"), "{refused}");
        // Everybody sees the grants.
        assert_eq!(listener.connection.db.stream_grant().count(), 3);
        listeners.push(listener);
    }
    let [stranger, elsewhere, first_listener, second_listener] = listeners.try_into().ok().unwrap();
    let blind = [&stranger, &elsewhere];
    assert_eq!([stranger.guarded(), elsewhere.guarded()], [0, 0]);
    assert_eq!([first_listener.last_seq(), second_listener.last_seq()], [2, 2]);

    module.append(&id, &events[2..3], &events[1].chain_hash).await.done();
    wait(SOON, "both clients receive the events", || {
        [&first_listener, &second_listener].iter().all(|l| l.last_seq() == 3)
    })
    .await;
    for listener in blind {
        listener.fence().await;
        assert_eq!(listener.guarded(), 0);
    }

    // A revoke ends the delivery on an existing connection and removes the client's rows.
    module.as_owner().revoke(&first.identity, &id).await.unwrap();
    module.append(&id, &events[3..], &events[2].chain_hash).await.done();
    wait(SOON, "the other client receives the event", || {
        second_listener.last_seq() == 4
    })
    .await;
    first_listener.fence().await;
    assert!(
        first_listener.last_seq() < 4,
        "a revoked client received seq {}",
        first_listener.last_seq()
    );
    assert_eq!(first_listener.guarded(), 0, "the client's rows are removed");
    let read = json!([id.as_str(), 0]);
    module
        .call(Some(&first), "read_events", &read)
        .await
        .refused(RefusalCode::ForbiddenStream);

    // A grant restores them on the same connection, from the beginning.
    module.as_owner().grant(&first.identity, &id, A_DAY).await.unwrap();
    wait(SOON, "the client receives everything", || {
        first_listener.last_seq() == 4
    })
    .await;
    let page = module.call(Some(&first), "read_events", &read).await;
    assert!(matches!(&page, Said::Done(page) if page[1] == 4), "{page:?}");
    assert_eq!([stranger.guarded(), elsewhere.guarded()], [0, 0]);
}
