//! A long run: load and regular faults; at the end all logs must be equal and memory flat.
//!
//! Memory is flat if the processes of a kind use in the last third of the run (after the warm-up) no more than in the
//! first third, plus [`SLACK`]. Processes are killed and restarted in between, so the comparison uses the 90th
//! percentile of the samples. SpacetimeDB keeps its log in memory, bounded by the windows. Until the windows are full,
//! its growth is compared with the bytes that were committed meanwhile.

use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use serde_json::{Map, Value, json};
use sqlx::Connection as _;

use crate::stage::{Setting, Stage};
use crate::{Held, Outcome, Record};
use spacetime_sync_tests::figures::Samples;
use spacetime_sync_tests::lane::BridgeOptions;
use spacetime_sync_tests::process::Process;
use spacetime_sync_tests::proxy::Direction;

/// The share of the run in which memory may still grow, and its upper bound.
const WARM_UP: (f64, Duration) = (0.2, Duration::from_secs(180));
/// How much more the last third may use than the first: a factor, and a number of MB.
const SLACK: (f64, f64) = (1.15, 12.0);
/// What SpacetimeDB may use per event, in bytes: a factor of the payload, and a constant.
const KEPT: (f64, f64) = (3.0, 1_500.0);
/// Events of a stream that SpacetimeDB keeps: more than are committed during one fault.
const WINDOW: u64 = 5_000;
/// Duration of a silence.
const SILENCE: Duration = Duration::from_secs(4);
const AWAY: Duration = Duration::from_millis(800);

/// The faults, which happen in turn.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Bridge,
    Spacetimedb,
    Client,
    Postgres,
    Cut,
    SilentPostgres,
    SilentSpacetimedb,
    SilentForClients,
    VanishedPostgres,
    VanishedSpacetimedb,
    VanishedForClients,
}

const FAULTS: [Fault; 11] = [
    Fault::Bridge,
    Fault::Spacetimedb,
    Fault::Client,
    Fault::Postgres,
    Fault::Cut,
    Fault::SilentPostgres,
    Fault::SilentSpacetimedb,
    Fault::SilentForClients,
    Fault::VanishedPostgres,
    Fault::VanishedSpacetimedb,
    Fault::VanishedForClients,
];

/// The settings of a soak.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// How long it runs.
    pub lasts: Duration,
    /// The interval between two faults.
    pub every: Duration,
    /// The seed of all random choices.
    pub seed: u64,
}

/// The memory of all processes at one moment.
#[derive(Debug, Clone)]
struct Look {
    at: Duration,
    bridge_mb: u64,
    spacetimedb_mb: u64,
    clients_mb: u64,
    events: u64,
}

/// Runs a soak.
pub async fn soak(soak: Soak) -> Outcome {
    let (started, mut record) = (Instant::now(), Record::default());
    let mut looks = Vec::new();
    let played = play(soak, &mut record, &mut looks).await;
    let figures = std::mem::take(&mut record.figures);
    let mut outcome = record.outcome_of("soak", soak.seed, started.elapsed(), played);
    outcome.figures = figures;
    if outcome.verdict == Held::Held
        && let Some(why) = outcome.figures.get("not_flat").and_then(Value::as_str)
    {
        outcome.why = Some(why.to_owned());
        outcome.verdict = Held::Failed;
    }
    outcome
}

async fn play(soak: Soak, record: &mut Record, looks: &mut Vec<Look>) -> anyhow::Result<()> {
    let mut stage = Stage::set(setting(), soak.seed).await?;
    stage
        .lane
        .sql(&format!("update runtime.sync_retention set window_events = {WINDOW}"))
        .await?;
    let played = faults(&mut stage, soak, record, looks).await;
    let payload = payload_bytes(&stage).await;
    stage.close(played, record, None).await?;
    let (figures, why) = judge(looks, soak.lasts, payload? as f64);
    record.figures.extend(figures);
    if let Some(why) = why {
        record.figure("not_flat", why);
    }
    Ok(())
}

/// A lane whose windows are bounded.
fn setting() -> Setting {
    Setting {
        bridge: BridgeOptions {
            set: vec![
                ("retention.windows", "on".to_owned()),
                ("retention.every_ms", "1000".to_owned()),
            ],
            ..BridgeOptions::default()
        },
        ..Setting::default()
    }
}

async fn faults(stage: &mut Stage, soak: Soak, record: &mut Record, looks: &mut Vec<Look>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut turn: Vec<Fault> = Vec::new();
    let mut number = 0;
    while started.elapsed() < soak.lasts {
        if turn.is_empty() {
            turn = FAULTS.to_vec();
            turn.shuffle(&mut stage.random);
        }
        let Some(fault) = turn.pop() else { continue };
        number += 1;
        let next = started + soak.every * number;
        let ended = fault.happen(stage, record).await?;
        stage.recovers(record, ended).await?;
        // Samples are taken only from a lane that carries events, not from one that still starts.
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            looks.extend(look(stage, started.elapsed()));
            if Instant::now() >= next || started.elapsed() >= soak.lasts {
                break;
            }
        }
        if let Some(look) = looks.last() {
            eprintln!("  {:.0} s: {look:?}", started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

impl Fault {
    /// Causes the fault and returns the moment at which it ended.
    async fn happen(self, stage: &mut Stage, record: &mut Record) -> anyhow::Result<Instant> {
        record.fault(&format!("{self:?}"));
        eprintln!("{self:?}");
        match self {
            Self::Bridge => {
                stage.bridge.process.kill();
                tokio::time::sleep(AWAY).await;
                let ended = Instant::now();
                stage.start_bridge()?;
                return Ok(ended);
            }
            Self::Spacetimedb => {
                stage.lane.server.kill();
                tokio::time::sleep(AWAY).await;
                let ended = Instant::now();
                stage.lane.server.restart().await?;
                return Ok(ended);
            }
            Self::Client => {
                stage.clients[0].kill();
                tokio::time::sleep(AWAY).await;
                stage.clients[0].start()?;
            }
            Self::Postgres => {
                stage.cluster.kill()?;
                tokio::time::sleep(AWAY).await;
                let ended = Instant::now();
                stage.cluster.restart().await?;
                return Ok(ended);
            }
            Self::Cut => {
                stage.ways.bridge_postgres.cut();
                stage.ways.bridge_spacetimedb.cut();
                stage.ways.clients.cut();
            }
            Self::SilentPostgres | Self::SilentSpacetimedb | Self::SilentForClients => {
                let way = match self {
                    Self::SilentPostgres => &stage.ways.bridge_postgres,
                    Self::SilentSpacetimedb => &stage.ways.bridge_spacetimedb,
                    _ => &stage.ways.clients,
                };
                way.stall(Direction::ToTarget);
                way.stall(Direction::ToClient);
                tokio::time::sleep(SILENCE).await;
                way.resume(Direction::ToTarget);
                way.resume(Direction::ToClient);
            }
            Self::VanishedPostgres => stage.ways.bridge_postgres.vanish(),
            Self::VanishedSpacetimedb => stage.ways.bridge_spacetimedb.vanish(),
            Self::VanishedForClients => stage.ways.clients.vanish(),
        }
        Ok(Instant::now())
    }
}

fn look(stage: &Stage, at: Duration) -> Option<Look> {
    let mb = |process: &Process| process.memory_mb().map(|(now, _)| now);
    let clients: Option<Vec<u64>> = stage.clients.iter().map(|client| mb(client.process().ok()?)).collect();
    Some(Look {
        at,
        bridge_mb: mb(&stage.bridge.process)?,
        spacetimedb_mb: mb(stage.lane.server.process()?)?,
        clients_mb: clients?.into_iter().max()?,
        events: stage.clients.first()?.applied(),
    })
}

async fn payload_bytes(stage: &Stage) -> anyhow::Result<i64> {
    let url = stage.lane.database.url_at(stage.ways.writers.addr())?;
    let mut connection = sqlx::PgConnection::connect(&url).await?;
    let bytes = sqlx::query_scalar("select sum(octet_length(payload))::bigint from runtime.sync_stream_events");
    Ok(bytes.fetch_one(&mut connection).await?)
}

/// The 90th percentile.
fn most(values: impl Iterator<Item = u64>) -> f64 {
    values.collect::<Samples>().percentile(90.0).unwrap_or(0) as f64
}

/// Whether memory is flat, and if not, why.
fn judge(looks: &[Look], lasts: Duration, payload_bytes: f64) -> (Map<String, Value>, Option<String>) {
    let warm = lasts.mul_f64(WARM_UP.0).min(WARM_UP.1);
    let looks: Vec<&Look> = looks.iter().filter(|look| look.at >= warm).collect();
    let third = looks.len() / 3;
    let (mut figures, mut why) = (Map::new(), Vec::new());
    if third == 0 {
        return (
            figures,
            Some("too few samples to say whether memory is flat".to_owned()),
        );
    }
    let (first, last) = (&looks[..third], &looks[looks.len() - third..]);
    let thirds = |of: fn(&Look) -> u64| {
        let most_of = |looks: &[&Look]| most(looks.iter().map(|look| of(look)));
        (most_of(first), most_of(last))
    };
    let is_flat = |(first, last): (f64, f64)| last <= first * SLACK.0 + SLACK.1;
    for (name, found) in [
        ("bridge", thirds(|look| look.bridge_mb)),
        ("client", thirds(|look| look.clients_mb)),
    ] {
        figures.insert(format!("{name}_mb_first_and_last_third"), json!([found.0, found.1]));
        if !is_flat(found) {
            why.push(format!("the {name} grew from {} to {} MB", found.0, found.1));
        }
    }
    let found = thirds(|look| look.spacetimedb_mb);
    let events = thirds(|look| look.events);
    let (grown, more) = ((found.1 - found.0) * 1024.0 * 1024.0, (events.1 - events.0).max(1.0));
    let all = looks.last().map_or(1, |look| look.events).max(1) as f64;
    let each = payload_bytes / all;
    figures.insert(
        "spacetimedb_mb_first_and_last_third".to_owned(),
        json!([found.0, found.1]),
    );
    figures.insert("events_between".to_owned(), json!(more));
    figures.insert("payload_bytes_an_event".to_owned(), json!(each.round()));
    figures.insert(
        "spacetimedb_bytes_grown_an_event".to_owned(),
        json!((grown / more).round()),
    );
    if !is_flat(found) && grown / more > each * KEPT.0 + KEPT.1 {
        why.push(format!(
            "SpacetimeDB grew by {:.0} bytes an event of {each:.0}",
            grown / more
        ));
    }
    (figures, (!why.is_empty()).then(|| why.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(bridge: impl Fn(u64) -> u64, spacetimedb: impl Fn(u64) -> u64) -> Vec<Look> {
        let look = |second: u64| Look {
            at: Duration::from_secs(second),
            bridge_mb: bridge(second),
            spacetimedb_mb: spacetimedb(second),
            clients_mb: 30,
            events: 1_000 * second,
        };
        (0..600).map(look).collect()
    }

    #[test]
    fn growing_memory_is_distinguished_from_varying_memory() {
        let lasts = Duration::from_secs(600);
        // A thousand events per second, a thousand bytes each.
        let bytes = 600_000.0 * 1_000.0;
        let why = |looks: Vec<Look>| judge(&looks, lasts, bytes).1;
        assert_eq!(why(looks(|second| 20 + second % 9, |_| 200)), None);
        assert!(
            why(looks(|second| 20 + second / 10, |_| 200))
                .unwrap()
                .contains("bridge")
        );
        // The log itself takes about a kB per event. Ten kB per event are a leak.
        assert_eq!(why(looks(|_| 20, |second| 100 + second)), None);
        assert!(
            why(looks(|_| 20, |second| 100 + 10 * second))
                .unwrap()
                .contains("SpacetimeDB")
        );
    }
}
