//! A client that speaks the WebSocket of SpacetimeDB and says whatever a test wants, also what no client of the lane
//! says.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use spacetimedb_client_api_messages::websocket::v2::{
    BIN_PROTOCOL, CallProcedure, CallProcedureFlags, CallReducer, CallReducerFlags, ClientMessage, OneOffQuery,
    QuerySetId, ServerMessage, Subscribe, Unsubscribe, UnsubscribeFlags,
};
use spacetimedb_sdk::__codegen::__sats::bsatn;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

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
        let url = format!("ws://{address}/v1/database/{database}/subscribe?compression=None");
        let mut request = url.into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BIN_PROTOCOL));
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, format!("Bearer {token}").try_into()?);
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match client_async(request, stream).await {
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
        let id = self.request();
        self.say(&ClientMessage::Subscribe(Subscribe {
            request_id: id,
            query_set_id: QuerySetId { id },
            query_strings: Box::new([text.into()]),
        }))
        .await?;
        Ok(id)
    }

    /// Ends a subscription.
    pub async fn unsubscribe(&mut self, id: u32) -> anyhow::Result<()> {
        let request_id = self.request();
        self.say(&ClientMessage::Unsubscribe(Unsubscribe {
            request_id,
            query_set_id: QuerySetId { id },
            flags: UnsubscribeFlags::Default,
        }))
        .await
    }

    /// Calls a reducer with encoded arguments.
    pub async fn reducer(&mut self, name: &str, args: Vec<u8>) -> anyhow::Result<()> {
        let request_id = self.request();
        self.say(&ClientMessage::CallReducer(CallReducer {
            request_id,
            flags: CallReducerFlags::Default,
            reducer: name.into(),
            args: args.into(),
        }))
        .await
    }

    /// Calls a procedure with encoded arguments.
    pub async fn procedure(&mut self, name: &str, args: Vec<u8>) -> anyhow::Result<()> {
        let request_id = self.request();
        self.say(&ClientMessage::CallProcedure(CallProcedure {
            request_id,
            flags: CallProcedureFlags::Default,
            procedure: name.into(),
            args: args.into(),
        }))
        .await
    }

    /// The next message of the server. `Err` holds the reason with which the connection was closed, empty if it just
    /// broke.
    pub async fn next(&mut self) -> Result<ServerMessage, String> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    // The first byte says that the rest is not compressed.
                    let message = bytes.get(1..).and_then(|bytes| bsatn::from_slice(bytes).ok());
                    return message.ok_or_else(|| "the server's message cannot be read".to_owned());
                }
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map(|frame| frame.reason.to_string()).unwrap_or_default());
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(String::new()),
            }
        }
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
