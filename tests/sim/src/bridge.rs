//! A bridge: the shipped core, and a model of the pump and the ledger around it (`bridge/src/pump.rs`), with every call
//! a step of its own, so that anything can come between.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use spacetime_sync_lane::{CallId, Core, Effect, HaltReason, Input, Limits, LinkEpoch, Verdict, prepare, reconcile};
use spacetime_sync_proto::{ChainHash, Position, Seq, StreamProgress};

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::ledger::{Entry, Ledger, Then};
use crate::net::{ConnId, FromHost, Party, ToHost};
use crate::world::{Step, World, say};

const TICK: Micros = 50 * MILLISECOND;
const LEAD_EVERY: Micros = 500 * MILLISECOND;
const ACK_DEADLINE: Micros = 10 * SECOND;
const ANSWER_LIMIT: Micros = 20 * SECOND;
const BEAT: Micros = 10 * SECOND;
const CONNECT_LIMIT: Micros = 10 * SECOND;
const SLOWEST_POLL: Micros = 250 * MILLISECOND;
const DRAIN: Micros = 2 * SECOND;

#[derive(Debug)]
pub(crate) enum BridgeStep {
    TakeLead,
    LeadLost,
    Stop,
    DrainedBy,
    Tick,
    /// The look for dirty streams reaches the authority.
    Poll,
    Polled(Option<Vec<StreamProgress>>),
    Connect,
    ConnectFails {
        conn: ConnId,
    },
    /// The ledger has settled: every stream is compared.
    Compare {
        conn: ConnId,
    },
    CompareChains {
        conn: ConnId,
        positions: Vec<StreamProgress>,
        heads: Vec<Position>,
    },
    LinkUp {
        conn: ConnId,
    },
    /// Something is said on the link, whatever else there is to say.
    Beat {
        conn: ConnId,
    },
    /// A page is asked for; the chain hash before it may have to be looked up first.
    Read {
        epoch: LinkEpoch,
        stream: usize,
        after: Seq,
        base: Option<ChainHash>,
    },
    ReadEvents {
        epoch: LinkEpoch,
        stream: usize,
        after: Seq,
        base: ChainHash,
    },
    LearnPosition {
        epoch: LinkEpoch,
        stream: usize,
        held: Position,
    },
    LearnChain {
        epoch: LinkEpoch,
        held: Position,
        position: StreamProgress,
    },
    HeadsTimedOut {
        ask: u64,
    },
    Hear(Input),
    Ledger,
}

#[derive(Debug)]
enum Wire {
    Down,
    Connecting(ConnId),
    Up(ConnId),
}

#[derive(Debug)]
enum Ask {
    Compare {
        conn: ConnId,
        positions: Vec<StreamProgress>,
    },
    Learn {
        epoch: LinkEpoch,
        stream: usize,
    },
    Beat,
    Refill {
        conn: ConnId,
        stream: usize,
        after: Seq,
    },
    LearnRefill {
        epoch: LinkEpoch,
        stream: usize,
        after: Seq,
    },
}

#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) life: u32,
    pub(crate) running: bool,
    pub(crate) core: Core,
    pub(crate) paused_until: Micros,
    limits: Limits,
    started: Micros,
    wire: Wire,
    calls: BTreeMap<CallId, Micros>,
    asks: BTreeMap<u64, Ask>,
    next_ask: u64,
    /// Windows that are being begun anew before the link is up.
    refills: u32,
    pub(crate) ledger: Ledger,
    failures: u32,
    poll_wait: Micros,
    draining: bool,
}

impl Bridge {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            life: 0,
            running: false,
            core: Core::new(limits),
            paused_until: 0,
            limits,
            started: 0,
            wire: Wire::Down,
            calls: BTreeMap::new(),
            asks: BTreeMap::new(),
            next_ask: 0,
            refills: 0,
            ledger: Ledger::default(),
            failures: 0,
            poll_wait: MILLISECOND,
            draining: false,
        }
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        match self.wire {
            Wire::Up(conn) | Wire::Connecting(conn) => Some(conn),
            Wire::Down => None,
        }
    }

    /// A process that knows nothing.
    fn begin(&mut self, now: Micros) {
        let limits = self.limits;
        *self = Self {
            life: self.life,
            running: true,
            paused_until: self.paused_until,
            started: now,
            ..Self::new(limits)
        };
    }
}

impl World {
    pub(crate) fn bridge_in(&mut self, at: usize, after: Micros, step: BridgeStep) {
        let life = self.bridges[at].life;
        self.agenda.push(self.now + after, Step::Bridge { at, life, step });
    }

    /// A call of the authority, there or back.
    pub(crate) fn hop(&mut self) -> Micros {
        self.dice.work.random_range(20..2 * MILLISECOND)
    }

    pub(crate) fn authority_is_away(&self) -> bool {
        self.now < self.authority_away_until
    }

    pub(crate) fn bridge_starts(&mut self, at: usize) {
        if self.bridges[at].running {
            return;
        }
        let now = self.now;
        self.bridges[at].begin(now);
        say!(self, "bridge {at}: starts");
        if self.setup.lead {
            self.bridge_in(at, 0, BridgeStep::TakeLead);
        } else {
            self.bridge_leads(at);
        }
    }

    fn bridge_leads(&mut self, at: usize) {
        self.bridge_in(at, 0, BridgeStep::Connect);
        self.bridge_in(at, 0, BridgeStep::Tick);
        self.bridge_in(at, 0, BridgeStep::Poll);
    }

    /// The process is gone; says whether there was one.
    pub(crate) fn bridge_dies(&mut self, at: usize, back_after: Micros) -> bool {
        if !self.bridges[at].running {
            return false;
        }
        say!(self, "bridge {at}: dies");
        if let Some(conn) = self.bridges[at].conn() {
            self.hang_up(conn);
        }
        let life = self.bridges[at].life;
        if self.lead == Some((at, life)) {
            self.lead = None;
        }
        self.bridges[at].life += 1;
        self.bridges[at].running = false;
        self.agenda.push(self.now + back_after, Step::BridgeStarts { at });
        true
    }

    pub(crate) fn bridge_is_told(&mut self, at: usize, step: BridgeStep) -> bool {
        let running = self.bridges[at].running && !self.bridges[at].draining;
        if running {
            self.bridge_in(at, 0, step);
        }
        running
    }

    pub(crate) fn bridge_takes(&mut self, at: usize, step: BridgeStep) {
        match step {
            BridgeStep::TakeLead => {
                let life = self.bridges[at].life;
                if self.lead.is_none() && !self.authority_is_away() {
                    self.lead = Some((at, life));
                    self.coverage.seen("bridge: lead taken");
                    say!(self, "bridge {at}: leads");
                    self.bridge_leads(at);
                } else {
                    self.bridge_in(at, LEAD_EVERY, BridgeStep::TakeLead);
                }
            }
            BridgeStep::LeadLost => {
                say!(self, "bridge {at}: has lost the lead");
                // All that belongs to the pump goes; the process asks for the lead anew.
                self.bridge_dies(at, 0);
            }
            BridgeStep::Stop => {
                self.bridges[at].core.drain();
                self.bridges[at].draining = true;
                self.bridge_in(at, DRAIN, BridgeStep::DrainedBy);
                self.bridge_acts(at, Vec::new());
            }
            BridgeStep::DrainedBy => self.ledger_says(at, Entry::Settled(Then::Stopped)),
            BridgeStep::Tick => {
                self.bridge_core(at, Input::Tick);
                let late = |sent: &Micros| self.now - sent > ACK_DEADLINE;
                if self.bridges[at].calls.values().any(late) {
                    self.coverage.seen("bridge: ack deadline");
                    self.link_down(at);
                }
                self.bridge_in(at, TICK, BridgeStep::Tick);
            }
            BridgeStep::Poll => {
                let positions = (!self.authority_is_away()).then(|| {
                    let dirty = self.logs.iter().filter(|log| log.published < log.head());
                    dirty.map(|log| log.position()).collect()
                });
                let after = self.hop();
                self.bridge_in(at, after, BridgeStep::Polled(positions));
            }
            BridgeStep::Polled(positions) => self.polled(at, positions),
            BridgeStep::Connect => {
                let conn = self.dial(Party::Bridge(at));
                self.bridges[at].wire = Wire::Connecting(conn);
                self.bridge_in(at, CONNECT_LIMIT, BridgeStep::ConnectFails { conn });
            }
            BridgeStep::ConnectFails { conn } => {
                if matches!(self.bridges[at].wire, Wire::Connecting(own) if own == conn) {
                    self.unconnected(at);
                }
            }
            BridgeStep::Compare { conn } => self.compare(at, conn),
            BridgeStep::CompareChains { conn, positions, heads } => self.compare_chains(at, conn, positions, heads),
            // A window that is to begin anew has to have begun.
            BridgeStep::LinkUp { conn } if self.bridges[at].refills > 0 => {
                if matches!(self.bridges[at].wire, Wire::Connecting(own) if own == conn) {
                    self.bridge_in(at, 5 * MILLISECOND, BridgeStep::LinkUp { conn });
                }
            }
            BridgeStep::LinkUp { conn } => {
                if matches!(self.bridges[at].wire, Wire::Connecting(own) if own == conn) {
                    say!(self, "bridge {at}: link up");
                    self.coverage.seen("bridge: link up");
                    let bridge = &mut self.bridges[at];
                    bridge.wire = Wire::Up(conn);
                    bridge.calls.clear();
                    bridge.failures = 0;
                    self.bridge_core(at, Input::LinkUp);
                    self.bridge_in(at, BEAT, BridgeStep::Beat { conn });
                }
            }
            BridgeStep::Beat { conn } => {
                if matches!(self.bridges[at].wire, Wire::Up(own) if own == conn) {
                    self.ask_heads(at, conn, Vec::new(), Ask::Beat);
                    self.bridge_in(at, BEAT, BridgeStep::Beat { conn });
                }
            }
            BridgeStep::Read {
                epoch,
                stream,
                after,
                base,
            } => self.read_base(at, epoch, stream, after, base),
            BridgeStep::ReadEvents {
                epoch,
                stream,
                after,
                base,
            } => {
                let stream_id = self.logs[stream].id.clone();
                let limits = self.setup.page;
                let input = if self.authority_is_away() {
                    Input::PageFailed { epoch, stream_id }
                } else {
                    let events = self.logs[stream].read(after, limits.events, limits.bytes);
                    if after < self.logs[stream].floor {
                        self.coverage.seen("bridge: page purged before it was read");
                        let hop = self.hop();
                        return self.bridge_in(at, hop, BridgeStep::Hear(Input::PageFailed { epoch, stream_id }));
                    }
                    let page = prepare(after, base, &events, limits.frame_bytes);
                    Input::Page { epoch, stream_id, page }
                };
                let hop = self.hop();
                self.bridge_in(at, hop, BridgeStep::Hear(input));
            }
            BridgeStep::LearnPosition { epoch, stream, held } => {
                if self.authority_is_away() {
                    return self.learn_failed(at, epoch, stream);
                }
                let position = self.logs[stream].position();
                let hop = self.hop();
                self.bridge_in(at, hop, BridgeStep::LearnChain { epoch, held, position });
            }
            BridgeStep::LearnChain { epoch, held, position } => {
                let stream = self.stream_at(&position.stream_id);
                if self.authority_is_away() {
                    return self.learn_failed(at, epoch, stream);
                }
                let verdict = reconcile(
                    &position,
                    held,
                    self.logs[stream].kept_chain_at(held.seq),
                    self.setup.window(),
                );
                say!(self, "bridge {at}: learns of stream {stream}: {verdict:?}");
                self.saw(&verdict);
                if let (Verdict::Refill(after), Wire::Up(conn)) = (&verdict, &self.bridges[at].wire) {
                    let (conn, after) = (*conn, *after);
                    let ask = Ask::LearnRefill { epoch, stream, after };
                    return self.refill(at, conn, stream, held.seq, after, ask);
                }
                let hop = self.hop();
                let input = Input::Learned {
                    epoch,
                    stream_id: position.stream_id,
                    verdict,
                };
                self.bridge_in(at, hop, BridgeStep::Hear(input));
            }
            BridgeStep::HeadsTimedOut { ask: nth } => match self.bridges[at].asks.remove(&nth) {
                None => {}
                Some(ask @ (Ask::Learn { .. } | Ask::LearnRefill { .. } | Ask::Beat)) => {
                    self.coverage.seen("bridge: call not answered");
                    // Whoever asked hears of it with the link.
                    self.bridges[at].asks.insert(nth, ask);
                    self.link_down(at);
                }
                Some(Ask::Compare { conn, .. } | Ask::Refill { conn, .. }) => {
                    self.bridge_takes(at, BridgeStep::ConnectFails { conn })
                }
            },
            BridgeStep::Hear(input) => self.bridge_core(at, input),
            BridgeStep::Ledger => self.ledger_turns(at),
        }
    }

    fn learn_failed(&mut self, at: usize, epoch: LinkEpoch, stream: usize) {
        let stream_id = self.logs[stream].id.clone();
        self.bridge_core(at, Input::LearnFailed { epoch, stream_id });
    }

    fn saw(&mut self, verdict: &Verdict) {
        self.coverage.seen(match verdict {
            Verdict::InStep(_) => "bridge: heads in step",
            Verdict::Ahead(_) => "bridge: heads ahead",
            Verdict::Behind(_) => "bridge: heads behind",
            Verdict::Refill(_) => "bridge: window refilled",
            Verdict::Unknown => "bridge: compared with what was purged",
            Verdict::Apart(_) => "bridge: heads apart",
        });
    }

    fn polled(&mut self, at: usize, positions: Option<Vec<StreamProgress>>) {
        let up = matches!(self.bridges[at].wire, Wire::Up(_));
        let wait = &mut self.bridges[at].poll_wait;
        match positions {
            None => *wait = SLOWEST_POLL,
            Some(positions) => {
                let found = up && !positions.is_empty();
                *wait = if found {
                    5 * MILLISECOND
                } else {
                    (*wait * 2).min(SLOWEST_POLL)
                };
                self.bridge_core(at, Input::Positions(positions));
            }
        }
        if !self.bridges[at].draining {
            let wait = self.bridges[at].poll_wait;
            self.bridge_in(at, wait, BridgeStep::Poll);
        }
    }

    /// Feeds the core and does what it asks for.
    fn bridge_core(&mut self, at: usize, input: Input) {
        let mut effects = Vec::new();
        let bridge = &mut self.bridges[at];
        let now = Duration::from_micros(self.now - bridge.started);
        bridge.core.step(now, input, &mut effects);
        self.bridge_acts(at, effects);
    }

    fn bridge_acts(&mut self, at: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append {
                    call,
                    stream_id,
                    prepared,
                } => {
                    let Wire::Up(conn) = self.bridges[at].wire else {
                        continue;
                    };
                    let stream = self.stream_at(&stream_id);
                    say!(
                        self,
                        "bridge {at}: sends {}..={} of stream {stream}",
                        prepared.first_seq,
                        prepared.last_seq
                    );
                    let now = self.now;
                    self.bridges[at].calls.insert(call, now);
                    self.send_up(conn, ToHost::Append { call, stream, prepared });
                }
                Effect::Read {
                    epoch,
                    stream_id,
                    after,
                    base_chain,
                } => {
                    let (stream, hop) = (self.stream_at(&stream_id), self.hop());
                    let step = BridgeStep::Read {
                        epoch,
                        stream,
                        after,
                        base: base_chain,
                    };
                    self.bridge_in(at, hop, step);
                }
                Effect::Learn { epoch, stream_id } => {
                    let Wire::Up(conn) = self.bridges[at].wire else {
                        continue;
                    };
                    let stream = self.stream_at(&stream_id);
                    self.ask_heads(at, conn, vec![stream], Ask::Learn { epoch, stream });
                }
                Effect::Advance { stream_id, seq } => {
                    let stream = self.stream_at(&stream_id);
                    self.ledger_says(at, Entry::Advance(stream, seq));
                }
                Effect::Rewind { stream_id, to } => {
                    let stream = self.stream_at(&stream_id);
                    self.ledger_says(at, Entry::Rewind(stream, to));
                }
                Effect::Halted { stream_id, reason } => {
                    say!(self, "bridge {at}: {stream_id} halted, {reason}");
                    self.coverage.seen("bridge: stream halted");
                }
                Effect::DropLink(refusal) => {
                    say!(self, "bridge {at}: drops the link, {refusal}");
                    self.link_down(at);
                }
            }
        }
        let bridge = &mut self.bridges[at];
        if bridge.draining && bridge.core.is_drained() && bridge.running {
            bridge.draining = false;
            self.ledger_says(at, Entry::Settled(Then::Stopped));
        }
    }

    fn read_base(&mut self, at: usize, epoch: LinkEpoch, stream: usize, after: Seq, base: Option<ChainHash>) {
        let stream_id = self.logs[stream].id.clone();
        let hop = self.hop();
        if self.authority_is_away() {
            return self.bridge_in(at, hop, BridgeStep::Hear(Input::PageFailed { epoch, stream_id }));
        }
        let step = match base.or_else(|| self.logs[stream].kept_chain_at(after)) {
            Some(base) => BridgeStep::ReadEvents {
                epoch,
                stream,
                after,
                base,
            },
            None if after < self.logs[stream].floor => BridgeStep::Hear(Input::PageFailed { epoch, stream_id }),
            None => BridgeStep::Hear(Input::Page {
                epoch,
                stream_id,
                page: Err(HaltReason::AheadOfAuthority),
            }),
        };
        self.bridge_in(at, hop, step);
    }

    /// Asks the module to begin a window anew after a position, if the authority still knows what is there.
    fn refill(&mut self, at: usize, conn: ConnId, stream: usize, seen: Seq, after: Seq, ask: Ask) {
        let Some(chain) = self.logs[stream].kept_chain_at(after) else {
            return match ask {
                Ask::Refill { .. } => self.bridges[at].refills -= 1,
                _ => {
                    if let Ask::LearnRefill { epoch, stream, .. } = ask {
                        self.learn_failed(at, epoch, stream);
                    }
                }
            };
        };
        let bridge = &mut self.bridges[at];
        bridge.next_ask += 1;
        let nth = bridge.next_ask;
        bridge.asks.insert(nth, ask);
        self.bridge_in(at, ANSWER_LIMIT, BridgeStep::HeadsTimedOut { ask: nth });
        let target = Position { seq: after, chain };
        self.send_up(
            conn,
            ToHost::Rewind {
                ask: nth,
                stream,
                seen,
                target,
            },
        );
    }

    fn ask_heads(&mut self, at: usize, conn: ConnId, streams: Vec<usize>, ask: Ask) {
        let bridge = &mut self.bridges[at];
        bridge.next_ask += 1;
        let nth = bridge.next_ask;
        bridge.asks.insert(nth, ask);
        self.bridge_in(at, ANSWER_LIMIT, BridgeStep::HeadsTimedOut { ask: nth });
        self.send_up(conn, ToHost::Heads { ask: nth, streams });
    }

    pub(crate) fn bridge_hears(&mut self, at: usize, conn: ConnId, message: FromHost) {
        let bridge = &mut self.bridges[at];
        if !bridge.running || bridge.conn() != Some(conn) {
            return;
        }
        match message {
            FromHost::Welcome => self.ledger_says(at, Entry::Settled(Then::Compare(conn))),
            FromHost::Acked(call) => {
                if bridge.calls.remove(&call).is_some() {
                    self.bridge_core(at, Input::Acked(call));
                }
            }
            FromHost::Refused(call, refusal) => {
                if bridge.calls.remove(&call).is_some() {
                    self.bridge_core(at, Input::Refused(call, refusal));
                }
            }
            FromHost::Lost(call) => {
                if bridge.calls.remove(&call).is_some() {
                    self.bridge_core(at, Input::Lost(call, "injected".to_owned()));
                }
            }
            FromHost::Heads { ask, heads } => match bridge.asks.remove(&ask) {
                None | Some(Ask::Beat) => {}
                Some(Ask::Learn { epoch, stream }) => {
                    let (held, hop) = (heads[0], self.hop());
                    self.bridge_in(at, hop, BridgeStep::LearnPosition { epoch, stream, held });
                }
                // Not at the target yet: the next step.
                Some(ask @ (Ask::Refill { stream, after, .. } | Ask::LearnRefill { stream, after, .. }))
                    if heads[0].seq != after =>
                {
                    self.refill(at, conn, stream, heads[0].seq, after, ask);
                }
                Some(Ask::Refill { stream, after, .. }) => {
                    self.bridges[at].refills -= 1;
                    self.ledger_says(at, Entry::Rewind(stream, after));
                    self.ledger_says(at, Entry::Advance(stream, after));
                }
                Some(Ask::LearnRefill { epoch, stream, after }) => {
                    let stream_id = self.logs[stream].id.clone();
                    let verdict = Verdict::Refill(after);
                    self.bridge_core(
                        at,
                        Input::Learned {
                            epoch,
                            stream_id,
                            verdict,
                        },
                    );
                }
                Some(Ask::Compare { conn, positions }) => {
                    let hop = self.hop();
                    self.bridge_in(at, hop, BridgeStep::CompareChains { conn, positions, heads });
                }
            },
            FromHost::Rewound { ask, answer } => match (bridge.asks.remove(&ask), answer) {
                (Some(ask @ (Ask::Refill { stream, .. } | Ask::LearnRefill { stream, .. })), Ok(())) => {
                    self.ask_heads(at, conn, vec![stream], ask);
                }
                // Another bridge is at work on it: the comparison is made anew.
                (Some(Ask::Refill { conn, .. }), Err(_)) => {
                    self.bridge_takes(at, BridgeStep::ConnectFails { conn });
                }
                (Some(Ask::LearnRefill { epoch, stream, .. }), Err(_)) => self.learn_failed(at, epoch, stream),
                (None | Some(Ask::Beat | Ask::Learn { .. } | Ask::Compare { .. }), _) => {}
            },
            FromHost::Page { .. }
            | FromHost::Row { .. }
            | FromHost::Subscribed { .. }
            | FromHost::SubscriptionFailed { .. }
            | FromHost::Unsubscribed { .. }
            | FromHost::CheckpointTaken { .. }
            | FromHost::GrantCame
            | FromHost::GrantLost { .. } => {}
        }
    }

    fn compare(&mut self, at: usize, conn: ConnId) {
        if !matches!(self.bridges[at].wire, Wire::Connecting(own) if own == conn) {
            return;
        }
        if self.authority_is_away() {
            return self.unconnected(at);
        }
        let all = self.logs.iter().filter(|log| log.head() > Seq::ZERO);
        let positions: Vec<_> = all.map(|log| log.position()).collect();
        let streams = positions
            .iter()
            .map(|position| self.stream_at(&position.stream_id))
            .collect();
        self.ask_heads(at, conn, streams, Ask::Compare { conn, positions });
    }

    fn compare_chains(&mut self, at: usize, conn: ConnId, positions: Vec<StreamProgress>, heads: Vec<Position>) {
        if !matches!(self.bridges[at].wire, Wire::Connecting(own) if own == conn) {
            return;
        }
        if self.authority_is_away() {
            return self.unconnected(at);
        }
        for (position, held) in positions.iter().zip(heads) {
            let stream = self.stream_at(&position.stream_id);
            let verdict = reconcile(
                position,
                held,
                self.logs[stream].kept_chain_at(held.seq),
                self.setup.window(),
            );
            self.saw(&verdict);
            match verdict {
                Verdict::InStep(seq) => self.ledger_says(at, Entry::Cap(stream, seq)),
                Verdict::Ahead(seq) => self.ledger_says(at, Entry::Advance(stream, seq)),
                Verdict::Behind(to) => self.ledger_says(at, Entry::Rewind(stream, to)),
                Verdict::Refill(after) => {
                    self.bridges[at].refills += 1;
                    let ask = Ask::Refill { conn, stream, after };
                    self.refill(at, conn, stream, held.seq, after, ask);
                }
                Verdict::Unknown => {}
                Verdict::Apart(reason) => {
                    let stream_id = position.stream_id.clone();
                    self.bridge_in(at, 0, BridgeStep::Hear(Input::Halt(stream_id, reason)));
                }
            }
        }
        self.ledger_says(at, Entry::Settled(Then::LinkUp(conn)));
    }

    fn unconnected(&mut self, at: usize) {
        if let Some(conn) = self.bridges[at].conn() {
            self.hang_up(conn);
        }
        let bridge = &mut self.bridges[at];
        bridge.wire = Wire::Down;
        bridge.asks.clear();
        bridge.refills = 0;
        let wait = ((200 * MILLISECOND) << bridge.failures.min(5)).min(5 * SECOND);
        bridge.failures += 1;
        if !bridge.draining {
            let wait = wait / 2 + self.dice.work.random_range(0..wait / 2);
            self.bridge_in(at, wait, BridgeStep::Connect);
        }
    }

    fn link_down(&mut self, at: usize) {
        if !matches!(self.bridges[at].wire, Wire::Up(_)) {
            return;
        }
        say!(self, "bridge {at}: link down");
        // Who still waits for heads hears nothing more.
        let asks = std::mem::take(&mut self.bridges[at].asks);
        self.unconnected(at);
        self.bridges[at].calls.clear();
        self.bridge_core(at, Input::LinkDown);
        for ask in asks.into_values() {
            if let Ask::Learn { epoch, stream } | Ask::LearnRefill { epoch, stream, .. } = ask {
                self.learn_failed(at, epoch, stream);
            }
        }
    }

    pub(crate) fn bridge_conn_broken(&mut self, at: usize, conn: ConnId) {
        let bridge = &self.bridges[at];
        if bridge.paused_until > self.now {
            let until = bridge.paused_until;
            return self.agenda.push(until, Step::Broken { conn });
        }
        if !bridge.running || bridge.conn() != Some(conn) {
            return;
        }
        match bridge.wire {
            Wire::Up(_) => self.link_down(at),
            Wire::Connecting(_) | Wire::Down => self.unconnected(at),
        }
    }
}
