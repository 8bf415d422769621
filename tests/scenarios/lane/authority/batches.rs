//! A batch does what single appends one after the other do, whichever way it looks its keys up.

use super::*;

/// How the keys of a batch lie to one another and to those that are held.
#[derive(Clone, Copy)]
enum Keys {
    /// Numbers that grow, with as many digits each: no held key lies between them.
    Growing,
    /// The same in another order, as texts and in the batch.
    GrowingOutOfOrder,
    /// Between keys that are held, in steps that leave few or many of them between.
    Between { step: u64 },
    /// Of a few names, so that most are held or given twice.
    Repeated,
}

impl Keys {
    fn some(random: &mut StdRng) -> Self {
        match random.random_range(0..5) {
            0 => Self::Growing,
            1 => Self::GrowingOutOfOrder,
            2 => Self::Between { step: 2 },
            3 => Self::Between {
                step: random.random_range(3..40),
            },
            _ => Self::Repeated,
        }
    }

    fn keys(self, count: u64, next: &mut u64, random: &mut StdRng) -> Vec<String> {
        let from = *next;
        match self {
            Self::Growing => {
                *next += count;
                (from..*next).map(|n| format!("step-{n:09}")).collect()
            }
            Self::GrowingOutOfOrder => {
                *next += count;
                (from..*next).rev().map(|n| format!("step-{n}")).collect()
            }
            Self::Between { step } => {
                let from = random.random_range(0..=from);
                (0..count).map(|n| format!("step-{:09}", from + n * step)).collect()
            }
            Self::Repeated => (0..count)
                .map(|_| format!("name-{}", random.random_range(0..60)))
                .collect(),
        }
    }
}

fn batch(next: &mut u64, random: &mut StdRng) -> Vec<NewEvent> {
    let count = *[1, 2, 3, 4, 8, 20, 60][..].choose(random).unwrap();
    let keys = Keys::some(random).keys(count, next, random);
    // A repeat holds what its key held, but for a few, which are refused.
    let other = random.random_bool(0.2).then(|| random.random_range(0..count as usize));
    (0..)
        .zip(keys)
        .map(|(at, key)| {
            let payload = if other == Some(at) {
                "other".to_owned()
            } else {
                format!("payload of {key}")
            };
            event(&key, ["a", "run.step", "x:y/z"][key.len() % 3], payload.as_bytes())
        })
        .collect()
}

/// The seqs, or what refuses the events. In the latter case nothing stays of them.
async fn one_by_one(connection: &mut PgConnection, id: &StreamId, events: &[NewEvent]) -> Result<Vec<Seq>, String> {
    let mut transaction = connection.begin().await.unwrap();
    let mut seqs = Vec::new();
    for event in events {
        let appended = sqlx::query_scalar::<_, i64>("select runtime.sync_append($1, $2, $3, $4)")
            .bind(id.as_str())
            .bind(event.idempotency_key.as_str())
            .bind(event.kind.as_str())
            .bind(&event.payload[..])
            .fetch_one(&mut *transaction)
            .await;
        match appended {
            Ok(appended) => seqs.push(seq(u64::try_from(appended).unwrap())),
            Err(error) => return Err(error.as_database_error().unwrap().code().unwrap().into_owned()),
        }
    }
    transaction.commit().await.unwrap();
    Ok(seqs)
}

/// The log from its first event that is kept, with a chain that holds from there.
async fn kept(authority: &Authority, connection: &mut PgConnection, id: &StreamId) -> Vec<(Seq, NewEvent)> {
    let (oldest, floor): (i64, Option<Vec<u8>>) =
        sqlx::query_as("select oldest_seq, floor_chain from runtime.sync_streams where stream_id = $1")
            .bind(id.as_str())
            .fetch_one(connection)
            .await
            .unwrap();
    let before = seq(u64::try_from(oldest - 1).unwrap());
    let mut chain = floor.map_or_else(
        || ChainHash::genesis(id),
        |floor| ChainHash::from_slice(&floor).unwrap(),
    );
    let log = authority.read_events(id, before, 1_000_000, ALL).await.unwrap();
    for event in &log {
        assert!(
            event.payload_matches() && event.follows(&chain),
            "{id} at {}",
            event.seq
        );
        chain = event.chain_hash;
    }
    log.into_iter()
        .map(
            |Event {
                 seq,
                 idempotency_key,
                 kind,
                 payload,
                 ..
             }| {
                (
                    seq,
                    NewEvent {
                        idempotency_key,
                        kind,
                        payload,
                    },
                )
            },
        )
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_does_what_single_appends_one_after_the_other_do() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    connection
        .execute("update runtime.sync_retention set window_events = 100, log_events = 100 where class = 'otherwise'")
        .await
        .unwrap();
    for seed in 0..6 {
        let mut random = StdRng::seed_from_u64(seed);
        let (batched, single) = (stream(&format!("batched-{seed}")), stream(&format!("single-{seed}")));
        let mut next = 0;
        let mut refused = 0;
        for round in 0..80 {
            let events = batch(&mut next, &mut random);
            let found = authority.append_batch(&batched, &events).await;
            let found = found.map_err(|error| error.refusal().unwrap_or_else(|| panic!("{error}")).to_owned());
            let expected = one_by_one(&mut connection, &single, &events).await;
            let keys: Vec<_> = events.iter().map(|event| event.idempotency_key.as_str()).collect();
            assert_eq!(found, expected, "seed {seed}, round {round}: {keys:?}");
            refused += usize::from(expected.is_err());
            // Half of the seeds know purges. With an event its key goes, so a repeat of it is a new event.
            if seed % 2 == 1 && round % 20 == 19 {
                let published = "update runtime.sync_streams set published_seq = head_seq";
                connection.execute(published).await.unwrap();
                for id in [&batched, &single] {
                    let purge =
                        sqlx::query_scalar::<_, i64>("select runtime.sync_purge($1, 1000000)").bind(id.as_str());
                    assert!(
                        purge.fetch_one(&mut connection).await.unwrap() > 0,
                        "seed {seed}, round {round}"
                    );
                }
            }
        }
        assert!(refused > 3, "seed {seed}: only {refused} batches were refused");
        assert_eq!(
            kept(&authority, &mut connection, &batched).await,
            kept(&authority, &mut connection, &single).await
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_of_a_batch_may_begin_at_any_number() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    for (arrays, expected) in [
        ("'[5:5]={a}', '[0:0]={k}', '[-3:-3]={p}'", vec![1_i64]),
        ("'[5:6]={b,a}', '[0:1]={k,k}', '[-3:-2]={q,p}'", vec![2, 1]),
        ("'[5:7]={c,d,e}', '{k,k,k}', '[-3:-1]={r,s,t}'", vec![3, 4, 5]),
    ] {
        let found: Vec<i64> = sqlx::query_scalar(&format!("select runtime.sync_append_batch('s', {arrays})"))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(found, expected, "{arrays}");
    }
    let log = verified_log(&authority, &stream("s")).await;
    let held: Vec<_> = log
        .iter()
        .map(|event| (event.idempotency_key.as_str(), &event.payload[..]))
        .collect();
    assert_eq!(
        held,
        [("a", &b"p"[..]), ("b", b"q"), ("c", b"r"), ("d", b"s"), ("e", b"t")]
    );
}

/// What no append can do, the owner cannot do by mistake either.
#[tokio::test(flavor = "multi_thread")]
async fn the_row_of_a_stream_stays_sound() {
    let (database, authority) = setup().await;
    authority.append_batch(&stream("s"), &numbered(1, 5)).await.unwrap();
    let mut connection = client(&database).await;
    for statement in [
        "update runtime.sync_streams set published_seq = 6",
        "update runtime.sync_streams set published_seq = -1",
        "update runtime.sync_streams set oldest_seq = 7, floor_chain = sha256('')",
        "update runtime.sync_streams set oldest_seq = 0",
        "update runtime.sync_streams set oldest_seq = 2",
        "update runtime.sync_streams set floor_chain = sha256('')",
        "update runtime.sync_streams set oldest_seq = 2, floor_chain = 'short'",
        "update runtime.sync_streams set stream_id = ''",
        "insert into runtime.sync_streams (stream_id, head_chain) values ('t', 'short')",
        "insert into runtime.sync_streams (stream_id, head_chain) values (repeat('t', 256), sha256(''))",
    ] {
        assert_eq!(refusal(&mut connection, statement).await, "23514", "{statement}");
    }
    let sound = "update runtime.sync_streams set oldest_seq = 6, floor_chain = sha256(''), published_seq = 5";
    connection.execute(sound).await.unwrap();
}
