//! The seam between documents by key and events: whoever has every page of a stream's documents, and then the events after their
//! position, has exactly what the stream holds.
//!
//! Injected: writers of a table and a projector beside one another, documents that change, are deleted, come again and move between
//! streams, transactions of many rows and such that are rolled back, purges that leave few events, and positions that are published
//! late. Not injected: connections that break, and restored databases. A seed determines the choices, and `SYNC_SEED` repeats it; how
//! the writers mesh also depends on the machine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use spacetime_sync_authority::{Authority, DocumentsRead};
use spacetime_sync_issuer::history::{Cursor, Judged, judge};
use spacetime_sync_proto::document::{Document, DocumentState};
use spacetime_sync_proto::{ChainHash, PayloadHash, Position, Seq, document_hash};

use super::*;

const LANES: [&str; 2] = ["a", "b"];
const ROWS: i32 = 40;
const STEPS: usize = 120;
/// So many clients follow at a time.
const CLIENTS: usize = 8;

/// What a client holds of a stream: the hash of each document, by its key.
type Held = BTreeMap<String, PayloadHash>;

fn stream_of(lane: &str) -> StreamId {
    stream(&format!("docs.{lane}"))
}

fn seed() -> u64 {
    let seed = match std::env::var("SYNC_SEED") {
        Ok(seed) => seed.parse().expect("SYNC_SEED is a number"),
        Err(_) => rand::rng().random(),
    };
    eprintln!("SYNC_SEED={seed}");
    seed
}

fn held(documents: impl IntoIterator<Item = (String, Value)>) -> Held {
    let hash = |document: Value| document_hash(document.to_string().as_bytes()).unwrap();
    documents
        .into_iter()
        .map(|(key, document)| (key, hash(document)))
        .collect()
}

/// A database with an attached table, whose events leave soon.
async fn attached(log_events: usize) -> (Database, Authority) {
    let database = database().await;
    owner(&database)
        .await
        .execute(&*format!(
            "create table public.things (id int primary key, lane text not null, body text not null);
             select runtime.sync_attach('public.things', stream => 'docs.{{lane}}', documents => 'thing');
             update runtime.sync_retention set window_events = 1, log_events = {log_events} where class = 'otherwise'",
        ))
        .await
        .unwrap();
    let authority = Authority::connect(database.url(), 4).await.unwrap();
    (database, authority)
}

/// One transaction of a writer of the table.
async fn write_rows(rng: &mut StdRng, connection: &mut PgConnection) {
    let mut statements = String::from("begin;");
    for _ in 0..rng.random_range(1..=4) {
        let (id, lane) = (rng.random_range(0..ROWS), LANES[rng.random_range(0..2)]);
        // Some documents are so large that their events hold pointers.
        let length = if rng.random_bool(0.05) {
            70_000
        } else {
            rng.random_range(0..40)
        };
        let body = format!("repeat('x', {length}) || {}", rng.random::<u16>());
        statements += &match rng.random_range(0..10) {
            0..5 => format!(
                "insert into public.things values ({id}, '{lane}', {body})
                   on conflict (id) do update set body = excluded.body;"
            ),
            5..7 => format!("update public.things set lane = '{lane}' where id = {id};"),
            7..9 => format!("delete from public.things where id = {id};"),
            _ => format!("update public.things set body = body || '.' where id % 7 = {id} % 7;"),
        };
    }
    statements += if rng.random_bool(0.1) { "rollback" } else { "commit" };
    // Writers that meet may be refused as a deadlock. What is refused has not happened.
    if let Err(error) = connection.execute(&*statements).await {
        let code = error
            .as_database_error()
            .and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("40P01"), "{error}");
        connection.execute("rollback").await.unwrap();
    }
}

/// What a projector has projected: of each entity, where it is and what it says.
type Projected = BTreeMap<String, (&'static str, Value)>;

async fn project(rng: &mut StdRng, connection: &mut PgConnection, projected: &mut Projected, at: usize) {
    let entity = format!("w{}", rng.random_range(0..15));
    let lane = LANES[rng.random_range(0..2)];
    let document = (!rng.random_bool(0.25)).then(|| json!({ "at": at, "é": [entity] }));
    // A deletion is told where the document is.
    let lane = match (&document, projected.get(&entity)) {
        (None, Some((lane, _))) => *lane,
        (None, None) | (Some(_), _) => lane,
    };
    sqlx::query("select runtime.sync_project('worker_lifecycle', $1, $2, $3::jsonb, $4)")
        .bind(&entity)
        .bind(at as i64 + 1)
        .bind(document.as_ref().map(Value::to_string))
        .bind(stream_of(lane).as_str())
        .execute(connection)
        .await
        .unwrap();
    match document {
        Some(document) => projected.insert(entity, (lane, document)),
        None => projected.remove(&entity),
    };
}

/// Publishes up to some seq, and purges, until the writers are done.
async fn maintain(mut rng: StdRng, authority: Authority, mut connection: PgConnection, done: &AtomicBool) -> u64 {
    let mut purged = 0;
    while !done.load(Ordering::Relaxed) {
        for lane in LANES {
            let published = format!(
                "update runtime.sync_streams set published_seq = greatest(published_seq, head_seq - {})
                   where stream_id = 'docs.{lane}'",
                rng.random_range(0..20)
            );
            connection.execute(&*published).await.unwrap();
            purged += authority.purge(&stream_of(lane), 20).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    purged
}

/// Reads all pages of a stream's documents. `None` if the log does not continue their position any more.
async fn read_pages(rng: &mut StdRng, authority: &Authority, id: &StreamId) -> Option<(Position, Held, usize)> {
    let (mut at, mut held, mut after, mut pages) = (None::<Position>, Held::new(), None::<String>, 0);
    loop {
        let most = rng.random_range(1..12);
        let seq = at.map(|at| at.seq);
        let read = authority.documents(id, seq, after.as_deref(), most).await.unwrap();
        let DocumentsRead {
            at: seq,
            log,
            rows,
            next_after,
        } = read;
        let chain = at.map(|at| at.chain);
        let chain = match judge(id, Cursor { after: seq, chain }, &log) {
            Judged::Good(chain) => chain,
            Judged::Stale(_) => {
                assert!(
                    at.is_some(),
                    "the bridge chose a position that the log does not continue"
                );
                return None;
            }
            Judged::Broken => panic!("the log of {id} is broken at {seq}"),
        };
        at = Some(Position { seq, chain });
        assert!(rows.len() <= most);
        for row in rows {
            assert!(row.seq <= seq, "{} is of {}, the page of {seq}", row.key, row.seq);
            assert!(
                after.as_ref().is_none_or(|after| *after < row.key),
                "keys come in order"
            );
            after = Some(row.key.clone());
            if let Some(json) = row.json {
                assert_eq!(document_hash(json.as_bytes()).unwrap(), row.pointer.hash);
            }
            held.insert(row.key, row.pointer.hash);
        }
        pages += 1;
        after = match next_after {
            Some(key) => Some(key),
            None => return Some((at?, held, pages)),
        };
    }
}

/// Applies the events after a position. `None` if they are purged. Each tells of something that the documents did not have.
async fn follow(authority: &Authority, id: &StreamId, at: Position, held: &mut Held) -> Option<Position> {
    let history = authority.history(id, at.seq, 1_000_000, usize::MAX).await.unwrap();
    let Judged::Good(mut chain) = judge(
        id,
        Cursor {
            after: at.seq,
            chain: Some(at.chain),
        },
        &history,
    ) else {
        return None;
    };
    for event in &history.events {
        assert!(event.follows(&chain));
        chain = event.chain_hash;
        let document = Document::told(event.seq, &event.kind, &event.payload).unwrap();
        match document.state {
            DocumentState::Content { hash, .. } => held.insert(document.key, hash),
            DocumentState::Pointer(pointer) => held.insert(document.key, pointer.hash),
            DocumentState::Deleted => held.remove(&document.key),
        };
    }
    let seq = history.events.last().map_or(at.seq, |event| event.seq);
    Some(Position { seq, chain })
}

/// A client that begins while others write: it reads pages, and begins anew whenever the log has left it behind.
async fn begin(rng: &mut StdRng, authority: &Authority, id: &StreamId) -> (Position, Held, usize) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        if let Some(begun) = read_pages(rng, authority, id).await {
            return begun;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the log leaves every client behind"
        );
    }
}

async fn table(owner: &mut PgConnection, lane: &str) -> Vec<(String, Value)> {
    let rows: Vec<(i32, String)> = sqlx::query_as("select id, body from public.things where lane = $1")
        .bind(lane)
        .fetch_all(owner)
        .await
        .unwrap();
    let document = |(id, body)| (format!("thing:{id}"), json!({ "id": id, "lane": lane, "body": body }));
    rows.into_iter().map(document).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pages_and_the_events_after_them_are_what_the_stream_holds() {
    let mut seeds = StdRng::seed_from_u64(seed());
    let (mut begun_while_writing, mut by_several_pages, mut all_purged, mut anew) = (0, 0, 0, 0);
    // The shorter the log, the more clients it leaves behind.
    for log_events in [100, 40, 15] {
        let (database, authority) = attached(log_events).await;
        let done = AtomicBool::new(false);
        let mut rng = || StdRng::seed_from_u64(seeds.random());
        let [rng_table, rng_other, rng_projector, rng_upkeep, rng_client] = [rng(), rng(), rng(), rng(), rng()];
        let writer = async |mut rng: StdRng| {
            let mut connection = owner(&database).await;
            connection.execute("set deadlock_timeout = '10ms'").await.unwrap();
            for _ in 0..STEPS {
                write_rows(&mut rng, &mut connection).await;
            }
        };
        let projector = async |mut rng: StdRng| {
            let (mut connection, mut projected) = (owner(&database).await, Projected::new());
            for at in 0..STEPS {
                project(&mut rng, &mut connection, &mut projected, at).await;
            }
            projected
        };
        let writing = async {
            let (_, _, projected) = tokio::join!(writer(rng_table), writer(rng_other), projector(rng_projector));
            done.store(true, Ordering::Relaxed);
            projected
        };
        // Clients that begin while others write, and then keep up with the events as long as the log lets them.
        let clients = async {
            let (mut rng, mut clients, mut left_behind) = (rng_client, Vec::new(), 0);
            while !done.load(Ordering::Relaxed) {
                let lane = LANES[rng.random_range(0..2)];
                clients.push((lane, begin(&mut rng, &authority, &stream_of(lane)).await));
                let mut following = Vec::new();
                for (lane, (at, mut held, pages)) in clients {
                    match follow(&authority, &stream_of(lane), at, &mut held).await {
                        Some(at) => following.push((lane, (at, held, pages))),
                        None => left_behind += 1,
                    }
                }
                if following.len() > CLIENTS {
                    following.swap_remove(rng.random_range(0..CLIENTS));
                }
                clients = following;
            }
            (rng, clients, left_behind)
        };
        let upkeep = maintain(rng_upkeep, authority.clone(), owner(&database).await, &done);
        let (projected, (mut rng, clients, left_behind), purged) = tokio::join!(writing, clients, upkeep);
        all_purged += purged;
        anew += left_behind;

        let mut owner = owner(&database).await;
        for lane in LANES {
            let id = stream_of(lane);
            let of_projector = projected.iter().filter(|(_, (at, _))| *at == lane);
            let of_projector =
                of_projector.map(|(entity, (_, document))| (format!("runtime/worker:{entity}"), document.clone()));
            let expected = held(table(&mut owner, lane).await.into_iter().chain(of_projector));
            // Whoever began early enough has the same by now, and so has whoever begins only now.
            for (_, (at, mut held, pages)) in clients.iter().filter(|(of, _)| *of == lane).cloned() {
                if follow(&authority, &id, at, &mut held).await.is_some() {
                    assert_eq!(held, expected, "{id}, begun at {}", at.seq);
                    begun_while_writing += 1;
                    by_several_pages += u32::from(pages > 1);
                }
            }
            let (at, mut held, _) = begin(&mut rng, &authority, &id).await;
            follow(&authority, &id, at, &mut held).await.unwrap();
            assert_eq!(held, expected, "{id}, begun at the end");
        }
    }
    eprintln!(
        "{begun_while_writing} clients began while others wrote, {by_several_pages} of them by several pages, {anew} were left behind; {all_purged} events were purged"
    );
    assert!(
        by_several_pages >= 3,
        "clients that begin while others write are what this test is about"
    );
    assert!(all_purged > 100, "the log keeps few events");
}

/// A log that keeps few events has lost what it told of most documents. The pages have it.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_purge_the_pages_hold_the_newest_of_every_key_and_nothing_deleted() {
    let (database, authority) = attached(30).await;
    let mut owner = owner(&database).await;
    // Each is a transaction, which tells of what has changed in the end.
    for statement in [
        "insert into public.things select n, 'a', 'first' from generate_series(1, 200) n",
        "update public.things set body = 'second' where id % 2 = 0",
        "update public.things set lane = 'b' where id % 5 = 0",
        "delete from public.things where id % 3 = 0",
        "update runtime.sync_streams set published_seq = head_seq",
    ] {
        owner.execute(statement).await.unwrap();
    }
    for lane in LANES {
        let id = stream_of(lane);
        let expected = held(table(&mut owner, lane).await);
        let whole = authority.extent(&id).await.unwrap().unwrap();
        assert!(
            whole.head_seq.get() > expected.len() as u64,
            "there is something to compact"
        );
        while authority.purge(&id, 1_000).await.unwrap() > 0 {}
        let extent = authority.extent(&id).await.unwrap().unwrap();
        assert_eq!(extent.head_seq.since(extent.floor()), 30);
        // What the log still tells of is not the half of it.
        let mut from_the_log = Held::new();
        let floor = Position {
            seq: extent.floor(),
            chain: extent.floor_chain,
        };
        follow(&authority, &id, floor, &mut from_the_log).await.unwrap();
        assert!(from_the_log.len() < expected.len());
        let mut rng = StdRng::seed_from_u64(1);
        let (at, found, pages) = read_pages(&mut rng, &authority, &id).await.unwrap();
        assert_eq!((at.seq, at.chain), (extent.head_seq, extent.head_chain));
        assert!(pages > 2);
        assert_eq!(found, expected, "{id}");
    }
    let untouched = authority.documents(&stream("docs.c"), None, None, 10).await.unwrap();
    let genesis = ChainHash::genesis(&stream("docs.c"));
    assert_eq!((untouched.at, untouched.log.chain), (Seq::ZERO, Some(genesis)));
}
