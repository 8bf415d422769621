//! Shows a lane live in a terminal: who is here, who can do what, which assignment is where, which stream is how far behind, what
//! is told in passing, and what the connection does. Keys change assignments. It embeds the client library as any application does.
//!
//! `state` decides what the screen shows and what a key does, and `draw` draws it; both are pure. This file carries out, and
//! decides nothing.

mod acts;
mod args;
mod clean;
mod draw;
mod state;
mod tty;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Parser as _;
use crossterm::event::{Event as Input, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use spacetime_sync_client::rusqlite::Transaction;
use spacetime_sync_client::{
    Assignments, Beginning, CallError, Capabilities, Event, Handler, HandlerError, Heard, Phase, Presence, Presences,
    Signals, SqliteStore, Status, StopReason, StreamId, SyncClient, Watched,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::args::Args;
use crate::state::{Now, Order, State, Wish};
use crate::tty::Tty;

/// What others do is drawn no sooner than this after the screen was drawn last: streams change faster than anybody reads.
const PAUSE: Duration = Duration::from_millis(50);
/// The screen is drawn this often even if nothing happens, because it says how long ago things were.
const AT_LEAST: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    tty::is_there()?;
    args.log()?;
    let client = SyncClient::start(args.config()?, args.store()?, KeepsNothing)?;
    if let Some(region) = args.region() {
        let presence = Presence {
            region: region.to_owned(),
            surface: "terminal".to_owned(),
            ..Presence::online(args.own().node_id)
        };
        client.presence(presence)?;
    }
    let shown = show(&client, &args).await;
    let status = client.stop().await;
    for what in shown? {
        eprintln!("{what}: it had no answer yet, and may have been done or not");
    }
    Ok(match status.phase {
        Phase::Stopped {
            reason: StopReason::Requested,
        } => ExitCode::SUCCESS,
        Phase::Stopped { reason } => {
            eprintln!("{:#}", anyhow::Error::new(reason));
            ExitCode::FAILURE
        }
        Phase::Idle | Phase::Connecting { .. } | Phase::CatchingUp { .. } | Phase::Live | Phase::Backoff { .. } => {
            ExitCode::FAILURE
        }
    })
}

/// Shows the client until a key or a signal ends that. Returns the calls that had no answer by then.
async fn show(client: &SyncClient, args: &Args) -> anyhow::Result<Vec<String>> {
    let mut ends = Ends::new()?;
    let mut seen = Seen::of(client, args.served())?;
    let mut state = State::new(args.own(), seen.status.borrow().clone());
    let mut tty = Tty::take()?;
    let mut inputs = EventStream::new();
    let mut calls = FuturesUnordered::new();
    let mut due = Instant::now();
    loop {
        if due <= Instant::now() {
            tty.terminal.draw(|frame| draw::screen(frame, &state, now()))?;
            due = Instant::now() + AT_LEAST;
        }
        let drawn = due - AT_LEAST;
        tokio::select! {
            biased;
            () = ends.next() => break,
            input = inputs.next() => {
                let Some(input) = input else { break };
                if let Input::Key(key) = input.context("the terminal can no longer be read")?
                    && key.kind != KeyEventKind::Release
                {
                    match state.pressed(key, rand::random(), now()) {
                        Some(Order::Quit) => break,
                        Some(Order::Call(number, wish)) => calls.push(call(client, number, wish, args.within())),
                        None => {}
                    }
                }
                // Whoever presses a key or changes the size waits for what comes of it.
                due = Instant::now();
            }
            Some((number, answer)) = calls.next() => {
                state.answered(number, answer);
                due = Instant::now();
            }
            changed = seen.changed() => {
                match changed {
                    Changed::Status(status) => state.says(*status, now()),
                    Changed::Presences(presences) => state.presences = presences,
                    Changed::Assignments(assignments) => state.shows(assignments),
                    Changed::Capabilities(capabilities) => state.capabilities = capabilities,
                    Changed::ProvidersOnline(providers) => state.providers_online = providers,
                    Changed::Heard(heard) => {
                        if state.hears(heard, now()) {
                            // Whoever listens anew is told of each audience whether it is heard.
                            seen.signals = client.signals(args.served())?;
                        }
                    }
                }
                due = due.min(drawn + PAUSE);
            }
            () = sleep_until(due) => {}
        }
    }
    Ok(state.unanswered().map(|call| call.what.clone()).collect())
}

async fn call(client: &SyncClient, number: u64, wish: Wish, within: Duration) -> (u64, Result<(), CallError>) {
    let answer = match wish {
        Wish::Publish(capability) => client.publish_capability(capability, within).await,
        Wish::Open(opening) => client.open_assignment(opening, within).await,
        Wish::Change(change) => client.change_assignment(change, within).await,
    };
    (number, answer)
}

fn now() -> Now {
    Now {
        instant: std::time::Instant::now(),
        clock: SystemTime::now(),
    }
}

/// What the client shows.
struct Seen {
    status: watch::Receiver<Status>,
    presences: watch::Receiver<Watched<Presences>>,
    assignments: watch::Receiver<Watched<Assignments>>,
    capabilities: watch::Receiver<Watched<Capabilities>>,
    providers_online: watch::Receiver<Watched<u64>>,
    signals: Signals,
}

enum Changed {
    Status(Box<Status>),
    Presences(Watched<Presences>),
    Assignments(Watched<Assignments>),
    Capabilities(Watched<Capabilities>),
    ProvidersOnline(Watched<u64>),
    Heard(Heard),
}

impl Seen {
    fn of(client: &SyncClient, streams: &[StreamId]) -> Result<Self, CallError> {
        Ok(Self {
            status: client.status(),
            presences: client.presences(streams)?,
            assignments: client.assignments(),
            capabilities: client.capabilities(),
            providers_online: client.providers_online(),
            signals: client.signals(streams)?,
        })
    }

    /// What has changed. It waits for ever once the client has ended: the screen stays as it is until a person ends it.
    async fn changed(&mut self) -> Changed {
        tokio::select! {
            Ok(()) = self.status.changed() => Changed::Status(Box::new(self.status.borrow_and_update().clone())),
            Ok(()) = self.presences.changed() => Changed::Presences(self.presences.borrow_and_update().clone()),
            Ok(()) = self.assignments.changed() => Changed::Assignments(self.assignments.borrow_and_update().clone()),
            Ok(()) = self.capabilities.changed() => Changed::Capabilities(self.capabilities.borrow_and_update().clone()),
            Ok(()) = self.providers_online.changed() => Changed::ProvidersOnline(*self.providers_online.borrow_and_update()),
            Some(heard) = self.signals.next() => Changed::Heard(heard),
            else => std::future::pending().await,
        }
    }
}

/// The signals that end the program as the key does.
struct Ends {
    signals: [Signal; 3],
}

impl Ends {
    fn new() -> std::io::Result<Self> {
        let signals = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ];
        Ok(Self { signals })
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.signals;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The program shows how far streams are, and makes nothing of their events.
struct KeepsNothing;

impl Handler<SqliteStore> for KeepsNothing {
    fn apply(&mut self, _: &mut Transaction<'_>, _: &StreamId, _: &[Event]) -> Result<(), HandlerError> {
        Ok(())
    }

    fn start_over(&mut self, _: &mut Transaction<'_>, _: &StreamId, _: &Beginning) -> Result<(), HandlerError> {
        Ok(())
    }
}
