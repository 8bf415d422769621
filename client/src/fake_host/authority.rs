//! The history interface of the bridge.

use spacetime_sync_proto::{Seq, StaleCursor, StaleReason, page};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{FakeHost, STREAM, State, stream};

impl FakeHost {
    pub(super) async fn serve_history(&self, mut stream: TcpStream, token: String, path: String) {
        let mut request = vec![0; 8192];
        let _ = stream.read(&mut request).await;
        let mut answer = self.state().history(&path);
        self.change(|state| {
            if let Some((status, times)) = &mut state.unserved
                && *times > 0
            {
                *times -= 1;
                answer = (*status, Vec::new());
            }
            state.seen.histories.push((token, path));
        });
        let (status, body) = answer;
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Said\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        let _ = stream.shutdown().await;
    }
}

impl State {
    /// The answer to a request for history.
    fn history(&self, path: &str) -> (u16, Vec<u8>) {
        let stream_id = stream();
        let Some(query) = path.strip_prefix(&format!("{STREAM}/events?after=")) else {
            assert_eq!(path, format!("{STREAM}/snapshot"));
            return match &self.document {
                Some(document) => (200, document.encode().to_vec()),
                None => (
                    404,
                    br#"{"code":"not_found","message":"none","retryable":false}"#.to_vec(),
                ),
            };
        };
        let (after, chain) = query.split_once("&chain=").unwrap();
        let after: u64 = after.parse().unwrap();
        let head = self.log.head();
        let mut reason_codes = Vec::new();
        if after < self.floor {
            reason_codes.push(StaleReason::RetentionFloorBreach);
        }
        if after > head.seq.get() {
            reason_codes.push(StaleReason::AheadOfHead);
        } else if self.log.at(after).chain.to_string().replace(':', "%3A") != chain {
            reason_codes.push(StaleReason::ChainMismatch);
        }
        let floor = self.log.at(self.floor);
        if !reason_codes.is_empty() {
            let stale = StaleCursor {
                code: Default::default(),
                stream_id,
                requested_after_seq: Seq::new(after).unwrap(),
                oldest_available_cursor: floor.seq,
                oldest_available_chain: floor.chain,
                head_cursor: head.seq,
                reason_codes,
                replay_lag: head.seq.get().saturating_sub(after),
                replay_budget_events: None,
                snapshot_cursor: self.document.as_ref().map(|document| document.seq),
            };
            return (410, serde_json::to_vec(&stale).unwrap());
        }
        // A few at a time, so that a replay takes several requests.
        let frames = (after + 1..=head.seq.get())
            .take(10)
            .map(|seq| self.log.frame(seq, seq));
        let page = page::EventPage {
            head_seq: head.seq,
            head_chain: head.chain,
            oldest_seq: floor.seq.next(),
            frames: frames.collect(),
        };
        (200, page.encode().to_vec())
    }
}
