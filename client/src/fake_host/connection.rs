//! What the fake host answers over one connection, and the rows it sends.

use bytes::Bytes;
use spacetime_sync_bindings::{EventPage, SessionPresence, StreamGrant, SyncContract, SyncEvent};
use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::{Refusal, RefusalCode, Section, Seq, limit};
use spacetime_sync_rules::log::StoredFrame;
use spacetime_sync_rules::page as rules_page;
use spacetimedb_sdk::__codegen::__lib::{bsatn, de, ser};
use spacetimedb_sdk::__codegen::__ws::common::{QuerySetId, RowSizeHint};
use spacetimedb_sdk::__codegen::__ws::v2::*;
use spacetimedb_sdk::{Identity, TimeDuration, Timestamp, u256};

use super::{FakeHost, STREAM, stream};

const KEY: u64 = 7;
/// The key of the session's user.
const USER_KEY: u64 = 1;

pub(super) struct Connection {
    host: FakeHost,
    token: String,
    subscriptions: Vec<Subscribed>,
    /// The presence rows sent so far.
    presence: Option<(QuerySetId, Vec<SessionPresence>)>,
    /// The grant, until it is revoked.
    grant: Option<(QuerySetId, StreamGrant)>,
}

struct Subscribed {
    id: QuerySetId,
    from: u64,
    to: u64,
    sent: Vec<SyncEvent>,
}

impl Subscribed {
    /// Up to which seq everything was sent.
    fn sent_to(&self) -> u64 {
        self.sent.last().map_or(self.from, |row| row.last_seq)
    }
}

#[derive(de::Deserialize)]
#[sats(crate = spacetimedb_sdk::__codegen::__lib)]
struct ReadEvents {
    stream_id: String,
    after_seq: u64,
}

#[derive(de::Deserialize)]
#[sats(crate = spacetimedb_sdk::__codegen::__lib)]
struct UpsertPresence {
    session_id: String,
    node_id: String,
    status: String,
    region: String,
    surface: String,
    serves: Vec<String>,
}

impl Connection {
    pub(super) fn new(host: FakeHost, token: String) -> Self {
        Self {
            host,
            token,
            subscriptions: Vec::new(),
            presence: None,
            grant: None,
        }
    }

    pub(super) fn answer(&mut self, message: ClientMessage) -> Vec<ServerMessage> {
        match message {
            ClientMessage::Subscribe(asked) => self.subscribe(asked).into_iter().collect(),
            ClientMessage::Unsubscribe(asked) => {
                let at = self.subscriptions.iter().position(|one| one.id == asked.query_set_id);
                let rows = at.map(|at| {
                    let gone = self.subscriptions.remove(at);
                    query_rows("sync_event", &gone.sent)
                });
                vec![ServerMessage::UnsubscribeApplied(UnsubscribeApplied {
                    request_id: asked.request_id,
                    query_set_id: asked.query_set_id,
                    rows,
                })]
            }
            ClientMessage::CallProcedure(call) => {
                let answer = match &*call.procedure {
                    "read_events" => bsatn::to_vec(&self.read(&bsatn::from_slice(&call.args).unwrap())),
                    "read_audience_key" => bsatn::to_vec(&Ok::<_, String>(USER_KEY)),
                    other => panic!("{other}"),
                };
                vec![ServerMessage::ProcedureResult(ProcedureResult {
                    status: ProcedureStatus::Returned(answer.unwrap().into()),
                    timestamp: Timestamp::UNIX_EPOCH,
                    total_host_execution_duration: TimeDuration::ZERO,
                    request_id: call.request_id,
                })]
            }
            ClientMessage::CallReducer(call) => {
                if &*call.reducer == "upsert_presence" {
                    self.say(bsatn::from_slice(&call.args).unwrap());
                }
                vec![ServerMessage::ReducerResult(ReducerResult {
                    request_id: call.request_id,
                    timestamp: Timestamp::UNIX_EPOCH,
                    result: ReducerOutcome::OkEmpty,
                })]
            }
            ClientMessage::OneOffQuery(_) => Vec::new(),
        }
    }

    fn say(&self, said: UpsertPresence) {
        assert!(said.serves.is_empty());
        self.host.change(|state| {
            let heard = (said.session_id.clone(), said.node_id.clone(), said.status.clone());
            state.seen.said.push(heard);
            let times = state.seen.said.len() as i64;
            let rows = &mut state.presence;
            let at = rows.iter().position(|row| row.node_id == said.node_id);
            let at = at.unwrap_or(rows.len());
            let row = SessionPresence {
                presence_id: at as u64 + 1,
                audience_key: USER_KEY,
                session_id: said.session_id,
                node_id: said.node_id,
                reason: if said.status == "offline" {
                    "explicit_offline"
                } else {
                    ""
                }
                .to_owned(),
                status: said.status,
                region: said.region,
                started_at: Timestamp::UNIX_EPOCH,
                last_seen: Timestamp::from_micros_since_unix_epoch(times),
                holds_until: Timestamp::UNIX_EPOCH,
                surface: said.surface,
                nostr_pubkey: String::new(),
            };
            match rows.get_mut(at) {
                Some(held) => *held = row,
                None => rows.push(row),
            }
        });
    }

    fn subscribe(&mut self, asked: Subscribe) -> Option<ServerMessage> {
        let query = &*asked.query_strings[0];
        let rows = if query.contains("sync_contract") {
            let mut state = self.host.state();
            if state.cut_when.as_ref().is_some_and(|(next, _)| *next == self.token)
                && let Some((_, old)) = state.cut_when.take()
            {
                state.cut.insert(old);
                self.host.changed.send_replace(());
            }
            let contract = Contract::our_rows().map(|row| SyncContract {
                id: row.id,
                protocol: row.protocol,
                schema_version: row.schema_version,
                schema_hash: row.schema_hash,
            });
            query_rows("sync_contract", &contract)
        } else if let Some(bounds) = query.strip_prefix("SELECT * FROM sync_event WHERE section = ") {
            if self.host.state().stuck.contains(&self.token) {
                return None;
            }
            let numbers: Vec<u64> = bounds.split(' ').skip(1).filter_map(|word| word.parse().ok()).collect();
            let (from, to) = (numbers[0], numbers[1]);
            let sent = self.host.state().rows(from, to);
            let first = query_rows("sync_event", &sent);
            self.subscriptions.push(Subscribed {
                id: asked.query_set_id,
                from,
                to,
                sent,
            });
            first
        } else if query == format!("SELECT * FROM session_presence WHERE audience_key = {USER_KEY}") {
            let rows = self.host.state().presence.clone();
            let first = query_rows("session_presence", &rows);
            self.presence = Some((asked.query_set_id, rows));
            first
        } else {
            assert!(
                query.starts_with("SELECT * FROM stream_grant WHERE identity = "),
                "{query}"
            );
            let grant = StreamGrant {
                grant_id: 1,
                identity: Identity::ZERO,
                stream_key: KEY,
                standing: false,
            };
            self.grant = Some((asked.query_set_id, grant.clone()));
            query_rows("stream_grant", &[grant])
        };
        Some(ServerMessage::SubscribeApplied(SubscribeApplied {
            request_id: asked.request_id,
            query_set_id: asked.query_set_id,
            rows,
        }))
    }

    fn read(&self, asked: &ReadEvents) -> Result<EventPage, String> {
        assert_eq!(asked.stream_id, STREAM);
        if let Some(refusal) = self.host.state().read_refusal.get(&self.token) {
            return Err(refusal.to_wire());
        }
        if self.host.state().ungranted.contains(&self.token) {
            return Err(Refusal::new(RefusalCode::ForbiddenStream, "no grant").to_wire());
        }
        let state = self.host.state();
        let after = Seq::new(asked.after_seq).unwrap();
        let page = rules_page::read(&state.held, &stream(), after, limit::PAGE_BYTES);
        Ok(EventPage {
            stream_key: KEY,
            head_seq: page.held.head.seq.get(),
            head_chain: u256::from_be_bytes(*page.held.head.chain.as_bytes()),
            durable_reads: state.durable_reads,
            oldest_seq: page.held.oldest_seq.get(),
            frames: page.frames.into_iter().map(sync_event).collect(),
        })
    }

    pub(super) fn news(&mut self) -> Vec<ServerMessage> {
        let mut query_sets = Vec::new();
        for one in &mut self.subscriptions {
            let rows = self.host.state().rows(one.sent_to(), one.to);
            if !rows.is_empty() {
                query_sets.push(update(one.id, "sync_event", row_list(&rows), BsatnRowList::default()));
                one.sent.extend(rows);
            }
        }
        if let Some((id, sent)) = &mut self.presence {
            let rows = self.host.state().presence.clone();
            let gone: Vec<_> = sent.iter().filter(|row| !rows.contains(row)).cloned().collect();
            let come: Vec<_> = rows.iter().filter(|row| !sent.contains(row)).cloned().collect();
            if !come.is_empty() {
                query_sets.push(update(*id, "session_presence", row_list(&come), row_list(&gone)));
                *sent = rows;
            }
        }
        if self.host.state().ungranted.contains(&self.token)
            && let Some((id, grant)) = self.grant.take()
        {
            // Existing subscriptions deliver nothing more.
            self.subscriptions.iter_mut().for_each(|one| one.to = one.sent_to());
            query_sets.push(update(id, "stream_grant", BsatnRowList::default(), row_list(&[grant])));
        }
        if query_sets.is_empty() {
            return Vec::new();
        }
        let query_sets = query_sets.into();
        vec![ServerMessage::TransactionUpdate(TransactionUpdate { query_sets })]
    }
}

pub(super) fn sync_event(stored: StoredFrame) -> SyncEvent {
    let frame = stored.frame;
    SyncEvent {
        stream_key: KEY,
        first_seq: frame.first_seq.get(),
        last_seq: frame.last_seq.get(),
        base_chain: u256::from_be_bytes(*frame.base_chain.as_bytes()),
        last_at: stored.last_at_us,
        section: Section::of(KEY, frame.first_seq).get(),
        frame: frame.bytes.to_vec(),
    }
}

fn update(
    query_set_id: QuerySetId,
    table: &'static str,
    inserts: BsatnRowList,
    deletes: BsatnRowList,
) -> QuerySetUpdate {
    let rows = TableUpdateRows::PersistentTable(PersistentTableRows { inserts, deletes });
    QuerySetUpdate {
        query_set_id,
        tables: Box::new([TableUpdate {
            table_name: table.into(),
            rows: Box::new([rows]),
        }]),
    }
}

fn query_rows<T: ser::Serialize>(table: &'static str, rows: &[T]) -> QueryRows {
    QueryRows {
        tables: Box::new([SingleTableRows {
            table: table.into(),
            rows: row_list(rows),
        }]),
    }
}

fn row_list<T: ser::Serialize>(rows: &[T]) -> BsatnRowList {
    let (mut offsets, mut data) = (Vec::new(), Vec::new());
    for row in rows {
        offsets.push(data.len() as u64);
        data.extend(bsatn::to_vec(row).unwrap());
    }
    BsatnRowList::new(RowSizeHint::RowOffsets(offsets.into()), Bytes::from(data))
}
