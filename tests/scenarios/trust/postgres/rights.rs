//! What each duty allows, and that it allows nothing else.

use spacetime_sync_proto::{ChainHash, Seq};

use super::*;

/// What no role that runs may do, whatever its duty.
const NOBODY: [&str; 44] = [
    // Insert at a position of one's choice.
    "insert into runtime.sync_stream_events values ('s', 9, now(), 'x', 'k', 'p', sha256('p'), sha256('c'))",
    "insert into runtime.sync_streams (stream_id, head_seq, head_chain) values ('t', 5, sha256('c'))",
    "update runtime.sync_streams set head_seq = 5, head_chain = sha256('c')",
    // Rewrite and delete.
    "update runtime.sync_stream_events set payload = 'q'",
    "truncate runtime.sync_stream_events",
    "delete from runtime.sync_stream_events",
    "select set_config('spacetime_sync.purging', 'yes', false); delete from runtime.sync_stream_events",
    "update runtime.sync_streams set oldest_seq = 2, floor_chain = sha256('c')",
    "delete from runtime.sync_streams",
    "update runtime.sync_retention set log_events = 1",
    "alter table runtime.sync_stream_events disable trigger all",
    "create or replace rule nothing as on insert to runtime.sync_stream_events do instead nothing",
    // Take a revocation back, and hide one.
    "update runtime.sync_sessions set revoked_at = null, delivered_at = null",
    "delete from runtime.sync_sessions",
    "update runtime.sync_session_retention set keep = interval '1 day'",
    // Read or take back who was revoked, or give a duty more.
    "delete from runtime.sync_revoked_subjects",
    "insert into runtime.sync_duty_rights values ('bridge', 'all on runtime.sync_streams')",
    // Write the audit log by hand, change it, or shorten it.
    "insert into runtime.sync_audit (act, actor, login) values ('revoke_session', 'somebody', 'else')",
    "select runtime.sync_write_act('revoke_session', 'session:x', 'admin', null, null)",
    // Record what only the function records that does it.
    "select runtime.sync_record_act('revoke_session', 'session:x', 'admin', null, null)",
    "select runtime.sync_record_act('open_session', 'session:x', 'user:u', null, null)",
    "select runtime.sync_record_act('begin_epoch', null, 'operator:ada', null, null)",
    "select runtime.sync_record_act(null, null, 'operator:ada', null, null)",
    "update runtime.sync_audit set actor = 'somebody'",
    "select set_config('spacetime_sync.purging', 'yes', false); delete from runtime.sync_audit",
    "update runtime.sync_audit_retention set keep = interval '1 day'",
    "select setval('runtime.sync_audit_id_seq', 1)",
    // Write the journal by hand, or shorten it.
    "insert into runtime.sync_journal values ('assignment/r', 9, 'e', '{}', now())",
    "update runtime.sync_journal_extent set newest = 0, most = 0",
    // Write a read model by hand, or what is gathered of a table, or have somebody else's table projected.
    "insert into runtime.sync_documents values ('run_summaries', '1', 's', 'k', 1, 1, 1, '{}', 'h', 2, false, now())",
    "update runtime.sync_run_summaries set document = '{}'",
    "insert into runtime.sync_changes (projection, entity_id, is_first) values ('run_summaries', '1', true)",
    "update runtime.sync_projections set stream = 'mine'",
    "update runtime.sync_payload_limits set payload_bytes = 262144",
    // Read what is kept of purged events, or have a key stand for another one.
    "select * from runtime.sync_kept_keys",
    "insert into runtime.sync_kept_keys values ('s', 'mine', 1, 'k', sha256('p'), null)",
    // Take rights.
    "select runtime.sync_grant_duty('bridge', current_user)",
    "select runtime.sync_make_roles('spacetime_sync')",
    "create function runtime.sync_append(text, text, text, varchar) returns bigint language sql as 'select 1::bigint'",
    "create table runtime.mine (n int)",
    "create or replace view runtime.sync_lead as select true as lead",
    "drop function runtime.sync_append(text, text, text, bytea)",
    "update spacetime_sync._sqlx_migrations set checksum = ''",
    // Hold what the lead is.
    "do $$ begin lock table runtime.sync_lead in row share mode; end $$",
];

/// Statements that only the bridge may run.
const BRIDGE: [&str; 13] = [
    "update runtime.sync_streams set published_seq = head_seq",
    "update runtime.sync_streams set published_seq = 0",
    "update runtime.sync_epoch set beat = beat + 1",
    "update runtime.sync_bridge_wake set sleeping = true",
    "select runtime.sync_bind_session('x', 'u', 'd', 0, null)",
    "select runtime.sync_take_lead()",
    "select runtime.sync_begin_epoch('operator', null)",
    "select runtime.sync_revoke_sessions(array['y'], 'why', 'admin', null)",
    "select runtime.sync_revoke_subjects(array['u'], array['d'], 'why', 'admin', null)",
    "select runtime.sync_begin_journal(), (select max(mark) from runtime.sync_journal)",
    "select runtime.sync_keep_journal(turn, array['assignment/r'], array[1], array['{}'], 1) from runtime.sync_journal_extent",
    "select runtime.sync_forget_journal(turn, 10) from runtime.sync_journal_extent",
    "select runtime.sync_record_act('publish_module', 'database:lane', 'operator', null, null)",
];

const APPENDS: [&str; 4] = [
    "select runtime.sync_append('s', 'by-one', 'k', 'p')",
    "select runtime.sync_append_batch('s', array['by-many'], array['k'], array['p'::bytea])",
    "select runtime.sync_put_snapshot('s', 'doc', 1, 'all')",
    "select runtime.sync_project('run_summaries', '1', 1, '{}')",
];

const POLICY: [&str; 6] = [
    "insert into runtime.sync_stream_owners (stream_id, user_id) values ('s', 'u')",
    "update runtime.sync_stream_owners set org_id = 'o'",
    "insert into runtime.sync_access_policy values ('user:u', 'a.*')",
    "delete from runtime.sync_access_policy",
    "insert into runtime.sync_scope_policy values ('user:u', 'sync.presence.serve')",
    "delete from runtime.sync_scope_policy",
];

const PURGES: [&str; 4] = [
    "select runtime.sync_purge('s', 10)",
    "select runtime.sync_forget_keys(10)",
    "select runtime.sync_purge_audit(10)",
    "select runtime.sync_forget_sessions(1, '', 10)",
];

const MIRROR_POLICY: [&str; 2] = [
    "insert into runtime.sync_mirror_trusted_keys values (repeat('0a', 32), 'them.')",
    "update runtime.sync_mirror_policy set enabled = false",
];

/// What belongs to the mirror alone.
const MIRRORS: [&str; 8] = [
    "insert into runtime.sync_mirror_cursors values ('p', 's', 1)",
    "insert into runtime.sync_outbox (event_id, policy_id, source, nostr_kind, schema, d_tag, content, created_at_s, author, \
        published_as, quorum) values ('x', 'p', 'events', 30078, 's', 'd', '{}', 1, 'a', 'i', 1)",
    "insert into runtime.sync_outbox_deliveries (event_id, relay) values ('x', 'ws://r')",
    "update runtime.sync_outbox set failure = 'network'",
    "select runtime.sync_take_mirror_lead()",
    "select runtime.sync_retry_outbox(array['x'], 'operator', null)",
    "select runtime.sync_drop_outbox(array['x'], 'operator', null)",
    "select runtime.sync_give_up_relay('ws://r', 1, 'operator', null)",
];

const READS: [&str; 4] = [
    "select * from runtime.sync_stream_events",
    "select * from runtime.sync_streams, runtime.sync_retention, runtime.sync_epoch",
    "select * from runtime.sync_snapshots",
    "select * from runtime.sync_documents, runtime.sync_run_summaries, runtime.sync_payload_limits",
];

const AUDITS: [&str; 2] = [
    "select * from runtime.sync_audit",
    "select * from runtime.sync_audit_retention, runtime.sync_session_retention",
];

/// A database with an event, and a session that was revoked.
async fn held() -> Database {
    let database = database().await;
    append(&database, &["one"]).await;
    let revoked = "select runtime.sync_revoke_sessions(array['lost'], 'a lost laptop', 'admin', null)";
    owner(&database).await.execute(revoked).await.unwrap();
    database
}

async fn all_allowed(connection: &mut PgConnection, statements: &[&str]) {
    for statement in statements {
        let done = connection.execute(*statement).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_appends_and_can_do_nothing_else() {
    let database = held().await;
    let mut runtime = with_duties(&database, &["runtime"]).await;
    all_denied(&mut runtime, &NOBODY).await;
    all_denied(&mut runtime, &BRIDGE).await;
    all_denied(&mut runtime, &PURGES).await;
    all_denied(&mut runtime, &READS).await;
    all_denied(&mut runtime, &AUDITS).await;
    all_denied(&mut runtime, &MIRRORS).await;
    all_allowed(&mut runtime, &APPENDS).await;
    all_allowed(&mut runtime, &POLICY).await;
    all_allowed(&mut runtime, &MIRROR_POLICY).await;
    // As it was found: an event that is set published in the transaction that appends it would never be delivered.
    let hidden = "begin; select runtime.sync_append('s', 'hidden', 'k', 'p'); \
        update runtime.sync_streams set published_seq = head_seq; commit";
    assert_eq!(refusal(&mut runtime, hidden).await, DENIED);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_publishes_and_changes_nothing_that_happened() {
    let database = held().await;
    let mut bridge = with_duties(&database, &["bridge"]).await;
    all_denied(&mut bridge, &NOBODY).await;
    all_denied(&mut bridge, &APPENDS).await;
    all_denied(&mut bridge, &POLICY).await;
    all_denied(&mut bridge, &PURGES).await;
    all_denied(&mut bridge, &AUDITS).await;
    all_denied(&mut bridge, &MIRRORS).await;
    all_denied(&mut bridge, &MIRROR_POLICY).await;
    all_allowed(&mut bridge, &READS).await;
    all_allowed(&mut bridge, &BRIDGE).await;
    let beyond = "update runtime.sync_streams set published_seq = head_seq + 1";
    assert_eq!(refusal(&mut bridge, beyond).await, "23514");
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_reads_the_log_and_nothing_else() {
    let database = held().await;
    let mut reading = with_duties(&database, &["reading"]).await;
    all_denied(&mut reading, &NOBODY).await;
    all_denied(&mut reading, &BRIDGE).await;
    all_denied(&mut reading, &APPENDS).await;
    all_denied(&mut reading, &POLICY).await;
    all_denied(&mut reading, &PURGES).await;
    // These say who read what, on which device and from where.
    all_denied(&mut reading, &AUDITS).await;
    all_denied(&mut reading, &MIRRORS).await;
    all_denied(
        &mut reading,
        &[
            "select * from runtime.sync_sessions",
            "select * from runtime.sync_access_policy",
            "select * from runtime.sync_scope_policy",
        ],
    )
    .await;
    all_allowed(&mut reading, &READS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_reads_positions_and_hashes_and_no_payload() {
    let database = held().await;
    let mut mirror = with_duties(&database, &["mirror"]).await;
    for statements in [
        &NOBODY[..],
        &BRIDGE,
        &APPENDS,
        &POLICY,
        &PURGES,
        &READS,
        &AUDITS,
        &MIRROR_POLICY,
    ] {
        all_denied(&mut mirror, statements).await;
    }
    all_denied(
        &mut mirror,
        &[
            "select payload from runtime.sync_stream_events",
            "select idempotency_key from runtime.sync_stream_events",
            "select * from runtime.sync_sessions",
            // Whoever appends or publishes would wait for these.
            "select stream_id from runtime.sync_streams for update",
            "select stream_id from runtime.sync_streams for key share",
            "do $$ begin lock table runtime.sync_streams in share mode; end $$",
            "do $$ begin lock table runtime.sync_stream_events in access share mode; end $$",
        ],
    )
    .await;
    all_allowed(
        &mut mirror,
        &[
            "select stream_id, head_seq, oldest_seq from runtime.sync_streams",
            "select stream_id, seq, committed_at, kind, payload_hash from runtime.sync_stream_events",
            "select * from runtime.sync_mirror_policy, runtime.sync_mirror_trusted_keys",
        ],
    )
    .await;
    all_allowed(&mut mirror, &MIRRORS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_reads_what_is_on_record_and_nothing_else() {
    let database = held().await;
    let mut audit = with_duties(&database, &["audit"]).await;
    for statements in [&NOBODY[..], &BRIDGE, &APPENDS, &POLICY, &PURGES, &READS, &MIRRORS] {
        all_denied(&mut audit, statements).await;
    }
    all_denied(&mut audit, &["select * from runtime.sync_sessions"]).await;
    all_allowed(&mut audit, &AUDITS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_a_revocation_back_by_forgetting_it() {
    let database = held().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "update runtime.sync_sessions set revoked_at = now() - interval '399 days', delivered_at = now();
             insert into runtime.sync_sessions (session_id, revoked_at, delivered_at)
                 values ('long-ago', now() - interval '401 days', now())",
        )
        .await
        .unwrap();
    let mut purge = with_duties(&database, &["purge"]).await;
    let forgotten = async |purge: &mut PgConnection, days: &str| -> i64 {
        let asked = format!("select gone from runtime.sync_forget_sessions({days}, '', 10)");
        sqlx::query_scalar(&asked).fetch_one(purge).await.unwrap()
    };
    assert_eq!(forgotten(&mut purge, "500").await, 0);
    assert_eq!(forgotten(&mut purge, "1").await, 1);
    assert_eq!(forgotten(&mut purge, "null").await, 0);
    assert_eq!(forgotten(&mut purge, "-1000").await, 0);
    // Only the owner decides how long it must be, also for good.
    for keep in ["null", "interval '30 days'"] {
        let set = format!("update runtime.sync_session_retention set keep = {keep}");
        owner.execute(&*set).await.unwrap();
        assert_eq!(
            forgotten(&mut purge, "1").await,
            i64::from(keep != "null"),
            "keep is {keep}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_duty_has_no_rights() {
    let database = held().await;
    let mut nobody = with_duties(&database, &[]).await;
    for statements in [
        &NOBODY[..],
        &BRIDGE,
        &APPENDS,
        &POLICY,
        &PURGES,
        &READS,
        &AUDITS,
        &MIRRORS,
        &MIRROR_POLICY,
    ] {
        all_denied(&mut nobody, statements).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_leave_by_the_policy_alone() {
    let database = held().await;
    let authority = append(&database, &["two", "three"]).await;
    let mut purge = with_duties(&database, &["purge"]).await;
    all_denied(&mut purge, &NOBODY).await;
    all_denied(&mut purge, &BRIDGE).await;
    all_denied(&mut purge, &APPENDS).await;
    let purged = async |purge: &mut PgConnection| -> i64 {
        let asked = sqlx::query_scalar("select runtime.sync_purge('s', 1000)");
        asked.fetch_one(purge).await.unwrap()
    };
    // The policy keeps everything, and whoever purges cannot change it.
    assert_eq!(purged(&mut purge).await, 0);
    let mut owner = owner(&database).await;
    let shorter = "update runtime.sync_retention set window_events = 1, log_events = 1 where class = 'otherwise'";
    owner.execute(shorter).await.unwrap();
    // Nothing is published.
    assert_eq!(purged(&mut purge).await, 0);
    authority
        .advance_published(&[(stream("s"), Seq::new(3).unwrap())])
        .await
        .unwrap();
    assert_eq!(purged(&mut purge).await, 2);
    let held = "select count(*) from runtime.sync_stream_events";
    assert_eq!(
        sqlx::query_scalar::<_, i64>(held).fetch_one(&mut owner).await.unwrap(),
        1
    );

    // A role that somebody gave DELETE, and that knows the setting by which a purge shows itself.
    let (name, url) = database.login(&[]).await.unwrap();
    let careless = format!(
        "grant usage on schema runtime to {name}; grant select, delete on runtime.sync_stream_events to {name}"
    );
    owner.execute(&*careless).await.unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    other
        .execute("select set_config('spacetime_sync.purging', 'yes', false)")
        .await
        .unwrap();
    let by_hand = "delete from runtime.sync_stream_events";
    assert_eq!(refusal(&mut other, by_hand).await, "SY007");
    // It brings its own operators, too.
    let own = format!("create schema {name} authorization {name}; grant usage on schema {name} to public");
    owner.execute(&*own).await.unwrap();
    let deceiving = format!(
        "create function {name}.same(name, name) returns boolean language sql as 'select true';
         create operator {name}.= (function = {name}.same, leftarg = name, rightarg = name);
         create function {name}.pg_get_userbyid(oid) returns name language sql as 'select current_user::name';
         set search_path = {name}, pg_catalog"
    );
    other.execute(&*deceiving).await.unwrap();
    assert_eq!(refusal(&mut other, by_hand).await, "SY007");
    assert_eq!(
        sqlx::query_scalar::<_, i64>(held).fetch_one(&mut owner).await.unwrap(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_runs_nothing_of_its_callers() {
    let database = database().await;
    let (name, url) = database.login(&["spacetime_sync_runtime"]).await.unwrap();
    let own = format!("create schema {name} authorization {name}");
    owner(&database).await.execute(&*own).await.unwrap();
    let mut runtime = PgConnection::connect(&url).await.unwrap();
    // Whatever an append calls is first found among the caller's own functions, which would run as the owner.
    let deceiving = format!(
        "create function {name}.sha256(bytea) returns bytea language plpgsql as 'begin raise exception ''mine''; end';
         create function {name}.octet_length(text) returns int language plpgsql as 'begin raise exception ''mine''; end';
         create function {name}.clock_timestamp() returns timestamptz language sql as 'select ''2000-01-01''::timestamptz';
         create temp table sync_streams (stream_id text);
         set search_path = {name}, pg_temp, pg_catalog, runtime"
    );
    runtime.execute(&*deceiving).await.unwrap();
    for statement in APPENDS.iter().take(2) {
        runtime.execute(*statement).await.unwrap();
    }
    let authority = Authority::connect(database.url(), 1).await.unwrap();
    let log = authority
        .read_events(&stream("s"), Seq::ZERO, 10, usize::MAX)
        .await
        .unwrap();
    let mut chain = ChainHash::genesis(&stream("s"));
    for event in &log {
        assert!(event.payload_matches() && event.follows(&chain), "{event:?}");
        assert!(event.committed_at_us > 1_700_000_000_000_000, "{event:?}");
        chain = event.chain_hash;
    }
    assert_eq!(log.len(), 2);
}

/// Only what is listed here runs with the owner's rights, and each of it with a pinned search path.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_as_the_owner_is_known_and_pinned() {
    let database = database().await;
    let found: Vec<(String, bool)> = sqlx::query_as(
        "select proname::text, coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false) from pg_proc
         where prosecdef and pronamespace in ('runtime'::regnamespace, 'spacetime_sync'::regnamespace) order by 1",
    )
    .fetch_all(&mut owner(&database).await)
    .await
    .unwrap();
    let known = [
        "sync_append",
        "sync_append_batch",
        "sync_begin_epoch",
        "sync_begin_journal",
        "sync_begin_reprojection",
        "sync_bind_session",
        "sync_document",
        "sync_documents_after",
        "sync_drop_outbox",
        "sync_flush_changes",
        "sync_forget_journal",
        "sync_forget_keys",
        "sync_forget_sessions",
        "sync_give_up_relay",
        "sync_keep_journal",
        "sync_lock_streams",
        "sync_project",
        "sync_purge",
        "sync_purge_audit",
        "sync_put_snapshot",
        "sync_record_act",
        "sync_register_table",
        "sync_retry_outbox",
        "sync_revoke_sessions",
        "sync_revoke_subjects",
        "sync_take_lead",
        "sync_take_mirror_lead",
        "sync_write_rows",
    ];
    assert_eq!(found, known.map(|name| (name.to_owned(), true)));
    let open: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text
         from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
         where p.pronamespace = 'runtime'::regnamespace and a.grantee = 0",
    )
    .fetch_all(&mut owner(&database).await)
    .await
    .unwrap();
    assert!(open.is_empty(), "anybody may run {open:?}");
}
