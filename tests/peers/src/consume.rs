//! The consumer: takes every event in order, and does with it what a client of the lane does, if that is wished.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::event::Order;
use crate::work::Work;
use crate::{Reader, Target, name, now_us, store};

/// What is wished of a consumer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wish {
    /// Report when each event came.
    #[arg(long)]
    each: bool,
    /// Hash all events, and keep checkpoint and tally of each stream in SQLite files in this folder.
    #[arg(long)]
    work: Option<PathBuf>,
}

/// The consumer's report.
#[derive(Debug, Serialize)]
pub(crate) struct Consumed {
    /// How many events came, all in order.
    events: u64,
    /// When the process began, in microseconds since 1970.
    begun_us: i64,
    /// When the last event was done.
    last_us: i64,
    /// When each event of a stream was done, from the first on; empty unless wished.
    consumed_at_us: BTreeMap<String, Vec<i64>>,
}

/// Consumes.
pub(crate) async fn run(target: &Target, wish: &Wish) -> anyhow::Result<Consumed> {
    let begun_us = now_us();
    let readers = target.readers().await?;
    println!("ready");
    std::io::stdout().flush()?;
    let mut tasks = JoinSet::new();
    for (number, reader) in readers.into_iter().enumerate() {
        let (wish, each) = (wish.clone(), target.each());
        tasks.spawn(async move {
            let work = match &wish.work {
                Some(folder) => Some(Work::open(&store(folder, number), &name(number))?),
                None => None,
            };
            anyhow::Ok((name(number), one(reader, each, wish.each, work).await?))
        });
    }
    let mut report = Consumed {
        events: 0,
        begun_us,
        last_us: 0,
        consumed_at_us: BTreeMap::new(),
    };
    while let Some(done) = tasks.join_next().await {
        let (name, stream) = done??;
        report.events += stream.events;
        report.last_us = report.last_us.max(stream.last_us);
        report.consumed_at_us.insert(name, stream.consumed_at_us);
    }
    Ok(report)
}

#[derive(Default)]
struct Stream {
    events: u64,
    last_us: i64,
    consumed_at_us: Vec<i64>,
}

async fn one(mut reader: Reader, until: u64, each: bool, mut work: Option<Work>) -> anyhow::Result<Stream> {
    let mut order = Order::default();
    let mut stream = Stream::default();
    while order.seen() < until {
        let events = reader.next().await?;
        match &mut work {
            Some(work) => work.take(&mut order, &events)?,
            None => {
                for event in &events {
                    order.take(event)?;
                }
            }
        }
        stream.last_us = now_us();
        if each {
            stream.consumed_at_us.extend(events.iter().map(|_| stream.last_us));
        }
    }
    anyhow::ensure!(order.seen() == until, "{} events came instead of {until}", order.seen());
    stream.events = order.seen();
    Ok(stream)
}
