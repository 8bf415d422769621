//! The one task of a client: it carries out what the session decided and decides nothing itself. Whatever blocks
//! happens elsewhere: on the apply thread, in the runtime of a connection, or in a task of its own.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::{Seq, StreamId};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::config::{Carries, ClientConfig};
use crate::error::{CallError, FollowError};
use crate::presence::Wishes;
use crate::session::status::{Disconnect, Status};
use crate::session::{
    Answer, Call, CallId, Called, Command, ConnectionId, DialFailure, Event, Inbound, QuestionId, Session,
};
use crate::signal::{Audiences, Heard};
use crate::store::applier::Applier;
use crate::talk::dial::{DialAnswer, dial};
use crate::talk::history::Source;
use crate::talk::link::Link;
use crate::watched::{Freshness, Views, Watchable, Watched};

pub(crate) struct Runner {
    config: Arc<ClientConfig>,
    /// The stream of each place.
    streams: Vec<StreamId>,
    session: Session,
    applier: Applier,
    /// Answers what SpacetimeDB no longer holds, if configured.
    history: Option<Arc<Source>>,
    /// Connections that were not given up: at most two.
    links: Vec<(ConnectionId, Link)>,
    /// Attempts to connect and questions to the authority. They end with the runner.
    tasks: JoinSet<Done>,
    /// What each task is doing.
    errands: HashMap<tokio::task::Id, (Errand, AbortHandle)>,
    status: watch::Sender<Status>,
    views: Views,
    heard: broadcast::Sender<Heard>,
    /// Who waits for the answer to which call.
    callers: BTreeMap<CallId, oneshot::Sender<Called<CallError>>>,
    /// Who waits to hear whether a stream is followed, or no longer.
    changers: BTreeMap<CallId, oneshot::Sender<Result<(), FollowError>>>,
    /// How many calls the application has made.
    calls: u64,
}

/// What the application asks for, and where it waits for the answer.
pub(crate) enum Asked {
    Call {
        call: Call,
        /// How long to repeat it until it has an answer, if that may be done.
        within: Option<Duration>,
        caller: oneshot::Sender<Called<CallError>>,
    },
    Follow {
        stream_id: StreamId,
        carries: Carries,
        caller: oneshot::Sender<Result<(), FollowError>>,
    },
    Unfollow {
        stream_id: StreamId,
        caller: oneshot::Sender<Result<(), FollowError>>,
    },
}

/// What the application asks of a client that runs.
pub(crate) struct Wanted {
    pub(crate) stop: oneshot::Receiver<()>,
    pub(crate) wishes: watch::Receiver<Wishes>,
    pub(crate) audiences: watch::Receiver<Audiences>,
    pub(crate) calls: mpsc::Receiver<Asked>,
}

/// What a task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errand {
    Dial(ConnectionId),
    Question(QuestionId, usize),
    Heads(QuestionId),
}

/// The result of a task.
enum Done {
    Dialed(Box<DialAnswer>),
    Answered(Answer),
    Heads(Result<Vec<(usize, Seq)>, String>),
}

impl Runner {
    pub(crate) fn new(
        config: ClientConfig,
        session: Session,
        applier: Applier,
        history: Option<Source>,
        status: watch::Sender<Status>,
        views: Views,
        heard: broadcast::Sender<Heard>,
    ) -> Self {
        Self {
            streams: config.followed().map(|(stream, _)| stream.clone()).collect(),
            config: Arc::new(config),
            session,
            applier,
            history: history.map(Arc::new),
            links: Vec::new(),
            tasks: JoinSet::new(),
            errands: HashMap::new(),
            status,
            views,
            heard,
            callers: BTreeMap::new(),
            changers: BTreeMap::new(),
            calls: 0,
        }
    }

    /// Runs until the session has ended.
    pub(crate) async fn run(mut self, wanted: Wanted) {
        let Wanted {
            mut stop,
            mut wishes,
            mut audiences,
            mut calls,
        } = wanted;
        let mut commands = Vec::new();
        let (mut stopping, mut applier_ended) = (false, false);
        let alarm = sleep_until(Instant::now());
        tokio::pin!(alarm);
        while !self.session.has_ended() {
            let due = self.session.due().map(Instant::from_std);
            if let Some(due) = due.filter(|due| *due != alarm.deadline()) {
                alarm.as_mut().reset(due);
            }
            // The order keeps a busy connection from starving the rest: how often each earlier arm is ready is bounded
            // by what was asked for, or by the clock.
            let event = tokio::select! {
                biased;
                // The application waits for it.
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    Event::Stop
                }
                // Frees what unapplied events take up, so that the client can read more.
                outcome = self.applier.next(), if !applier_ended => match outcome {
                    Some(outcome) => Event::Applied(outcome),
                    None => {
                        applier_ended = true;
                        Event::ApplierEnded
                    }
                },
                // Answers to attempts and questions, a few at a time.
                Some(done) = self.tasks.join_next_with_id() => self.done(done),
                // Timers.
                () = &mut alarm, if due.is_some() => Event::Woken,
                // An error means that the application dropped the handle: the client is about to stop.
                Ok(()) = wishes.changed() => {
                    let Wishes { said, watches, readable } = wishes.borrow_and_update().clone();
                    Event::Wishes { said, watches, readable }
                }
                Ok(()) = audiences.changed() => Event::Hear(audiences.borrow_and_update().clone()),
                // The channel has a bound, and each call waits for its answer.
                Some(asked) = calls.recv() => self.asked(asked),
                // Last, because there may always be a next message.
                (connection, message) = next_message(&self.links) => self.message(connection, message),
            };
            self.session.step(Instant::now().into_std(), event, &mut commands);
            for command in commands.drain(..) {
                self.carry_out(command);
            }
            let session = &mut self.session;
            self.status.send_if_modified(|shown| session.show(shown));
        }
    }

    fn asked(&mut self, asked: Asked) -> Event {
        self.calls += 1;
        let id = CallId(self.calls);
        match asked {
            Asked::Call { call, within, caller } => {
                self.callers.insert(id, caller);
                Event::Call { id, call, within }
            }
            Asked::Follow {
                stream_id,
                carries,
                caller,
            } => {
                self.changers.insert(id, caller);
                let streams = self.streams.len() + 1;
                let bounds = self
                    .config
                    .bounds_of(&stream_id, carries, streams, self.history.is_some());
                Event::Follow {
                    call: id,
                    stream_id,
                    bounds,
                }
            }
            Asked::Unfollow { stream_id, caller } => {
                self.changers.insert(id, caller);
                Event::Unfollow { call: id, stream_id }
            }
        }
    }

    fn message(&mut self, connection: ConnectionId, message: Result<Vec<Inbound>, Disconnect>) -> Event {
        match message {
            Ok(inbound) => Event::Message { connection, inbound },
            Err(reason) => {
                self.close(connection);
                Event::Closed { connection, reason }
            }
        }
    }

    /// A task has ended.
    fn done(&mut self, done: Result<(tokio::task::Id, Done), JoinError>) -> Event {
        let (id, done) = match done {
            Ok((id, done)) => (id, Some(done)),
            // It panicked or was aborted.
            Err(error) => (error.id(), None),
        };
        let without_answer = || "the task ended without an answer".to_owned();
        match (self.errands.remove(&id).map(|(errand, _)| errand), done) {
            (Some(Errand::Dial(connection)), Some(Done::Dialed(answer))) => {
                let DialAnswer { token, result } = *answer;
                let result = result.map(|(link, brought)| {
                    self.links.push((connection, link));
                    brought
                });
                Event::Dialed {
                    connection,
                    token,
                    result,
                }
            }
            (Some(Errand::Dial(connection)), _) => Event::Dialed {
                connection,
                token: None,
                result: Err(DialFailure::Later(Disconnect::Failed(without_answer()))),
            },
            (Some(Errand::Question(question, stream)), Some(Done::Answered(answer))) => Event::Answered {
                question,
                stream,
                answer,
            },
            (Some(Errand::Question(question, stream)), _) => Event::Answered {
                question,
                stream,
                answer: Answer::Failed {
                    message: without_answer(),
                    retry_after: None,
                },
            },
            (Some(Errand::Heads(question)), Some(Done::Heads(answer))) => Event::Heads { question, answer },
            (Some(Errand::Heads(question)), _) => Event::Heads {
                question,
                answer: Err(without_answer()),
            },
            // The task was given up too late: close the connection it made.
            (None, Some(Done::Dialed(answer))) => {
                if let Ok((link, _)) = answer.result {
                    link.close();
                }
                Event::Woken
            }
            (None, Some(Done::Answered(_) | Done::Heads(_)) | None) => Event::Woken,
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Dial {
                connection,
                token,
                streams,
            } => {
                let config = Arc::clone(&self.config);
                // Not later, when the session may already want other streams.
                let asked_at = Instant::now().into_std();
                self.begin(Errand::Dial(connection), async move {
                    Done::Dialed(Box::new(dial(&config, token, &streams, asked_at).await))
                });
            }
            Command::Close { connection } => {
                self.give_up(|errand| errand == Errand::Dial(connection));
                self.close(connection);
            }
            Command::Read {
                connection,
                read,
                stream,
                after,
            } => {
                if let Some(link) = self.link(connection) {
                    link.read(read, stream, &self.streams[stream], after);
                }
            }
            Command::Subscribe {
                connection,
                stream,
                id,
                key,
                after,
                to,
            } => {
                if let Some(link) = self.link_mut(connection) {
                    link.subscribe(stream, id, key, after, to);
                }
            }
            Command::Unsubscribe { connection, stream, id } => {
                if let Some(link) = self.link_mut(connection) {
                    link.unsubscribe(stream, id);
                }
            }
            Command::Acknowledge {
                connection,
                stream,
                position,
            } => {
                if let Some(link) = self.link(connection) {
                    link.ack(stream, &self.streams[stream], position);
                }
            }
            Command::SayPresence {
                connection,
                session_id,
                presence,
            } => {
                if let Some(link) = self.link(connection) {
                    link.say_presence(&session_id, &presence);
                }
            }
            Command::Watch { connection, watchable } => {
                if let Some(link) = self.link_mut(connection) {
                    link.watch(watchable);
                }
            }
            Command::Show {
                watchable,
                rows_of,
                freshness,
            } => self.show(watchable, rows_of, freshness),
            Command::Call { connection, id, call } => {
                if let Some(link) = self.link(connection) {
                    link.call(id, call);
                }
            }
            Command::Reply { id, reply } => {
                // A caller that no longer waits wants no answer.
                if let Some(caller) = self.callers.remove(&id) {
                    let _ = caller.send(reply);
                }
            }
            Command::AskAudience {
                connection,
                ear,
                audience,
            } => {
                if let Some(link) = self.link(connection) {
                    link.ask_audience(ear, &audience);
                }
            }
            Command::Hear {
                connection,
                ear,
                purpose,
                key,
            } => {
                if let Some(link) = self.link_mut(connection) {
                    link.hear(ear, purpose, key);
                }
            }
            Command::Tell(heard) => {
                // Without a listener nobody needs to know.
                let _ = self.heard.send(heard);
            }
            Command::Open {
                stream,
                stream_id,
                carries,
            } => {
                match self.streams.get_mut(stream) {
                    Some(before) => before.clone_from(&stream_id),
                    None => self.streams.push(stream_id.clone()),
                }
                self.applier.open(stream, stream_id, carries);
            }
            Command::Followed { call, result } => {
                if let Some(caller) = self.changers.remove(&call) {
                    let _ = caller.send(result);
                }
            }
            Command::AskReadable {
                connection,
                question,
                after,
            } => {
                if let Some(link) = self.link(connection) {
                    link.ask_readable(question, after);
                }
            }
            Command::ShowReadable { readable, freshness } => update(&self.views.readable, freshness, readable),
            Command::Ask {
                question,
                stream,
                token,
                about,
            } => {
                let (stream_id, history) = (self.streams[stream].clone(), self.history.clone());
                self.begin(Errand::Question(question, stream), async move {
                    Done::Answered(match history {
                        Some(source) => source.ask(token, &stream_id, about).await,
                        // A stream asks only if there is a source to ask.
                        None => pending().await,
                    })
                });
            }
            Command::AskHeads {
                question,
                streams,
                reported,
                token,
            } => {
                let first = streams.start;
                let reported = reported.into_iter().map(|at| self.streams[at].clone()).collect();
                let (asked, history) = (self.streams[streams].to_vec(), self.history.clone());
                self.begin(Errand::Heads(question), async move {
                    Done::Heads(match history {
                        Some(source) => source.heads(token, first, &asked, reported).await,
                        // A session asks only if there is a source to ask.
                        None => pending().await,
                    })
                });
            }
            Command::Withdraw { question } => {
                self.give_up(|errand| match errand {
                    Errand::Question(asked, _) | Errand::Heads(asked) => asked == question,
                    Errand::Dial(_) => false,
                });
            }
            Command::Apply { stream, work } => self.applier.hand_over(stream, work),
            Command::Trust(keys) => self.applier.trust(keys),
            Command::StopApplier => self.applier.stop(),
        }
    }

    fn show(&self, watchable: Watchable, rows_of: Option<ConnectionId>, freshness: Freshness) {
        let (views, link) = (&self.views, rows_of.and_then(|connection| self.link(connection)));
        match watchable {
            Watchable::Presences => update(&views.presences, freshness, link.map(Link::presences)),
            Watchable::ProvidersOnline => update(&views.providers_online, freshness, link.map(Link::providers_online)),
            Watchable::Capabilities => update(&views.capabilities, freshness, link.map(Link::capabilities)),
            Watchable::Assignments => update(&views.assignments, freshness, link.map(Link::assignments)),
            Watchable::Outbox => update(&views.outbox, freshness, link.map(Link::outbox)),
        }
    }

    fn begin(&mut self, errand: Errand, task: impl Future<Output = Done> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.errands.insert(handle.id(), (errand, handle));
    }

    fn give_up(&mut self, which: impl Fn(Errand) -> bool) {
        self.errands.retain(|_, (errand, handle)| {
            let given_up = which(*errand);
            if given_up {
                handle.abort();
            }
            !given_up
        });
    }

    fn close(&mut self, connection: ConnectionId) {
        if let Some(at) = self.links.iter().position(|(id, _)| *id == connection) {
            let (_, link) = self.links.swap_remove(at);
            link.close();
        }
    }

    /// The connection. `None` if it has broken and the session does not know yet.
    fn link(&self, connection: ConnectionId) -> Option<&Link> {
        let mut links = self.links.iter();
        links.find_map(|(id, link)| (*id == connection).then_some(link))
    }

    fn link_mut(&mut self, connection: ConnectionId) -> Option<&mut Link> {
        let mut links = self.links.iter_mut();
        links.find_map(|(id, link)| (*id == connection).then_some(link))
    }
}

/// Shows the application what has changed of it. Without rows, those that are shown stay.
fn update<T: PartialEq>(view: &watch::Sender<Watched<T>>, freshness: Freshness, rows: Option<T>) {
    view.send_if_modified(|shown| {
        let rows = rows.filter(|rows| *rows != shown.rows);
        let changed = rows.is_some() || shown.freshness != freshness;
        shown.freshness = freshness;
        if let Some(rows) = rows {
            shown.rows = rows;
        }
        changed
    });
}

/// The next message of any connection. `select!` polls the two in random order, so that neither starves the other.
async fn next_message(links: &[(ConnectionId, Link)]) -> (ConnectionId, Result<Vec<Inbound>, Disconnect>) {
    let of = async |at: usize| match links.get(at) {
        Some((id, link)) => (*id, link.next().await),
        None => pending().await,
    };
    tokio::select! {
        message = of(0) => message,
        message = of(1) => message,
    }
}
