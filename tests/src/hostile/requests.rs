//! What a hostile client asks the bridge over HTTP.

use anyhow::Context as _;
use reqwest::RequestBuilder;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING};
use spacetime_sync_proto::heads::{HEADS_PATH, HeadsRequest};
use spacetime_sync_proto::page::{EventPage, STREAMS_PATH, path_segment};
use spacetime_sync_proto::{Frame, Position, Seq, StreamId, limit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::client::{Client, at_once, dial};
use crate::issuing::ask;

impl Client {
    /// Sends a request, and takes the answer.
    pub(super) async fn request(&self, request: RequestBuilder) {
        self.said();
        let Ok(answer) = request.send().await else {
            return self.closed().await;
        };
        let good = answer.status().is_success();
        // An answer that was not taken would cost the next request a new socket.
        if answer.bytes().await.is_err() {
            return self.closed().await;
        }
        self.count(|tally| tally.refused += u64::from(!good));
    }

    pub(super) fn token_request(&self, credential: &str) -> RequestBuilder {
        ask(&self.http, &self.args.bridge, credential).json(&self.wanted)
    }

    /// A page of the longest log, in the form that costs the bridge the most.
    pub(super) fn page_request(&self, token: &str) -> RequestBuilder {
        let url = format!("{}{}", self.args.bridge, page_path(&self.args.streams[0]));
        let request = self.http.get(url).bearer_auth(token);
        request
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "gzip")
    }

    /// As many heads as one may ask for, and as many reports as are taken.
    fn heads_request(&self, reports: bool) -> RequestBuilder {
        let own = || self.args.streams.iter().cloned();
        let asked = HeadsRequest {
            streams: own().cycle().take(limit::HEADS).collect(),
            reported: own().take(if reports { limit::REPORTED } else { 0 }).collect(),
        };
        let url = format!("{}{HEADS_PATH}", self.args.bridge);
        self.http.post(url).bearer_auth(&self.token.token).json(&asked)
    }

    /// Tokens, so many at once.
    pub(super) async fn tokens(&self, times: usize) {
        at_once(times, async || {
            self.request(self.token_request(&self.credential)).await;
        })
        .await;
    }

    /// Pages and heads, so many of each at once.
    pub(super) async fn history(&self, times: usize) {
        at_once(times, async || {
            tokio::join!(
                self.request(self.page_request(&self.token.token)),
                self.request(self.heads_request(false)),
            );
        })
        .await;
    }

    /// Reports, so many at once.
    pub(super) async fn reports(&self, times: usize) {
        at_once(times, async || self.request(self.heads_request(true)).await).await;
    }

    /// Pages of which it takes nothing, on so many sockets, and requests that find no turn beside them.
    pub(super) async fn history_unread(&self, sockets: usize) {
        let (stream_id, token) = (&self.args.streams[0], &self.token.token);
        let asks = async || {
            let Ok(mut socket) = unread(&self.args.bridge, token, stream_id, 1).await else {
                return self.closed().await;
            };
            self.said();
            while ask_for_pages(&mut socket, token, stream_id, 1).await.is_ok() {
                self.said();
            }
            self.closed().await;
        };
        tokio::join!(
            at_once(sockets, asks),
            at_once(2, async || self.request(self.page_request(token)).await),
        );
    }

    /// The positions of the events of a page at the beginning of the longest log.
    pub(super) async fn positions(&self) -> anyhow::Result<Vec<Position>> {
        let url = format!("{}{}", self.args.bridge, page_path(&self.args.streams[0]));
        let answer = self.http.get(url).bearer_auth(&self.token.token).send().await?;
        let page = EventPage::decode(answer.error_for_status()?.bytes().await?)?;
        let mut positions = Vec::new();
        for row in page.frames {
            let frame = Frame::decode(row.first_seq.get(), row.base_chain, row.bytes)?;
            positions.extend(frame.into_events_after(Seq::ZERO).map(|event| Position {
                seq: event.seq,
                chain: event.chain_hash,
            }));
        }
        Ok(positions)
    }
}

fn page_path(stream_id: &StreamId) -> String {
    let name = path_segment(stream_id).unwrap_or_default();
    format!("{STREAMS_PATH}/{name}/events?after=0")
}

/// A socket on which somebody asks for so many pages from the beginning of a log, one after the other, and reads nothing of
/// them.
pub async fn unread(bridge: &str, token: &str, stream_id: &StreamId, pages: usize) -> anyhow::Result<TcpStream> {
    let mut socket = dial(bridge, false).await?;
    ask_for_pages(&mut socket, token, stream_id, pages)
        .await
        .context("the bridge takes no request")?;
    Ok(socket)
}

async fn ask_for_pages(socket: &mut TcpStream, token: &str, stream_id: &StreamId, pages: usize) -> std::io::Result<()> {
    let path = page_path(stream_id);
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\n\r\n");
    socket.write_all(request.repeat(pages).as_bytes()).await
}
