//! The publisher: in bulk, or single events at a fixed rate.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::event::Events;
use crate::{SILENCE, Target, Writer, name, now_us};

/// How to publish.
#[derive(Debug, Clone, Args)]
pub(crate) struct Pace {
    /// How many events are handed over at once.
    #[arg(long, default_value_t = 1)]
    at_once: usize,
    /// How often the writer of a stream hands over without having an acknowledgement.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Publish single events, so many a second over all streams, each acknowledged before its stream's next.
    #[arg(long)]
    per_second: Option<u64>,
}

/// The publisher's report.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Published {
    /// When it began, in microseconds since 1970.
    begun_us: i64,
    /// When everything was acknowledged.
    ended_us: i64,
    /// When the events of each stream were handed over, at a fixed rate only.
    published_at_us: BTreeMap<String, Vec<i64>>,
    /// When they were acknowledged.
    acknowledged_at_us: BTreeMap<String, Vec<i64>>,
}

/// Publishes.
pub(crate) async fn run(target: &Target, pace: &Pace) -> anyhow::Result<Published> {
    let writers = target.writers().await?;
    let (each, streams) = (target.each(), target.streams as u64);
    let mut report = Published {
        begun_us: now_us(),
        ..Published::default()
    };
    let mut tasks = JoinSet::new();
    let begin = tokio::time::Instant::now();
    for (number, writer) in writers.into_iter().enumerate() {
        let pace = pace.clone();
        tasks.spawn(async move {
            let times = match pace.per_second {
                Some(per_second) => {
                    let between = Duration::from_micros(1_000_000 * streams / per_second.max(1));
                    let first = begin + between * number as u32 / streams as u32;
                    paced(writer, number, each, first, between).await?
                }
                None => {
                    bulk(writer, number, each, &pace).await?;
                    Vec::new()
                }
            };
            anyhow::Ok((name(number), times))
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (name, times) = done??;
        let (published, acknowledged) = times.into_iter().unzip();
        report.published_at_us.insert(name.clone(), published);
        report.acknowledged_at_us.insert(name, acknowledged);
    }
    report.ended_us = now_us();
    Ok(report)
}

async fn bulk(mut writer: Writer, number: usize, events: u64, pace: &Pace) -> anyhow::Result<()> {
    let (mut made, mut left) = (Events::of(number), usize::try_from(events)?);
    let mut in_flight = FuturesOrdered::new();
    while left > 0 || !in_flight.is_empty() {
        if left > 0 && in_flight.len() < pace.in_flight {
            let count = left.min(pace.at_once);
            in_flight.push_back(writer.send(made.next(count)).await?);
            left -= count;
            continue;
        }
        let acknowledged = tokio::time::timeout(SILENCE, in_flight.next()).await;
        acknowledged
            .context("the peer acknowledges nothing any more")?
            .transpose()?;
    }
    Ok(())
}

/// When each event was handed over, and when it was acknowledged.
async fn paced(
    mut writer: Writer,
    number: usize,
    events: u64,
    first: tokio::time::Instant,
    between: Duration,
) -> anyhow::Result<Vec<(i64, i64)>> {
    let mut made = Events::of(number);
    let mut beat = tokio::time::interval_at(first, between);
    let mut times = Vec::new();
    for _ in 0..events {
        beat.tick().await;
        let events = made.next(1);
        let published_us = now_us();
        writer.send(events).await?.await?;
        times.push((published_us, now_us()));
    }
    Ok(times)
}
