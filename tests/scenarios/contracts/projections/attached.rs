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
