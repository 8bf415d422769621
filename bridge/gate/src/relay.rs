//! Carries one connection: what the client says after it was judged, what SpacetimeDB says as it comes.

pub(crate) mod pool;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use spacetime_sync_proto::{Refusal, RefusalCode};
use spacetime_sync_rules::session;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{sleep_until, timeout};

use crate::backlog::{Backlog, Bounds};
use crate::counters::{Counters, count};
use crate::decide::{Asked, Breach, Connection, Kind};
use crate::frames::{self, FromClient, Reader, Walk};
use crate::registry::revoked;

use pool::{Pool, Share};

/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;
/// The gate reads no more of a client while SpacetimeDB has not taken so much.
const TO_SERVER_BYTES: usize = 64 * 1024;
/// SpacetimeDB hears of a client at least so often whose questions wait until it has taken what is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// How long the last words may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// One of the sides hung up.
    Gone,
    /// The client said what no client says.
    Breach(Breach),
    /// The client takes too slowly what SpacetimeDB says.
    Slow,
    /// The token has expired.
    Expired,
    /// The session was revoked.
    Revoked,
    /// The session has opened another connection, and has too many.
    Replaced,
}

impl Ending {
    /// What the client is told. `None` if there is nothing to tell, or nobody who listens.
    fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Gone | Self::Slow => None,
            Self::Breach(breach) => Some(breach.refusal()),
            Self::Expired => Some(session::expired()),
            Self::Revoked => Some(revoked()),
            Self::Replaced => Some(Refusal::new(
                RefusalCode::RateLimited,
                "the session has too many connections, and this is the oldest",
            )),
        }
    }

    /// Whether the client may have nothing more of what waits for it, and its words count no longer.
    fn cuts(self) -> bool {
        match self {
            Self::Breach(_) | Self::Expired | Self::Revoked => true,
            Self::Gone | Self::Slow | Self::Replaced => false,
        }
    }

    /// Counts it.
    fn count(self, counters: &Counters) {
        match self {
            Self::Gone => {}
            Self::Breach(_) => count(&counters.breaches),
            Self::Slow => count(&counters.slow),
            Self::Expired => count(&counters.expired),
            Self::Revoked => count(&counters.revoked),
            Self::Replaced => count(&counters.replaced),
        }
    }
}

/// What the session of a connection has left. Its connections share it.
pub(crate) trait Account {
    /// The client asks for something. Returns from when that may pass, as far as its rate goes.
    fn reserve(&self, asked: Asked, now: Instant) -> Instant;
    /// A subscription is to pass. Returns when to try again if SpacetimeDB has enough to do for the session.
    fn begin(&self, now: Instant) -> Result<(), Instant>;
    /// SpacetimeDB has answered it.
    fn answered(&self);
    /// So many bytes have answered subscriptions, in the time since then.
    fn subscribed(&self, bytes: u64, since: Instant, now: Instant);
    /// A subscription has brought more than one may.
    fn too_much(&self);
}

/// What a connection runs by.
pub(crate) struct Terms<'a> {
    /// Judges messages.
    pub(crate) connection: Connection,
    /// The longest message.
    pub(crate) message_bytes: usize,
    /// The longest answer to a subscription of a stream.
    pub(crate) subscription_bytes: u64,
    /// What its session has left.
    pub(crate) account: &'a (dyn Account + Send + Sync),
    /// How slow the client may be.
    pub(crate) bounds: Bounds,
    /// When the token expires.
    pub(crate) expires: Instant,
    /// Comes when somebody else ends the connection.
    pub(crate) told: oneshot::Receiver<Ending>,
    /// What is counted.
    pub(crate) counters: &'a Counters,
    /// What all connections hold together.
    pub(crate) pool: &'a Pool,
}

/// Carries a connection to its end.
pub(crate) async fn relay(
    client: impl AsyncRead + AsyncWrite + Unpin,
    server: impl AsyncRead + AsyncWrite + Unpin,
    terms: Terms<'_>,
) -> Ending {
    let mut told = terms.told;
    let mut relay = Relay {
        client,
        server,
        from_client: BytesMut::new(),
        to_server: BytesMut::new(),
        to_client: BytesMut::new(),
        reader: Reader::new(terms.message_bytes),
        longest: terms.message_bytes,
        subscription_bytes: terms.subscription_bytes,
        heard: Walk::default(),
        said: Walk::default(),
        backlog: Backlog::default(),
        bounds: terms.bounds,
        connection: terms.connection,
        held: None,
        spoke_at: Instant::now(),
        unreported: 0,
        reported_at: Instant::now(),
        client_is_done: false,
        clients_turn: false,
        unanswered: VecDeque::new(),
        account: terms.account,
        counters: terms.counters,
        share: Share::of(terms.pool),
    };
    let mut goodbye_by = None;
    let mut alarm = pin!(sleep_until(terms.expires.into()));
    let ending = loop {
        if relay.client_is_done {
            goodbye_by.get_or_insert_with(|| Instant::now() + GOODBYE);
        }
        // An alarm that rings too early costs less than one that is moved with every message.
        let due = relay.next_time(terms.expires, goodbye_by);
        if due < alarm.deadline().into_std() {
            alarm.as_mut().reset(due.into());
        }
        tokio::select! {
            biased;
            ending = &mut told => break ending.unwrap_or(Ending::Gone),
            () = alarm.as_mut() => {
                let now = Instant::now();
                if terms.expires <= now {
                    break Ending::Expired;
                }
                if relay.backlog.too_slow_at(&relay.bounds).is_some_and(|at| at <= now) {
                    break Ending::Slow;
                }
                if goodbye_by.is_some_and(|by| by <= now) {
                    break Ending::Gone;
                }
                if let Err(breach) = relay.judge(now) {
                    break Ending::Breach(breach);
                }
                alarm.as_mut().reset(relay.next_time(terms.expires, goodbye_by).into());
            }
            moved = poll_fn(|cx| relay.poll(cx)) => {
                let now = Instant::now();
                match moved {
                    Ok(Moved::FromClient) => {
                        if let Err(breach) = relay.judge(now) {
                            break Ending::Breach(breach);
                        }
                    }
                    Ok(Moved::FromServer(bytes)) => {
                        // An answer lets the next question pass.
                        if let Err(breach) = relay.pass(bytes, now).and_then(|()| relay.judge(now)) {
                            break Ending::Breach(breach);
                        }
                    }
                    Ok(Moved::ToClient) => {
                        relay.backlog.shrank(&relay.bounds, relay.to_client.len(), now);
                        if let Err(breach) = relay.judge(now) {
                            break Ending::Breach(breach);
                        }
                    }
                    Ok(Moved::ToServer) => {}
                    Ok(Moved::Ended) | Err(_) => break Ending::Gone,
                }
                relay.share.set(relay.from_client.len() + relay.to_server.len() + relay.to_client.len());
            }
        }
    };
    ending.count(terms.counters);
    relay.close_account(Instant::now());
    if ending == Ending::Breach(Breach::TooMuch) {
        terms.account.too_much();
    }
    relay.say_goodbye(ending).await;
    ending
}

struct Relay<'a, C, S> {
    client: C,
    server: S,
    from_client: BytesMut,
    to_server: BytesMut,
    to_client: BytesMut,
    reader: Reader,
    longest: usize,
    subscription_bytes: u64,
    /// Over what SpacetimeDB has said.
    heard: Walk,
    /// Over what of that the client has taken.
    said: Walk,
    backlog: Backlog,
    bounds: Bounds,
    connection: Connection,
    /// What passes when its time has come. Until then nothing more is read of the client.
    held: Option<Held>,
    /// When SpacetimeDB was last told something.
    spoke_at: Instant,
    /// How many bytes have answered subscriptions since that was last reported, and when that was.
    unreported: u64,
    reported_at: Instant,
    /// The client has closed the connection. What SpacetimeDB answers still goes to it.
    client_is_done: bool,
    /// Who is heard first. They take turns, so that neither drowns the other out.
    clients_turn: bool,
    /// The subscriptions, and ends of subscriptions, that SpacetimeDB has not answered yet, in the order of its answers. `true`
    /// if it has work with one.
    unanswered: VecDeque<bool>,
    account: &'a (dyn Account + Send + Sync),
    counters: &'a Counters,
    share: Share<'a>,
}

/// What a client has said and must wait.
struct Held {
    /// From when it may pass, as far as the session's rate goes.
    at: Instant,
    /// When to look again whether SpacetimeDB still has enough to do for the session.
    again_at: Option<Instant>,
    /// Whether it did not pass at once.
    is_late: bool,
    asked: Asked,
    words: BytesMut,
}

impl Held {
    fn due(&self) -> Instant {
        self.again_at.unwrap_or(self.at)
    }
}

/// What a step did.
enum Moved {
    FromClient,
    FromServer(usize),
    ToClient,
    ToServer,
    /// One of the sides hung up.
    Ended,
}

impl<C: AsyncRead + AsyncWrite + Unpin, S: AsyncRead + AsyncWrite + Unpin> Relay<'_, C, S> {
    /// Writes or reads something, whatever is possible first.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Moved>> {
        if !self.to_client.is_empty()
            && let Poll::Ready(written) = write(&mut self.client, &mut self.to_client, Some(&mut self.said), cx)
        {
            return Poll::Ready(written.map(|()| Moved::ToClient));
        }
        if !self.to_server.is_empty()
            && let Poll::Ready(written) = write(&mut self.server, &mut self.to_server, None, cx)
        {
            return Poll::Ready(written.map(|()| Moved::ToServer));
        }
        self.clients_turn = !self.clients_turn;
        for clients_turn in [self.clients_turn, !self.clients_turn] {
            let moved = if clients_turn {
                self.hear_client(cx)
            } else {
                self.hear_server(cx)
            };
            if moved.is_ready() {
                return moved;
            }
        }
        Poll::Pending
    }

    fn hear_server(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Moved>> {
        let pool = self.share.pool();
        let full = self.to_client.len() >= self.bounds.bytes;
        // Whoever waits here has a client that takes something, or is too slow. So nobody needs to be woken.
        if full || (!self.to_client.is_empty() && pool.held() >= pool.most) {
            return Poll::Pending;
        }
        let bytes = ready!(read(&mut self.server, &mut self.to_client, cx))?;
        Poll::Ready(Ok(if bytes == 0 {
            Moved::Ended
        } else {
            Moved::FromServer(bytes)
        }))
    }

    fn hear_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Moved>> {
        let may_say_more = self.held.is_none() && !self.client_is_done && self.to_server.len() < TO_SERVER_BYTES;
        if !may_say_more || self.from_client.len() > self.longest + READ_BYTES {
            return Poll::Pending;
        }
        let bytes = ready!(read(&mut self.client, &mut self.from_client, cx))?;
        Poll::Ready(Ok(if bytes == 0 { Moved::Ended } else { Moved::FromClient }))
    }

    fn next_time(&self, expires: Instant, goodbye_by: Option<Instant>) -> Instant {
        // What waits for the client to take something has no time of its own.
        let held = self.held.as_ref().filter(|held| self.may_ask(held.asked.kind));
        let slow = self.backlog.too_slow_at(&self.bounds);
        [held.map(Held::due), slow, goodbye_by]
            .into_iter()
            .flatten()
            .fold(expires, Instant::min)
    }

    /// Whether the client has taken enough for what it asks. Calls bring next to nothing.
    fn may_ask(&self, kind: Kind) -> bool {
        match kind {
            Kind::Call => true,
            Kind::Read | Kind::Subscribe => self.bounds.may_ask(self.to_client.len()),
        }
    }

    /// Whether what waits may pass.
    fn may_pass(&mut self, held: &mut Held, now: Instant) -> bool {
        if held.due() > now || !self.may_ask(held.asked.kind) {
            return false;
        }
        if held.asked.kind == Kind::Subscribe {
            held.again_at = self.account.begin(now).err();
        }
        held.again_at.is_none()
    }

    /// Passes on what has its time, and judges what the client has said since, up to what must wait.
    fn judge(&mut self, now: Instant) -> Result<(), Breach> {
        loop {
            if let Some(mut held) = self.held.take() {
                if !self.may_pass(&mut held, now) {
                    if !std::mem::replace(&mut held.is_late, true) {
                        count(&self.counters.delayed);
                    }
                    self.held = Some(held);
                    break;
                }
                if held.asked.wants_answer {
                    self.unanswered.push_back(held.asked.kind == Kind::Subscribe);
                }
                self.to_server.unsplit(held.words);
                self.spoke_at = now;
            }
            if self.client_is_done {
                break;
            }
            let Some(said) = self.reader.next(&mut self.from_client)? else {
                break;
            };
            let mask = rand::random();
            let mut words = BytesMut::new();
            let asked = match said {
                FromClient::Message(message) => {
                    let pass = self.connection.decide(&message)?;
                    frames::message(pass.message, mask, &mut words);
                    count(&self.counters.passed);
                    pass.asked
                }
                FromClient::Ping(payload) => {
                    frames::ping(payload, mask, &mut words);
                    Kind::Call.into()
                }
                FromClient::Pong(payload) => {
                    frames::pong(payload, mask, &mut words);
                    Kind::Call.into()
                }
                FromClient::Close(payload) => {
                    self.client_is_done = true;
                    frames::close(payload, mask, &mut self.to_server);
                    break;
                }
            };
            self.report(now);
            self.held = Some(Held {
                at: self.account.reserve(asked, now),
                again_at: None,
                is_late: false,
                asked,
                words,
            });
        }
        // SpacetimeDB closes a connection on which it hears nothing.
        if self.held.is_some() && now.saturating_duration_since(self.spoke_at) >= SIGN_OF_LIFE {
            frames::pong(Bytes::new(), rand::random(), &mut self.to_server);
            self.spoke_at = now;
        }
        shrink(&mut self.from_client);
        Ok(())
    }

    /// Reports what has answered subscriptions, before each question, and at the end.
    fn report(&mut self, now: Instant) {
        let since = std::mem::replace(&mut self.reported_at, now);
        let bytes = std::mem::take(&mut self.unreported);
        if bytes > 0 {
            self.account.subscribed(bytes, since, now);
        }
    }

    /// SpacetimeDB has answered the next of what it was asked. What that brought counts before another one passes.
    fn answered(&mut self, now: Instant) {
        self.report(now);
        if self.unanswered.pop_front() == Some(true) {
            self.account.answered();
        }
        if let Some(held) = &mut self.held {
            held.again_at = None;
        }
    }

    /// Reports what came last. SpacetimeDB still does what nobody waits for any more, so that is not answered, and counts as
    /// the most that a subscription may bring.
    fn close_account(&mut self, now: Instant) {
        self.report(now);
        if self.unanswered.contains(&true) {
            self.account.subscribed(self.subscription_bytes, now, now);
        }
    }

    /// Takes note of what SpacetimeDB has said: the last `bytes` of what goes to the client.
    fn pass(&mut self, bytes: usize, now: Instant) -> Result<(), Breach> {
        let Walk {
            frames,
            subscribed,
            answers,
            ..
        } = self.heard;
        self.heard.over(&self.to_client[self.to_client.len() - bytes..]);
        let add = |counter: &AtomicU64, more| {
            counter.fetch_add(more, Ordering::Relaxed);
        };
        add(&self.counters.frames, self.heard.frames - frames);
        add(&self.counters.bytes, bytes as u64);
        self.unreported += self.heard.subscribed - subscribed;
        for _ in answers..self.heard.answers {
            self.answered(now);
        }
        self.backlog.grew(&self.bounds, self.to_client.len(), now);
        match self.heard.subscription() {
            Some((id, length)) if length > self.subscription_bytes && self.connection.may_be_of_stream(id) => {
                Err(Breach::TooMuch)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Tells both sides that it is over, as far as they listen.
    async fn say_goodbye(&mut self, ending: Ending) {
        // Whether a frame of the gate's own may follow what goes to the client, and to SpacetimeDB.
        let (mut to_client, mut to_server) = (self.heard.is_between_frames(), !self.client_is_done);
        if ending.cuts() {
            let rest = self.said.rest(&self.to_client);
            self.to_client.truncate(rest.unwrap_or_default());
            to_client = rest.is_some();
            to_server &= self.to_server.is_empty();
            self.to_server.clear();
        }
        if ending == Ending::Slow {
            self.to_client.clear();
        }
        if to_client && let Some(refusal) = ending.refusal() {
            frames::close_client(&refusal, &mut self.to_client);
        }
        if to_server {
            frames::close(Bytes::new(), rand::random(), &mut self.to_server);
        }
        let last = async {
            poll_fn(|cx| self.flush(cx)).await?;
            // If something that the client sent is unread when the socket closes, the client may lose the last words.
            while ending.refusal().is_some() {
                self.from_client.clear();
                if poll_fn(|cx| read(&mut self.client, &mut self.from_client, cx)).await? == 0 {
                    break;
                }
            }
            Ok::<_, io::Error>(())
        };
        let _ = timeout(GOODBYE, last).await;
    }

    /// Writes what is left to write, and closes the way to the client.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_written = |written: Poll<io::Result<()>>| matches!(written, Poll::Ready(Ok(())));
        while !self.to_server.is_empty() && is_written(write(&mut self.server, &mut self.to_server, None, cx)) {}
        while !self.to_client.is_empty() {
            ready!(write(&mut self.client, &mut self.to_client, None, cx))?;
        }
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}

fn read(from: &mut (impl AsyncRead + Unpin), into: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    // On the stack, so that a connection that is silent holds no memory to read into.
    let mut space = [MaybeUninit::uninit(); READ_BYTES];
    let mut read = ReadBuf::uninit(&mut space);
    ready!(Pin::new(from).poll_read(cx, &mut read))?;
    into.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}

/// Writes, and goes over what was written.
fn write(
    to: &mut (impl AsyncWrite + Unpin),
    from: &mut BytesMut,
    walk: Option<&mut Walk>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let written = ready!(Pin::new(&mut *to).poll_write(cx, from))?;
    if written == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    if let Some(walk) = walk {
        walk.over(&from[..written]);
    }
    from.advance(written);
    shrink(from);
    // With TLS, bytes may still lie in between. What is not flushed now is flushed with the next write.
    let _ = Pin::new(to).poll_flush(cx)?;
    Poll::Ready(Ok(()))
}

/// Gives an empty buffer's memory back.
fn shrink(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > 0 {
        *buffer = BytesMut::new();
    }
}
