//! The server of the crate durable-streams, over its HTTP protocol: a request for each append, and long polls, each on a
//! connection of its own.

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, StatusCode};

use crate::Acknowledged;
use crate::event::SIZE;

const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const NEXT: &str = "stream-next-offset";

fn url(at: &str, name: &str) -> String {
    format!("http://{at}/{name}")
}

/// Makes a stream of bytes.
pub(crate) async fn create(at: &str, name: &str) -> anyhow::Result<()> {
    let request = Client::new().put(url(at, name)).header(CONTENT_TYPE, BYTES);
    request.send().await?.error_for_status()?;
    Ok(())
}

pub(crate) struct Writer {
    client: Client,
    url: String,
}

impl Writer {
    pub(crate) fn open(at: &str, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::builder().tcp_nodelay(true).build()?,
            url: url(at, name),
        })
    }

    /// All events in one request. It is sent when its acknowledgement is first waited for.
    pub(crate) fn send(&mut self, events: &[Bytes]) -> Acknowledged {
        let request = self.client.post(&self.url).header(CONTENT_TYPE, BYTES);
        let request = request.body(events.concat());
        Box::pin(async move {
            let answer = request.send().await?.error_for_status()?;
            // The connection serves the next request only when this one's answer is read.
            answer.bytes().await?;
            Ok(())
        })
    }
}

pub(crate) struct Reader {
    client: Client,
    url: String,
    offset: String,
    answer: Option<Response>,
    rest: BytesMut,
}

impl Reader {
    pub(crate) fn open(at: &str, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::builder().tcp_nodelay(true).build()?,
            url: url(at, name),
            offset: "-1".to_owned(),
            answer: None,
            rest: BytesMut::new(),
        })
    }

    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<Bytes>> {
        loop {
            if self.rest.len() >= SIZE {
                let mut whole = self.rest.split_to(self.rest.len() / SIZE * SIZE).freeze();
                let mut events = Vec::with_capacity(whole.len() / SIZE);
                while !whole.is_empty() {
                    events.push(whole.split_to(SIZE));
                }
                return Ok(events);
            }
            if let Some(answer) = &mut self.answer {
                match answer.chunk().await? {
                    Some(chunk) => self.rest.extend_from_slice(&chunk),
                    None => self.answer = None,
                }
                continue;
            }
            let request = self
                .client
                .get(format!("{}?offset={}&live=long-poll", self.url, self.offset));
            let answer = request.send().await?.error_for_status()?;
            let next = answer.headers().get(NEXT).context("no offset to go on from")?;
            next.to_str()?.clone_into(&mut self.offset);
            // Nothing came within the time that the server waits.
            if answer.status() != StatusCode::NO_CONTENT {
                self.answer = Some(answer);
            }
        }
    }
}
