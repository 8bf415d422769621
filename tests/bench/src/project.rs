//! What a projection costs, beside the append that it makes: documents of a projector, and of a table with a trigger.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use spacetime_sync_tests::figures::rate;
use spacetime_sync_tests::postgres::Cluster;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::report::{Report, two};

/// A document of about 400 bytes, as text and as what SQL makes of it.
const MAKE: &str = r#"
    create function public.document(n bigint) returns jsonb language sql immutable as $$
      select jsonb_build_object('run_id', 'run-' || n, 'status', 'running', 'step', n, 'user', 'u42',
        'started_at', '2026-01-01T00:00:00Z', 'cost', '1.25', 'tags', '["a", "b"]'::jsonb,
        'last', '{"kind": "tool", "name": "search", "ok": true}'::jsonb, 'note', repeat('x', 200)) $$;
    create table public.plain (id bigint primary key, user_id text, status text, total numeric(10, 2), note text);
    create table public.attached (like public.plain including all);
    select runtime.sync_attach('public.attached', stream => 'bench.attached')"#;

/// A way to write. `$1` counts up from 1.
struct Way {
    name: &'static str,
    statement: &'static str,
    /// Events, or rows, of one statement.
    each: u64,
}

const WAYS: [Way; 7] = [
    Way {
        name: "append",
        statement: "select runtime.sync_append('bench.append', 'k' || $1, 'document.put', \
            convert_to(public.document($1)::text, 'UTF8'))",
        each: 1,
    },
    Way {
        name: "project",
        statement: "select runtime.sync_project('run_summaries', ($1 % 1000)::text, $1, public.document($1))",
        each: 1,
    },
    Way {
        name: "project_unchanged",
        statement: "select runtime.sync_project('notifications', ($1 * 0)::text || 'same', 1, public.document(1))",
        each: 1,
    },
    Way {
        name: "insert",
        statement: "insert into public.plain values ($1, 'u', 'open', 5, repeat('x', 200))",
        each: 1,
    },
    Way {
        name: "insert_attached",
        statement: "insert into public.attached values ($1, 'u', 'open', 5, repeat('x', 200))",
        each: 1,
    },
    Way {
        name: "insert_many",
        statement: "insert into public.plain select -1000 * $1 - n, 'u', 'open', 5, repeat('x', 200) \
            from generate_series(1, 1000) n",
        each: 1_000,
    },
    Way {
        name: "insert_many_attached",
        statement: "insert into public.attached select -1000 * $1 - n, 'u', 'open', 5, repeat('x', 200) \
            from generate_series(1, 1000) n",
        each: 1_000,
    },
];

/// Measures each way for the duration of `window`, over one connection.
pub(crate) async fn run(report: &mut Report, window: Duration) -> anyhow::Result<()> {
    report.say("projections: one connection, one transaction a statement; what Postgres uses is of all its processes");
    let database = report.cluster.create_database().await?;
    let mut connection = PgConnection::connect(database.url()).await?;
    connection.execute(MAKE).await?;
    let mut figures = serde_json::Map::new();
    for way in &WAYS {
        // Plans are made, and the first pages are there.
        let warm = drive(&mut connection, way, 0, window / 10).await?;
        let before = cpu(&report.cluster);
        let started = Instant::now();
        let done = drive(&mut connection, way, warm, window).await?.saturating_sub(warm) * way.each;
        let took = started.elapsed();
        let used = before.and_then(|before| Some(cpu(&report.cluster)?.saturating_sub(before)));
        let us = used.map(|used| used.as_secs_f64() * 1e6 / done.max(1) as f64);
        report.say(&format!(
            "  {:<21} {:>7.0} per second{}",
            way.name.replace('_', " "),
            rate(done, took),
            us.map_or(String::new(), |us| format!(", {us:.0} µs of Postgres each"))
        ));
        figures.insert(
            way.name.to_owned(),
            json!({ "per_second": rate(done, took).round(), "postgres_us": us.map(two) }),
        );
    }
    report.put("projections", figures);
    Ok(())
}

/// Writes until the time is over, counting up from `from`. Returns the last number.
async fn drive(connection: &mut PgConnection, way: &Way, from: u64, window: Duration) -> anyhow::Result<u64> {
    let (started, mut at) = (Instant::now(), from);
    while started.elapsed() < window {
        at += 1;
        sqlx::query(way.statement)
            .bind(i64::try_from(at)?)
            .execute(&mut *connection)
            .await
            .with_context(|| way.name)?;
    }
    Ok(at)
}

fn cpu(cluster: &Cluster) -> Option<Duration> {
    Some(cluster.postmaster()?.cpu()?.whole())
}
