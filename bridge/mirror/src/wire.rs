//! The WebSocket to a relay, with a bound on what the relay may send at once. The library's own takes 64 MiB.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_wsocket::{ConnectionMode, Message, WebSocket};
use futures_util::stream::SplitSink;
use futures_util::{Sink, StreamExt as _, TryStreamExt as _};
use nostr::Url;
use nostr::util::BoxedFuture;
use nostr_relay_pool::transport::error::TransportError;
use nostr_relay_pool::transport::websocket::{WebSocketSink, WebSocketStream, WebSocketTransport};
use tokio_tungstenite::connect_async_tls_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Connects, and bounds what comes.
#[derive(Debug)]
pub(crate) struct Bounded {
    /// The longest message of a relay.
    pub(crate) message_bytes: usize,
}

impl WebSocketTransport for Bounded {
    fn support_ping(&self) -> bool {
        true
    }

    fn connect<'a>(
        &'a self,
        url: &'a Url,
        _mode: &'a ConnectionMode,
        timeout: Duration,
    ) -> BoxedFuture<'a, Result<(WebSocketSink, WebSocketStream), TransportError>> {
        Box::pin(async move {
            let config = WebSocketConfig::default()
                .max_message_size(Some(self.message_bytes))
                .max_frame_size(Some(self.message_bytes));
            let connecting = connect_async_tls_with_config(url.as_str(), Some(config), true, None);
            let connected = tokio::time::timeout(timeout, connecting).await;
            let (socket, _) = connected
                .map_err(TransportError::backend)?
                .map_err(TransportError::backend)?;
            let (sink, stream) = WebSocket::Tokio(socket).split();
            let sink: WebSocketSink = Box::new(Outward(sink));
            let stream: WebSocketStream = Box::pin(stream.map_err(TransportError::backend));
            Ok((sink, stream))
        })
    }
}

/// The sending half. The library may poll it again after an error, which an adapter of futures would not bear.
struct Outward(SplitSink<WebSocket, Message>);

impl Sink<Message> for Outward {
    type Error = TransportError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_ready(cx).map_err(TransportError::backend)
    }

    fn start_send(mut self: Pin<&mut Self>, item: Message) -> Result<(), Self::Error> {
        Pin::new(&mut self.0).start_send(item).map_err(TransportError::backend)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_flush(cx).map_err(TransportError::backend)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_close(cx).map_err(TransportError::backend)
    }
}
