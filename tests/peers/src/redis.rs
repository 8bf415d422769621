//! Redis streams: pipelines of `XADD`, and `XREAD` that waits, each on a connection of its own.

use anyhow::Context as _;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Value};

use crate::Acknowledged;

/// How many events are taken at once at most.
const AT_ONCE: usize = 1_000;
/// How long one `XREAD` waits.
const WAIT_MS: u64 = 5_000;

async fn connect(at: &str) -> anyhow::Result<MultiplexedConnection> {
    // A command that waits, or a disk that is slow, is not late.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(format!("redis://{at}/"))?;
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

pub(crate) struct Writer {
    connection: MultiplexedConnection,
    name: String,
}

impl Writer {
    pub(crate) async fn open(at: &str, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            connection: connect(at).await?,
            name: name.to_owned(),
        })
    }

    /// All events in one pipeline. It is sent when its acknowledgement is first waited for.
    pub(crate) fn send(&mut self, events: Vec<Bytes>) -> Acknowledged {
        let mut pipeline = redis::pipe();
        for event in &events {
            pipeline
                .cmd("XADD")
                .arg(&self.name)
                .arg("*")
                .arg("e")
                .arg(&event[..])
                .ignore();
        }
        let mut connection = self.connection.clone();
        Box::pin(async move { Ok(pipeline.query_async::<()>(&mut connection).await?) })
    }
}

pub(crate) struct Reader {
    connection: MultiplexedConnection,
    name: String,
    last: Vec<u8>,
}

impl Reader {
    pub(crate) async fn open(at: &str, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            connection: connect(at).await?,
            name: name.to_owned(),
            last: b"0".to_vec(),
        })
    }

    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<Bytes>> {
        loop {
            let answer: Value = redis::cmd("XREAD")
                .arg("COUNT")
                .arg(AT_ONCE)
                .arg("BLOCK")
                .arg(WAIT_MS)
                .arg("STREAMS")
                .arg(&self.name)
                .arg(&self.last)
                .query_async(&mut self.connection)
                .await?;
            if answer == Value::Nil {
                continue;
            }
            return self.entries(answer).context("Redis answers XREAD with something else");
        }
    }

    /// What was read: `[[stream, [[id, [field, event]], …]]]`.
    fn entries(&mut self, answer: Value) -> Option<Vec<Bytes>> {
        let (_, entries) = pair(array(answer)?.pop()?)?;
        let mut events = Vec::new();
        for entry in array(entries)? {
            let (id, fields) = pair(entry)?;
            let (_, event) = pair(fields)?;
            self.last = bulk(id)?;
            events.push(Bytes::from(bulk(event)?));
        }
        Some(events)
    }
}

fn array(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn pair(value: Value) -> Option<(Value, Value)> {
    let mut values = array(value)?.into_iter();
    Some((values.next()?, values.next()?))
}

fn bulk(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
