//! `GET /v1/database/{name}/subscribe`: a client's WebSocket, with the protocol `v2.bsatn.spacetimedb`.
//!
//! This module only carries messages between the socket and the engine's connection. The engine handles subscriptions,
//! calls, confirmed reads and the bound on queued messages. Older and newer protocols are refused.

use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use spacetimedb::client::messages::{SerializeBuffer, serialize_v2};
use spacetimedb::client::{
    ClientActorId, ClientConfig, ClientConnection, ClientConnectionReceiver, OutboundMessage, Protocol, WsVersion,
};
use spacetimedb::identity::AuthCtx;
use spacetimedb::subscription::row_list_builder_pool::BsatnRowListBuilderPool;
use spacetimedb_client_api_messages::websocket::common::Compression;
use spacetimedb_client_api_messages::websocket::v2::{BIN_PROTOCOL, InitialConnection, ServerMessage};
use spacetimedb_lib::{ConnectionId, bsatn};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::auth::Caller;
use crate::error::Failure;
use crate::node::App;
use crate::registry::NameOrIdentity;

const PING_EVERY: Duration = Duration::from_secs(15);
/// A client that sends nothing for this long, not even the answer to a ping, counts as gone.
const IDLE_AFTER: Duration = Duration::from_secs(30);
/// How long the client may take to answer a close frame.
const CLOSE_WITHIN: Duration = Duration::from_millis(250);
/// Buffers of larger messages are freed, and not kept for the next message.
const KEPT_BUFFER: usize = 64 << 10;
/// A connection holds this much as long as it lasts, and clears it before each read.
const READ_BUFFER: usize = 16 << 10;
const LARGEST_MESSAGE: usize = 32 << 20;
const CLOSE_AWAY: u16 = 1001;
const CLOSE_ERROR: u16 = 1011;

#[derive(Deserialize)]
pub(crate) struct Params {
    /// The client's choice; random without one.
    connection_id: Option<String>,
    #[serde(default)]
    compression: Compression,
    #[serde(default)]
    light: bool,
    /// Whether to send only what is durable. The default for this protocol, as on the official server.
    confirmed: Option<bool>,
}

pub(crate) async fn subscribe(
    State(node): State<App>,
    Path(name): Path<NameOrIdentity>,
    Query(params): Query<Params>,
    Extension(caller): Extension<Caller>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Failure> {
    let connection_id = match &params.connection_id {
        None => ConnectionId::from_le_byte_array(rand::random()),
        Some(hex) => ConnectionId::from_hex(hex).map_err(Failure::bad_request)?,
    };
    if connection_id == ConnectionId::ZERO {
        return Err(Failure::bad_request(
            "Invalid connection ID: the all-zeros ConnectionId is reserved.",
        ));
    }
    let entry = node.find(&name)?;
    let upgrade = upgrade
        .protocols([BIN_PROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .max_message_size(LARGEST_MESSAGE)
        .max_frame_size(LARGEST_MESSAGE);
    if upgrade.selected_protocol().is_none() {
        return Err(Failure::bad_request("no valid protocol selected"));
    }
    let mut module = node.watch_module(&entry).await?;
    let id = ClientActorId {
        identity: caller.identity(),
        connection_id,
        name: node.clients.next_client_name(),
    };
    let config = ClientConfig {
        protocol: Protocol::Binary,
        version: WsVersion::V2,
        compression: params.compression,
        tx_update_full: !params.light,
        confirmed_reads: params.confirmed.unwrap_or(true),
    };
    Ok(upgrade.on_upgrade(move |socket| async move {
        let connected =
            match ClientConnection::call_client_connected_maybe_reject(&mut module, id, caller.context()).await {
                Ok(connected) => connected,
                // As on the official server, the client only sees its connection end.
                Err(e) => return tracing::info!("client {id} refused: {e:#}"),
            };
        let rights = AuthCtx::new(entry.owner, id.identity);
        let actor = |client, outgoing| carry(socket, client, outgoing);
        let context = caller.context();
        let replica = entry.replica;
        let client = ClientConnection::spawn(id, context, rights, config, replica, module, actor, connected).await;
        let hello = ServerMessage::InitialConnection(InitialConnection {
            identity: id.identity,
            connection_id,
            token: caller.token.into(),
        });
        if let Err(e) = client.send_message(None, OutboundMessage::V2(hello)) {
            tracing::info!("client {id} left before it was greeted: {e}");
        }
    }))
}

/// Carries messages both ways until either side ends.
///
/// Each way is a task, so that decoding requests and encoding updates do not wait for one another.
async fn carry(socket: WebSocket, client: ClientConnection, outgoing: ClientConnectionReceiver) {
    let _goodbye = Goodbye(Some(client.clone()));
    let (sink, source) = socket.split();
    // Tells the writing side why to close the connection.
    let (close, closing) = mpsc::channel(1);
    let mut writing = tokio::spawn(write(sink, client.clone(), outgoing, closing));
    let mut reading = tokio::spawn(read(source, client, close));
    let _both = (AbortOnDrop(writing.abort_handle()), AbortOnDrop(reading.abort_handle()));
    tokio::select! {
        // The close frame is sent, and the client gets time to answer it.
        _ = &mut writing => drop(tokio::time::timeout(CLOSE_WITHIN, &mut reading).await),
        _ = &mut reading => {}
    }
}

/// Writes messages until it has sent a close frame, or the socket accepts nothing more.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    client: ClientConnection,
    mut outgoing: ClientConnectionReceiver,
    mut closing: mpsc::Receiver<CloseFrame>,
) {
    let pool = client.module().subscriptions().bsatn_rlb_pool.clone();
    let config = client.config;
    let (mut batch, mut spare) = (Vec::new(), None);
    let mut pings = tokio::time::interval(PING_EVERY);
    let mut watching = client;
    // This outlives an update of the module, and ends with the database.
    let module_gone = watching.watch_module_host();
    tokio::pin!(module_gone);
    let reason = loop {
        tokio::select! {
            biased;
            reason = closing.recv() => match reason {
                Some(reason) => break reason,
                None => return,
            },
            _ = &mut module_gone => break CloseFrame { code: CLOSE_AWAY, reason: "module exited".into() },
            _ = pings.tick() => {
                if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                    return;
                }
            }
            count = outgoing.recv_many(&mut batch, ClientConnectionReceiver::DEFAULT_RECV_MANY_LIMIT) => {
                if count == 0 {
                    return;
                }
                for message in batch.drain(..) {
                    let OutboundMessage::V2(message) = message else { continue };
                    let buffer = spare.take().unwrap_or_else(|| SerializeBuffer::new(config));
                    let is_large = bsatn::to_len(&message).is_ok_and(|length| length > KEPT_BUFFER);
                    // The engine's pool bounds the number of its buffers, not their size. A pool that ends here frees them.
                    let taker = if is_large { &BsatnRowListBuilderPool::new() } else { &pool };
                    let (used, bytes) = serialize_v2(taker, buffer, message, config.compression);
                    if sink.feed(Message::Binary(bytes)).await.is_err() {
                        return;
                    }
                    spare = used.try_reclaim().filter(|_| !is_large);
                }
                if sink.flush().await.is_err() {
                    return;
                }
            }
        }
    };
    if let Err(e) = sink.send(Message::Close(Some(reason))).await {
        tracing::debug!("a client left without waiting for the close: {e}");
    }
}

/// Reads messages until the client closes, falls silent or breaks the protocol.
async fn read(mut source: SplitStream<WebSocket>, client: ClientConnection, close: mpsc::Sender<CloseFrame>) {
    while let Ok(Some(Ok(message))) = tokio::time::timeout(IDLE_AFTER, source.next()).await {
        let Message::Binary(bytes) = message else { continue };
        let Err(e) = client.handle_message(bytes, Instant::now()).await else {
            continue;
        };
        let reason = CloseFrame {
            code: CLOSE_ERROR,
            reason: format!("{e:#}").into(),
        };
        if close.send(reason).await.is_err() {
            return;
        }
        // Ignores all further messages. The client's answer to the close frame ends the stream.
        while let Some(Ok(_)) = source.next().await {}
        return;
    }
}

/// Tells the engine that a client has gone, even when the engine itself aborted the connection's task.
struct Goodbye(Option<ClientConnection>);

impl Drop for Goodbye {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            tokio::spawn(client.disconnect());
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
