//! One long stream: whether publishing, applying and catching up stay as fast as they were at its beginning.

use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use spacetime_sync_tests::figures::{median, rate};
use spacetime_sync_tests::postgres::Cluster;

use crate::bare;
use crate::crowd::{Behaviour, Crowd, Member};
use crate::measure::now_us;
use crate::report::{Report, two};
use crate::stage::{LIMIT, Stage};

const PARTS: u64 = 10;
/// Events of a stream that counts as short.
const SHORT: u64 = 1_000;
/// Starts of a client of which the median counts.
const STARTS: usize = 5;

pub(crate) const FULL: u64 = 2_000_000;
pub(crate) const QUICK: u64 = 200_000;

/// How soon a client has its first event.
#[derive(Debug, Clone, Copy, Serialize)]
struct First {
    /// Of a client that has applied nothing, in milliseconds from the start of its process.
    beginning_ms: f64,
    /// Of a client that has applied all but the last event.
    end_ms: f64,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
struct Long {
    /// Events per second published and applied, by tenths of the stream.
    per_second: Vec<f64>,
    /// Microseconds of the host's CPU for each event, by tenths of the stream.
    host_us: Vec<f64>,
    /// Events per second of a client that reads all, by tenths of the stream.
    away_per_second: Vec<f64>,
    short: First,
    long: First,
}

/// Starts a process with one client.
fn follow(stage: &mut Stage, member: &Member, until: u64, mark_every: Option<u64>) -> anyhow::Result<Crowd> {
    let behaviour = Behaviour {
        until: Some(until),
        mark_every,
        ..Behaviour::default()
    };
    stage.crowd(vec![member.clone()], behaviour)
}

/// How soon clients have their first event. `member` has applied everything.
async fn first_event(stage: &mut Stage, member: &Member) -> anyhow::Result<First> {
    let (mut beginning, mut end) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let anew = stage.member().await?;
        let started_us = now_us();
        // It stays long enough to apply something, and is then killed.
        let mut crowd = follow(stage, &anew, u64::MAX, Some(1))?;
        beginning.push((crowd.first_us().await? - started_us) as f64 / 1_000.0);

        stage.write(1).await?;
        stage.published().await?;
        let (started_us, until) = (now_us(), stage.held());
        let report = follow(stage, member, until, None)?.done().await?;
        end.push((report.first_us - started_us) as f64 / 1_000.0);
    }
    Ok(First {
        beginning_ms: two(median(&mut beginning)),
        end_ms: two(median(&mut end)),
    })
}

async fn measure(cluster: &Cluster, events: u64) -> anyhow::Result<Long> {
    let mut stage = Stage::start(cluster).await?;
    stage.write(SHORT).await?;
    stage.published().await?;
    let member = stage.member().await?;
    let until = stage.held();
    follow(&mut stage, &member, until, None)?.done().await?;
    let short = first_event(&mut stage, &member).await?;

    let begin = stage.held();
    let part = events / PARTS;
    let (mut per_second, mut host_us) = (Vec::new(), Vec::new());
    let mut crowd = follow(&mut stage, &member, begin + PARTS * part, Some(part))?;
    crowd.live().await?;
    for number in 1..=PARTS {
        let (started, before) = (Instant::now(), stage.host_cpu()?);
        stage.write(part).await?;
        tokio::time::timeout(LIMIT, crowd.reached(number * part))
            .await
            .context("the client took too long")??;
        per_second.push(rate(part, started.elapsed()).round());
        host_us.push(two(
            stage.host_cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / part as f64
        ));
    }
    crowd.done().await?;
    stage.published().await?;

    let anew = stage.member().await?;
    let until = stage.held();
    let (mut away_per_second, mut last_us) = (Vec::new(), now_us());
    let mut crowd = follow(&mut stage, &anew, until, Some(part))?;
    for number in 1..=PARTS {
        let at_us = crowd.reached(number * part).await?;
        away_per_second.push((part as f64 * 1e6 / (at_us - last_us).max(1) as f64).round());
        last_us = at_us;
    }
    crowd.done().await?;
    let long = first_event(&mut stage, &member).await?;
    Ok(Long {
        per_second,
        host_us,
        away_per_second,
        short,
        long,
    })
}

/// The figures divided by the first of them.
fn of_first(figures: &[f64]) -> String {
    let ratios = figures.iter().map(|figure| format!("{:.2}", figure / figures[0]));
    ratios.collect::<Vec<_>>().join(" ")
}

impl Report {
    pub(crate) async fn long(&mut self, events: u64) -> anyhow::Result<()> {
        self.say(&format!("one stream of {events} events, 512 B, by its tenths"));
        let found = measure(&self.cluster, events).await?;
        let Long {
            per_second,
            host_us,
            away_per_second,
            short,
            long,
        } = &found;
        self.say(&format!(
            "  published and applied: {:.0} per second in the first tenth; of that: {}",
            per_second[0],
            of_first(per_second)
        ));
        self.say(&format!(
            "  CPU of the host per event: {:.2} µs in the first tenth; of that: {}",
            host_us[0],
            of_first(host_us)
        ));
        self.say(&format!(
            "  a client that reads all: {:.0} per second in the first tenth; of that: {}",
            away_per_second[0],
            of_first(away_per_second)
        ));
        for (what, first) in [(SHORT, short), (events, long)] {
            self.say(&format!(
                "  {what:>7} events: the first one after {:.0} ms for a client that has none, after {:.0} ms for one that lacks \
                 only the last",
                first.beginning_ms, first.end_ms
            ));
        }
        let subscriptions = bare::subscriptions(&[SHORT, events / 40, events / 10]).await?;
        for bare::Subscription {
            frames,
            answer_ms,
            host_ms,
        } in &subscriptions
        {
            self.say(&format!(
                "  {frames:>7} frames: a subscription is answered after {answer_ms:.2} ms, with {host_ms:.2} ms of the host's CPU"
            ));
        }
        self.put(
            "long",
            json!({ "events": events, "found": found, "subscriptions": subscriptions }),
        );
        Ok(())
    }
}
