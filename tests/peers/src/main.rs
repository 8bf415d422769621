//! Publishes to a peer of the lane and consumes from it, for `scripts/bench --peers`. Each call is one process with one role;
//! the benchmark starts the peer's server and calls this program, which ends with one line of JSON.
//!
//! An event is 512 bytes: its number within its stream in eight, then random ones. A consumer refuses any other order. It
//! never looks for events that nobody published, and never publishes.

mod consume;
mod durable_streams;
mod event;
mod jetstream;
mod publish;
mod redis;
mod work;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// How long a peer may say nothing. What it has not done by then, it will not do.
const SILENCE: Duration = Duration::from_secs(60);

/// Publishes to a peer of the lane, or consumes from it.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Makes the streams.
    Create(Target),
    /// Publishes events, and reports when.
    Publish {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        pace: publish::Pace,
    },
    /// Consumes events in order, and reports when. Says `ready` on a line of its own when it waits for the first.
    Consume {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        wish: consume::Wish,
    },
}

/// What is published to or consumed from.
#[derive(Debug, Clone, Args)]
struct Target {
    /// The kind of server.
    #[arg(long, value_enum)]
    peer: Peer,
    /// Its host and port.
    #[arg(long)]
    at: String,
    /// The number of streams. They share the events equally.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// The number of events, over all streams.
    #[arg(long, default_value_t = 0)]
    events: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// NATS JetStream.
    Jetstream,
    /// Redis streams.
    Redis,
    /// The server of the crate durable-streams.
    DurableStreams,
}

/// Comes true when the peer has acknowledged.
type Acknowledged = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Writes to one stream.
enum Writer {
    Jetstream(Box<jetstream::Writer>),
    Redis(redis::Writer),
    DurableStreams(durable_streams::Writer),
}

/// Reads one stream from its first event on.
enum Reader {
    Jetstream(Box<jetstream::Reader>),
    Redis(redis::Reader),
    DurableStreams(durable_streams::Reader),
}

impl Target {
    /// Makes the streams.
    async fn create(&self) -> anyhow::Result<()> {
        for number in 0..self.streams {
            match self.peer {
                Peer::Jetstream => jetstream::create(&self.at, &name(number)).await?,
                // A stream begins with its first entry.
                Peer::Redis => {}
                Peer::DurableStreams => durable_streams::create(&self.at, &name(number)).await?,
            }
        }
        Ok(())
    }

    /// A writer for each stream.
    async fn writers(&self) -> anyhow::Result<Vec<Writer>> {
        let mut writers = Vec::new();
        for number in 0..self.streams {
            let name = name(number);
            writers.push(match self.peer {
                Peer::Jetstream => Writer::Jetstream(Box::new(jetstream::Writer::open(&self.at, &name).await?)),
                Peer::Redis => Writer::Redis(redis::Writer::open(&self.at, &name).await?),
                Peer::DurableStreams => Writer::DurableStreams(durable_streams::Writer::open(&self.at, &name)?),
            });
        }
        Ok(writers)
    }

    /// A reader for each stream.
    async fn readers(&self) -> anyhow::Result<Vec<Reader>> {
        let mut readers = Vec::new();
        for number in 0..self.streams {
            let name = name(number);
            readers.push(match self.peer {
                Peer::Jetstream => Reader::Jetstream(Box::new(jetstream::Reader::open(&self.at, &name).await?)),
                Peer::Redis => Reader::Redis(redis::Reader::open(&self.at, &name).await?),
                Peer::DurableStreams => Reader::DurableStreams(durable_streams::Reader::open(&self.at, &name)?),
            });
        }
        Ok(readers)
    }

    /// How many events each stream has.
    fn each(&self) -> u64 {
        self.events / self.streams.max(1) as u64
    }
}

impl Writer {
    /// Hands over the next events. They are in order before those of the next call, acknowledged or not.
    async fn send(&mut self, events: Vec<Bytes>) -> anyhow::Result<Acknowledged> {
        match self {
            Self::Jetstream(writer) => writer.send(events).await,
            Self::Redis(writer) => Ok(writer.send(events)),
            Self::DurableStreams(writer) => Ok(writer.send(&events)),
        }
    }
}

impl Reader {
    /// The next events, at least one. Waits for them.
    async fn next(&mut self) -> anyhow::Result<Vec<Bytes>> {
        let next = async {
            match self {
                Self::Jetstream(reader) => reader.next().await,
                Self::Redis(reader) => reader.next().await,
                Self::DurableStreams(reader) => reader.next().await,
            }
        };
        tokio::time::timeout(SILENCE, next)
            .await
            .context("the peer delivers nothing any more")?
    }
}

/// The name of a stream, which all peers allow.
fn name(number: usize) -> String {
    format!("stream-{number}")
}

/// Microseconds since 1970.
fn now_us() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64)
}

/// A file of a stream, in the folder of a consumer's checkpoints.
fn store(folder: &std::path::Path, number: usize) -> PathBuf {
    folder.join(format!("{}.sqlite", name(number)))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Create(target) => target.create().await,
        Role::Publish { target, pace } => {
            println!("{}", serde_json::to_string(&publish::run(&target, &pace).await?)?);
            Ok(())
        }
        Role::Consume { target, wish } => {
            println!("{}", serde_json::to_string(&consume::run(&target, &wish).await?)?);
            Ok(())
        }
    }
}
