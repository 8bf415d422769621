//! A client's connections: what the session sends over them, and what it hears from them.

use std::time::Duration;

use rand::Rng as _;
use spacetime_sync_client::AccessToken;
use spacetime_sync_client::session::status::Disconnect;
use spacetime_sync_client::session::stream::Mode;
use spacetime_sync_client::session::{CallFailure, ConnectionId, DialFailure, Event, Inbound, Issued, ReadId};
use spacetime_sync_proto::RefusalCode;

use super::{ClientStep, Line};
use crate::agenda::Micros;
use crate::fault::Fault;
use crate::net::{ConnId, FromHost, Party, ToHost};
use crate::world::{Step, World};

impl World {
    pub(super) fn dial_failed(
        &mut self,
        at: usize,
        connection: ConnectionId,
        token: Option<Issued>,
        reason: Disconnect,
    ) {
        let result = Err(DialFailure::Later(reason));
        self.tell_client(
            at,
            Event::Dialed {
                connection,
                token,
                result,
            },
        );
    }

    pub(super) fn client_dials(&mut self, at: usize, connection: ConnectionId, token: Option<Issued>) {
        let token = token.unwrap_or_else(|| {
            let refresh_after = Duration::from_millis(self.dice.work.random_range(2_000..40_000));
            Issued {
                token: AccessToken {
                    refresh_after,
                    ..AccessToken::new("token", 2 * refresh_after)
                },
                asked_at: self.clients[at].epoch + Duration::from_micros(self.now),
            }
        });
        let conn = self.dial(Party::Client(at));
        self.clients[at].lines.push(Line {
            connection,
            conn,
            attempt: Some((token, Vec::new())),
        });
        let (after, reason) = if self.strikes(Fault::DialFails, Some(at), None) {
            (1, Disconnect::Unreachable("injected".to_owned()))
        } else {
            let within = self.setup.client.limits.connect_timeout;
            (within.as_micros() as Micros, Disconnect::ConnectTimeout(within))
        };
        self.client_in(at, after, ClientStep::DialFails { connection, reason });
    }

    pub(super) fn client_sends(&mut self, at: usize, connection: ConnectionId, message: ToHost) {
        match self.clients[at].line(connection) {
            Some(conn) => self.send_up(conn, message),
            // It broke, and the session has not heard of that. Like the runner, this sends nothing.
            None => self.coverage.seen("client: call on a connection that broke"),
        }
    }

    pub(crate) fn client_conn_broken(&mut self, at: usize, conn: ConnId) {
        let client = &mut self.clients[at];
        if client.paused_until > self.now {
            let until = client.paused_until;
            return self.agenda.push(until, Step::Broken { conn });
        }
        let Some(nth) = client.lines.iter().position(|line| line.conn == conn) else {
            return;
        };
        let Line {
            connection, attempt, ..
        } = client.lines.remove(nth);
        let reason = Disconnect::Closed;
        match attempt {
            Some((token, _)) => self.dial_failed(at, connection, Some(token), reason),
            None => self.tell_client(at, Event::Closed { connection, reason }),
        }
    }

    pub(crate) fn client_hears(&mut self, at: usize, from: ConnId, message: FromHost) {
        let client = &mut self.clients[at];
        let Some(line) = client.lines.iter_mut().find(|line| line.conn == from) else {
            return;
        };
        let connection = line.connection;
        if matches!(message, FromHost::Welcome) {
            if let Some((token, brought)) = line.attempt.take() {
                let (token, result) = (Some(token), Ok(brought));
                self.tell_client(
                    at,
                    Event::Dialed {
                        connection,
                        token,
                        result,
                    },
                );
            }
            return;
        }
        let Some(inbound) = inbound(message) else { return };
        if let Some((_, brought)) = &mut line.attempt {
            brought.push(inbound);
            return;
        }
        let refused = |mode: &Mode| matches!(mode, Mode::Refused(_));
        match &inbound {
            Inbound::GrantCame => {
                let streams = (0..self.setup.streams).filter(|stream| refused(client.session.stream(*stream).mode()));
                let came_back = streams.count() as u64;
                self.coverage.seen_times("client: grant came back", came_back);
            }
            Inbound::Page {
                answer: Err(CallFailure::Refused(refusal)),
                ..
            } if refusal.code == RefusalCode::ForbiddenStream => self.coverage.seen("client: read forbidden"),
            _ => {}
        }
        let inbound = vec![inbound];
        self.tell_client(at, Event::Message { connection, inbound });
    }
}

/// A message as the session hears it. The host's key of a stream is the stream's index.
fn inbound(message: FromHost) -> Option<Inbound> {
    Some(match message {
        FromHost::GrantCame => Inbound::GrantCame,
        FromHost::GrantLost { stream } => Inbound::GrantLost {
            stream_key: stream as u64,
        },
        FromHost::Row { stream, frame } => Inbound::Frame {
            stream_key: stream as u64,
            frame,
        },
        FromHost::Subscribed { stream, id } => Inbound::Subscribed { stream, id },
        FromHost::Unsubscribed { stream, id } => Inbound::Unsubscribed { stream, id },
        FromHost::SubscriptionFailed { stream, id } => Inbound::SubscriptionFailed {
            stream,
            id,
            detail: "injected".to_owned(),
        },
        FromHost::Page { read, stream, answer } => Inbound::Page {
            stream,
            read: ReadId(read),
            answer: match answer {
                Ok(page) => Ok((stream as u64, page)),
                Err(Some(refusal)) => Err(CallFailure::Refused(refusal)),
                Err(None) => Err(CallFailure::Failed("injected".to_owned())),
            },
        },
        FromHost::CheckpointTaken { stream, seq, answer } => Inbound::Acked {
            stream,
            seq,
            answer: answer.map_err(|refusal| match refusal {
                Some(refusal) => CallFailure::Refused(refusal),
                None => CallFailure::Failed("injected".to_owned()),
            }),
        },
        FromHost::Welcome
        | FromHost::Acked(_)
        | FromHost::Refused(..)
        | FromHost::Lost(_)
        | FromHost::Heads { .. }
        | FromHost::Tail { .. }
        | FromHost::Frames { .. }
        | FromHost::Journal { .. }
        | FromHost::Rewound { .. } => {
            return None;
        }
    })
}
