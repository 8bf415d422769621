//! Tables as streams of documents.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use spacetime_sync_tests::lane::Lane;

use super::*;

const ORDERS: &str = "create table public.orders (
    id bigint generated always as identity primary key,
    user_id text not null,
    status text not null default 'open',
    total numeric(10, 2))";

fn sha256_of(value: &Value) -> String {
    // The names of these documents are ASCII, whose order is the same everywhere.
    format!("sha256:{}", hex::encode(Sha256::digest(value.to_string())))
}

/// One writer's transactions, some of which come to nothing. It has no right but to write to the table.
async fn write(url: String, seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut writer = PgConnection::connect(&url).await.unwrap();
    for _ in 0..40 {
        let statement = match chance.random_range(0..5) {
            0 | 1 => format!(
                "insert into public.orders (user_id, total) values ('u{seed}', {})",
                chance.random_range(1..99)
            ),
            2 => format!(
                "update public.orders set status = 'paid', total = total + 1 where id % 7 = {}",
                chance.random_range(0..7)
            ),
            3 => format!("delete from public.orders where id = {}", chance.random_range(1..60)),
            _ => "insert into public.orders (user_id) select 'many' from generate_series(1, 3)".to_owned(),
        };
        let end = if chance.random_bool(0.2) { "rollback" } else { "commit" };
        // Writers of one table may deadlock over its rows, as they could before.
        if let Err(error) = writer.execute(&*format!("begin; {statement}; {end}")).await {
            assert_eq!(
                error.as_database_error().unwrap().code().as_deref(),
                Some("40P01"),
                "{error}"
            );
            writer.execute("rollback").await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_what_writers_commit_to_a_table_as_documents_in_order() {
    let lane = Lane::start().await.unwrap();
    let mut owner = owner(&lane.database).await;
    let (team, mut attacher) = with_duties(&lane.database, &["runtime"]).await;
    let (writer, writer_url) = lane.database.login(&[]).await.unwrap();
    owner.execute(ORDERS).await.unwrap();
    let rights = format!(
        "alter table public.orders owner to {team}; grant select, insert, update, delete on public.orders to {writer};
         insert into public.orders (user_id) values ('before')"
    );
    owner.execute(&*rights).await.unwrap();

    attacher
        .execute("select runtime.sync_attach('public.orders', stream => 'shop.orders')")
        .await
        .unwrap();
    let orders = stream("shop.orders");
    let bridge = lane.bridge().unwrap();
    let mut client = lane.client(std::slice::from_ref(&orders)).await.unwrap();
    client.start().unwrap();
    let writers: Vec<_> = (0..4)
        .map(|seed| tokio::spawn(write(writer_url.clone(), seed)))
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let head = number(
        &mut owner,
        "select head_seq from runtime.sync_streams where stream_id = 'shop.orders'",
    )
    .await;
    assert!(head > 50, "{head}");
    client.until_applied(u64::try_from(head).unwrap(), SOON).await.unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());

    let mut view: BTreeMap<String, Value> = BTreeMap::new();
    for event in client.applied_log(&orders).unwrap() {
        let told: Value = serde_json::from_slice(&event.payload).unwrap();
        // The payload is canonical, so it is what a sorted map prints.
        assert_eq!(told.to_string().as_bytes(), &event.payload[..]);
        assert_eq!(told["doc_version"], json!(event.seq.get()));
        let key = told["doc_key"].as_str().unwrap().to_owned();
        if event.kind.as_str() == "document.put" {
            assert_eq!(told["payload_hash"], json!(sha256_of(&told["payload"])));
            let before = view.insert(key, told["payload"].clone());
            assert_ne!(before.as_ref(), Some(&told["payload"]), "nothing changed: {told}");
        } else {
            assert_eq!(
                (event.kind.as_str(), &told["deleted"]),
                ("document.delete", &json!(true))
            );
            assert!(view.remove(&key).is_some(), "{told}");
        }
    }
    let rows: Vec<(i64, String, String, Option<String>)> =
        sqlx::query_as("select id, user_id, status, total::text from public.orders")
            .fetch_all(&mut owner)
            .await
            .unwrap();
    let expected: BTreeMap<String, Value> = rows
        .into_iter()
        .map(|(id, user_id, status, total)| {
            let document = json!({ "id": id, "user_id": user_id, "status": status, "total": total });
            (format!("public.orders:{id}"), document)
        })
        .collect();
    assert_eq!(view, expected);
    // The read model says the same, and nothing is left of what was gathered.
    let held = number(
        &mut owner,
        "select count(*) from runtime.sync_other_documents where document is not null",
    )
    .await;
    assert_eq!(held, i64::try_from(view.len()).unwrap());
    assert_eq!(number(&mut owner, "select count(*) from runtime.sync_changes").await, 0);
    assert_eq!(bridge.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_tells_of_each_row_once_as_it_is_at_last() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner.execute(ORDERS).await.unwrap();
    owner
        .execute(
            "select runtime.sync_attach('public.orders', stream => 'shop.{user_id}.orders', documents => 'shop/order')",
        )
        .await
        .unwrap();
    for transaction in [
        "insert into public.orders (user_id, total) values ('a', 1), ('a', 2), ('b', 3)",
        "begin; update public.orders set total = 9; update public.orders set total = 10 where id = 1;
             delete from public.orders where id = 2; commit",
        "begin; insert into public.orders (user_id) values ('a'); delete from public.orders where id = 4; commit",
        "begin; update public.orders set total = 0; rollback",
        // Nothing of it is different.
        "update public.orders set total = total",
        // Moved to another stream, and known by another id.
        "update public.orders set user_id = 'b' where id = 1",
        "update public.orders set id = default where id = 3",
        "insert into public.orders (user_id) values ('ü/1')",
        "truncate public.orders",
    ] {
        owner.execute(transaction).await.unwrap();
    }
    let short = async |connection: &mut PgConnection, stream_id: &str| -> Vec<String> {
        let shorten = |(kind, told): (String, Value)| {
            let total = told["payload"]["total"].as_str().unwrap_or("-").to_owned();
            let key = told["doc_key"].as_str().unwrap().replace("shop/order:", "");
            format!("{} {key} {total}", kind.trim_start_matches("document."))
        };
        told(connection, stream_id).await.into_iter().map(shorten).collect()
    };
    assert_eq!(
        short(&mut owner, "shop.a.orders").await,
        ["put 1 1.00", "put 2 2.00", "put 1 10.00", "delete 2 -", "delete 1 -"]
    );
    assert_eq!(
        short(&mut owner, "shop.b.orders").await,
        [
            "put 3 3.00",
            "put 3 9.00",
            "put 1 10.00",
            "put 5 9.00",
            "delete 3 -",
            "delete 1 -",
            "delete 5 -"
        ]
    );
    assert_eq!(
        short(&mut owner, "shop.%C3%BC%2F1.orders").await,
        ["put 6 -", "delete 6 -"]
    );
    assert_eq!(number(&mut owner, "select count(*) from runtime.sync_changes").await, 0);
}

/// A stream is locked as transactions commit, so writers that touch the same rows in another order than their streams wait for one
/// another, and none is undone.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_brings_no_deadlock() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (id int primary key, n int not null default 0);
             insert into public.items select generate_series(1, 3);
             select runtime.sync_attach('public.items', stream => 'shop.items')",
        )
        .await
        .unwrap();
    let (mut one, mut other) = (super::owner(&database).await, super::owner(&database).await);
    one.execute("begin; update public.items set n = 1 where id = 1")
        .await
        .unwrap();
    // Had the first statement locked the stream, this would wait for it, with the row that the next one wants.
    other
        .execute("update public.items set n = 2 where id = 3")
        .await
        .unwrap();
    one.execute("update public.items set n = 1 where id = 3; commit")
        .await
        .unwrap();
    let told = told(&mut owner, "shop.items").await;
    let last: Vec<&Value> = told.iter().skip(3).map(|told| &told.1["payload"]).collect();
    let row = |id: u32, n: u32| json!({ "id": id, "n": n });
    assert_eq!(last, [&row(3, 2), &row(1, 1), &row(3, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_attached_says_what_it_lacks() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.bare (id int, name text);
             create table public.loose (id int unique, name text);
             create table public.partial (id int not null, name text);
             create unique index on public.partial (id) where name is not null;
             create table public.good (id int not null unique, name text);
             create table public.other (id int primary key);
             create view public.seen as select * from public.good",
        )
        .await
        .unwrap();
    for (call, code, said) in [
        ("'public.bare', stream => 's'", "SY015", "has no primary key"),
        (
            "'public.bare', stream => 's', key => '{id}'",
            "SY015",
            "no unique index over exactly (id)",
        ),
        ("'public.loose', stream => 's', key => '{id}'", "SY015", "never null"),
        (
            "'public.partial', stream => 's', key => '{id}'",
            "SY015",
            "no unique index",
        ),
        (
            "'public.good', stream => 's', key => '{name}'",
            "SY015",
            "over exactly (name)",
        ),
        (
            "'public.good', stream => 's.{nothing}', key => '{id}'",
            "42703",
            "no column nothing",
        ),
        ("'public.good', stream => 'a b', key => '{id}'", "SY002", "stream_id"),
        (
            "'public.good', stream => 's', key => '{id}', documents => 'a:b'",
            "SY016",
            "cannot be called",
        ),
        ("'public.seen', stream => 's', key => '{id}'", "42809", "is no table"),
        ("'runtime.sync_streams', stream => 's'", "42809", "is no table"),
    ] {
        let (found, message) = refusal(&mut owner, &format!("select runtime.sync_attach({call})")).await;
        assert_eq!(found, code, "{call}: {message}");
        assert!(message.contains(said), "{call}: {message}");
    }
    owner
        .execute("select runtime.sync_attach('public.good', stream => 's', key => '{id}', documents => 'shop/good')")
        .await
        .unwrap();
    let taken = "select runtime.sync_attach('public.other', stream => 's', documents => 'shop/good')";
    assert_eq!(refusal(&mut owner, taken).await.0, "SY014");
    // A projection of a table is not a projector's.
    let by_hand = "select runtime.sync_project('public.good', '1', 1, '{}')";
    assert_eq!(refusal(&mut owner, by_hand).await.0, "SY014");
    owner
        .execute("select runtime.sync_detach('public.good'); insert into public.good values (2)")
        .await
        .unwrap();
    assert_eq!(
        number(&mut owner, "select count(*) from runtime.sync_stream_events").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_attaches_needs_the_duty_and_the_table_and_who_writes_needs_neither() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute("create table public.items (id int primary key); grant create on schema public to public")
        .await
        .unwrap();
    let attach = "select runtime.sync_attach('public.items', stream => 's')";
    let (team, mut plain) = with_duties(&database, &[]).await;
    owner
        .execute(&*format!("alter table public.items owner to {team}"))
        .await
        .unwrap();
    assert_eq!(refusal(&mut plain, attach).await.0, "42501", "without the duty");
    let (_, mut other) = with_duties(&database, &["runtime"]).await;
    assert_eq!(refusal(&mut other, attach).await.0, "42501", "without the table");
    // Nor does anybody point another's table to another stream.
    let redirect = "select runtime.sync_register_table('x', 'mine', 'public.items', '{id}', '{}')";
    assert_eq!(refusal(&mut other, redirect).await.0, "42501");
    owner
        .execute(&*format!("grant spacetime_sync_runtime to {team}"))
        .await
        .unwrap();
    plain.execute(attach).await.unwrap();

    let (writer, mut writing) = with_duties(&database, &[]).await;
    owner
        .execute(&*format!("grant insert, delete on public.items to {writer}"))
        .await
        .unwrap();
    for statement in ["insert into public.items values (1)", "delete from public.items"] {
        writing.execute(statement).await.unwrap();
    }
    assert_eq!(told(&mut owner, "s").await.len(), 2);
    for statement in [
        "select * from runtime.sync_documents",
        "select * from runtime.sync_changes",
        "select runtime.sync_append_changes()",
        "select runtime.sync_project('run_summaries', '1', 1, '{}')",
        "select runtime.sync_write_rows('public.items', '{}', '{1}', '{s}', 'done', null, 0)",
    ] {
        assert_eq!(refusal(&mut writing, statement).await.0, "42501", "{statement}");
    }
}

/// Postgres makes JSON of a type by the cast that its owner has made, and the trigger has the rights of the owner of the lane.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_runs_nothing_of_the_tables_owner() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (name, mut team) = with_duties(&database, &["runtime"]).await;
    owner
        .execute(&*format!("create schema {name} authorization {name}"))
        .await
        .unwrap();
    let deceiving = format!(
        "set search_path = {name};
         create type mood as enum ('sad', 'ok');
         create function told(mood) returns json language plpgsql
             as 'begin raise exception ''this runs as %'', current_user; end';
         create cast (mood as json) with function told(mood);
         create function spelled(mood) returns text language plpgsql
             as 'begin raise exception ''this runs as %'', current_user; end';
         create cast (mood as text) with function spelled(mood);
         create domain nested as mood;
         create table items (id int primary key, one mood, many mood[], deep nested, note text);
         insert into items values (1, 'sad', '{{ok,sad}}', 'ok', null);
         select runtime.sync_attach('items', stream => 's')"
    );
    team.execute(&*deceiving).await.unwrap();
    for statement in [
        "insert into items values (2, 'ok', null, null, 'two')",
        "update items set one = 'ok' where id = 1",
        "delete from items where id = 2",
    ] {
        team.execute(statement).await.unwrap();
    }
    let told = told(&mut owner, "s").await;
    assert_eq!(
        told[0].1["payload"],
        json!({ "id": 1, "one": "sad", "many": "{ok,sad}", "deep": "ok", "note": null })
    );
    assert_eq!(told[2].1["payload"]["one"], json!("ok"));
    assert_eq!((told.len(), told[3].0.as_str()), (4, "document.delete"));
}

/// What a session sets changes no document.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_has_one_document_whoever_writes_it() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (id int primary key, at timestamptz, span interval, bytes bytea, real float4,
                 sums numeric[], day date, many int[], doc jsonb);
             select runtime.sync_attach('public.items', stream => 's', texts => '{doc}');
             insert into public.items values (1, '2026-01-02 03:04:05+00', '1 day 2 hours', '\\x00ff', 0.1, '{1, 2.50}',
                 '2026-01-02', '{1,2}', '{\"price\": 1.5, \"many\": [1, {\"deep\": 2}]}')",
        )
        .await
        .unwrap();
    let (_, first) = told(&mut owner, "s").await.remove(0);
    assert_eq!(
        first["payload"],
        json!({
            "id": 1, "at": "2026-01-02T03:04:05+00:00", "span": "P1DT2H", "bytes": "\\x00ff", "real": "0.1",
            "sums": ["1", "2.50"], "day": "2026-01-02", "many": [1, 2],
            "doc": { "price": "1.5", "many": ["1", { "deep": "2" }] },
        })
    );
    owner
        .execute(
            "set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set intervalstyle = 'postgres'; set bytea_output = 'escape';
             set extra_float_digits = 0; set search_path = pg_temp;
             update public.items set real = real;
             select runtime.sync_reproject('public.items', 10, true)",
        )
        .await
        .unwrap();
    assert_eq!(told(&mut owner, "s").await.len(), 1);
    // A fraction that nobody has named is refused, and the statement with it.
    owner
        .execute(
            "create table public.strict (id int primary key, doc jsonb);
             select runtime.sync_attach('public.strict', stream => 'strict')",
        )
        .await
        .unwrap();
    let (code, message) = refusal(&mut owner, "insert into public.strict values (1, '{\"price\": 1.5}')").await;
    assert_eq!(code, "SY011", "{message}");
    assert_eq!(number(&mut owner, "select count(*) from public.strict").await, 0);
}
