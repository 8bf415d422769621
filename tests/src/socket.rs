//! A client that speaks the WebSocket of SpacetimeDB and says whatever a test wants, also what no client of the lane
//! says.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{SinkExt as _, Stream, StreamExt as _};
use spacetimedb_client_api_messages::websocket::v2::{
    BIN_PROTOCOL, ClientMessage, OneOffQuery, ProcedureStatus, ServerMessage,
};
use spacetimedb_sdk::__codegen::__sats::bsatn;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::words;

/// A connection.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    requests: u32,
}

/// Why there is no connection: the status of the answer and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Socket {
    /// Connects to a database at `http://host:port`, without compression.
    pub async fn open(uri: &str, database: &str, token: Option<&str>) -> anyhow::Result<Result<Self, Refused>> {
        let address = uri.strip_prefix("http://").context("expected http://")?;
        Self::over(TcpStream::connect(address).await?, uri, database, token).await
    }

    /// Like [`open`](Self::open), over a socket that is connected already.
    pub async fn over(
        stream: TcpStream,
        uri: &str,
        database: &str,
        token: Option<&str>,
    ) -> anyhow::Result<Result<Self, Refused>> {
        let address = uri.strip_prefix("http://").context("expected http://")?;
        let url = format!("ws://{address}/v1/database/{database}/subscribe?compression=None");
        let mut request = url.into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BIN_PROTOCOL));
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, format!("Bearer {token}").try_into()?);
        }
        stream.set_nodelay(true)?;
        // Whoever subscribes to much gets it in one message.
        let any_size = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        match client_async_with_config(request, stream, Some(any_size)).await {
            Ok((stream, _)) => Ok(Ok(Self { stream, requests: 0 })),
            Err(Error::Http(answer)) => Ok(Err(Refused {
                status: answer.status().as_u16(),
                body: String::from_utf8_lossy(answer.body().as_deref().unwrap_or_default()).into_owned(),
            })),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a message.
    pub async fn say(&mut self, message: &ClientMessage) -> anyhow::Result<()> {
        Ok(self
            .stream
            .send(Message::Binary(bsatn::to_vec(message)?.into()))
            .await?)
    }

    /// Sends bytes as a message.
    pub async fn say_bytes(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        Ok(self.stream.send(Message::Binary(bytes.into())).await?)
    }

    fn request(&mut self) -> u32 {
        self.requests += 1;
        self.requests
    }

    /// Asks for rows once.
    pub async fn sql(&mut self, text: &str) -> anyhow::Result<()> {
        let request_id = self.request();
        self.say(&ClientMessage::OneOffQuery(OneOffQuery {
            request_id,
            query_string: text.into(),
        }))
        .await
    }

    /// Subscribes, and returns the subscription's id.
    pub async fn subscribe(&mut self, text: &str) -> anyhow::Result<u32> {
        self.subscribe_to(&[text]).await
    }

    /// Subscribes to several queries, and returns the subscription's id.
    pub async fn subscribe_to(&mut self, queries: &[impl AsRef<str>]) -> anyhow::Result<u32> {
        let id = self.request();
        self.say(&words::subscribe(id, queries)).await?;
        Ok(id)
    }

    /// Ends a subscription.
    pub async fn unsubscribe(&mut self, id: u32) -> anyhow::Result<()> {
        let request_id = self.request();
        self.say(&words::unsubscribe(request_id, id)).await
    }

    /// Calls a reducer with encoded arguments.
    pub async fn reducer(&mut self, name: &str, args: Vec<u8>) -> anyhow::Result<()> {
        let request_id = self.request();
        self.say(&words::reducer(request_id, name, args)).await
    }

    /// Calls a procedure with encoded arguments.
    pub async fn procedure(&mut self, name: &str, args: Vec<u8>) -> anyhow::Result<()> {
        let request_id = self.request();
        self.say(&words::procedure(request_id, name, args)).await
    }

    /// Asks for the key of an audience: the session's user, or the readers of a stream.
    pub async fn audience_key(&mut self, stream_id: &str, within: Duration) -> anyhow::Result<u64> {
        self.procedure("read_audience_key", words::arguments(&(stream_id,)))
            .await?;
        let answered = self.until(within, |message| matches!(message, ServerMessage::ProcedureResult(_)));
        let ServerMessage::ProcedureResult(answered) = answered.await? else {
            anyhow::bail!("not an answer");
        };
        let ProcedureStatus::Returned(answer) = answered.status else {
            anyhow::bail!("the module failed");
        };
        let key: Result<u64, String> = bsatn::from_slice(&answer)?;
        key.map_err(|refusal| anyhow::anyhow!("refused: {refusal}"))
    }

    /// Waits until so many calls are answered, none of which was refused, each of them in time.
    pub async fn answered(&mut self, calls: usize, within: Duration) -> anyhow::Result<()> {
        let mut answers = 0;
        while answers < calls {
            let message = tokio::time::timeout(within, self.next()).await?;
            let message = message.map_err(|reason| anyhow::anyhow!("closed: {reason}"))?;
            answers += usize::from(words::is_done(&message)?);
        }
        Ok(())
    }

    /// Says one message after the other, as fast as they are taken, for as long as `next` has one for a request's number,
    /// and drops what it hears. `heard` is told how many bytes that is. Returns the reason with which the connection was
    /// closed.
    pub async fn flood(
        self,
        mut next: impl FnMut(u32) -> Option<ClientMessage>,
        mut heard: impl FnMut(usize),
    ) -> String {
        let mut request_id = self.requests;
        let (mut mouth, mut ears) = self.stream.split::<Message>();
        let speaks = async {
            loop {
                request_id += 1;
                let said = next(request_id).and_then(|message| bsatn::to_vec(&message).ok());
                let Some(said) = said else { break };
                if mouth.send(Message::Binary(said.into())).await.is_err() {
                    break;
                }
            }
            // What the other side says last is still to be heard.
            std::future::pending::<String>().await
        };
        let hears = async {
            loop {
                match bytes_from(&mut ears).await {
                    Ok(bytes) => heard(bytes.len()),
                    Err(reason) => return reason,
                }
            }
        };
        tokio::select! {
            reason = hears => reason,
            reason = speaks => reason,
        }
    }

    /// The next message of the server. `Err` holds the reason with which the connection was closed, empty if it just
    /// broke.
    pub async fn next(&mut self) -> Result<ServerMessage, String> {
        let bytes = bytes_from(&mut self.stream).await?;
        // The first byte says that the rest is not compressed.
        let message = bytes.get(1..).and_then(|bytes| bsatn::from_slice(bytes).ok());
        message.ok_or_else(|| "the server's message cannot be read".to_owned())
    }

    /// The reason with which the connection is closed within a time. `None` if it stays open.
    pub async fn closed(&mut self, within: Duration) -> Option<String> {
        tokio::time::timeout(within, async {
            loop {
                if let Err(reason) = self.next().await {
                    return reason;
                }
            }
        })
        .await
        .ok()
    }

    /// The next message that `wanted` accepts.
    pub async fn until(
        &mut self,
        within: Duration,
        mut wanted: impl FnMut(&ServerMessage) -> bool,
    ) -> anyhow::Result<ServerMessage> {
        tokio::time::timeout(within, async {
            loop {
                let message = self
                    .next()
                    .await
                    .map_err(|reason| anyhow::anyhow!("closed: {reason}"))?;
                if wanted(&message) {
                    return Ok(message);
                }
            }
        })
        .await
        .context("no such message came in time")?
    }
}

/// The next message, still encoded. `Err` holds the reason with which the connection was closed.
async fn bytes_from(stream: &mut (impl Stream<Item = Result<Message, Error>> + Unpin)) -> Result<Bytes, String> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
            Some(Ok(Message::Close(frame))) => {
                return Err(frame.map(|frame| frame.reason.to_string()).unwrap_or_default());
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(String::new()),
        }
    }
}
