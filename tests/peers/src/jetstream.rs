//! JetStream: one JetStream stream and one connection for each of ours, and a consumer that JetStream keeps in order.

use anyhow::Context as _;
use async_nats::header::{NATS_BATCH_COMMIT, NATS_BATCH_ID, NATS_BATCH_SEQUENCE};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};

use crate::{Acknowledged, SILENCE};

/// How many events are taken at once at most.
const AT_ONCE: usize = 1_000;

async fn connect(at: &str) -> anyhow::Result<(Client, Context)> {
    let client = async_nats::connect(at).await?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(SILENCE);
    Ok((client, context))
}

/// Makes a stream that is kept on the disk.
pub(crate) async fn create(at: &str, name: &str) -> anyhow::Result<()> {
    let (_, context) = connect(at).await?;
    let config = Config {
        name: name.to_owned(),
        subjects: vec![name.to_owned()],
        storage: StorageType::File,
        allow_atomic_publish: true,
        ..Config::default()
    };
    context.create_stream(config).await?;
    Ok(())
}

pub(crate) struct Writer {
    client: Client,
    context: Context,
    name: String,
    batches: u64,
}

impl Writer {
    pub(crate) async fn open(at: &str, name: &str) -> anyhow::Result<Self> {
        let (client, context) = connect(at).await?;
        Ok(Self {
            client,
            context,
            name: name.to_owned(),
            batches: 0,
        })
    }

    /// One event is a message of its own. More are an atomic batch, of which the last message is acknowledged.
    pub(crate) async fn send(&mut self, events: Vec<Bytes>) -> anyhow::Result<Acknowledged> {
        self.batches += 1;
        let (count, id) = (events.len(), format!("{}-{}", self.name, self.batches));
        let mut acknowledged = None;
        for (sequence, event) in (1..).zip(events) {
            if count == 1 {
                acknowledged = Some(self.context.publish(self.name.clone(), event).await?);
                break;
            }
            let mut headers = HeaderMap::new();
            headers.insert(NATS_BATCH_ID, id.as_str());
            headers.insert(NATS_BATCH_SEQUENCE, sequence.to_string());
            if sequence < count {
                self.client
                    .publish_with_headers(self.name.clone(), headers, event)
                    .await?;
            } else {
                headers.insert(NATS_BATCH_COMMIT, "1");
                let last = self.context.publish_with_headers(self.name.clone(), headers, event);
                acknowledged = Some(last.await?);
            }
        }
        let acknowledged = acknowledged.context("no event to send")?;
        Ok(Box::pin(async move {
            acknowledged.await?;
            Ok(())
        }))
    }
}

pub(crate) struct Reader {
    messages: Ordered,
}

impl Reader {
    pub(crate) async fn open(at: &str, name: &str) -> anyhow::Result<Self> {
        let (client, context) = connect(at).await?;
        let config = OrderedConfig {
            deliver_subject: client.new_inbox(),
            deliver_policy: DeliverPolicy::All,
            ..OrderedConfig::default()
        };
        let consumer = context.create_consumer_on_stream(config, name).await?;
        Ok(Self {
            messages: consumer.messages().await?,
        })
    }

    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<Bytes>> {
        let ended = "JetStream ended the consumer";
        let mut events = vec![self.messages.next().await.context(ended)??.message.payload];
        while events.len() < AT_ONCE
            && let Some(message) = self.messages.next().now_or_never()
        {
            events.push(message.context(ended)??.message.payload);
        }
        Ok(events)
    }
}
