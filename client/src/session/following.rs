//! Streams that come and go while the session runs. Each stream has a place: a number by which everybody inside the client knows it.
//! A stream that goes keeps its place and what the session knows of it, until it comes back or until another stream needs the place.

use std::collections::BTreeMap;
use std::time::Instant;

use spacetime_sync_proto::{Position, StreamId, limit};

use super::calls::CallId;
use super::connection::Connection;
use super::event::Opened;
use super::follower::Follower;
use super::stream::{Input, Mode, Stream};
use super::{Command, Session};
use crate::config::StreamBounds;
use crate::error::{FollowError, StoreError};

/// Most changes that are under way.
const UNDER_WAY: usize = 64;

/// Whether the client follows the stream of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Following {
    /// From the session's start on.
    FromStart,
    /// Since this time. A token that was asked for before may not cover the stream.
    Since(Instant),
    /// No longer. The stream may come back as it was left.
    Left,
    /// Not yet: its checkpoint was never read.
    Unread,
}

/// The changes under way.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// What the store is asked for, by the place.
    opening: BTreeMap<usize, Opening>,
    /// Who waits until nothing more of a stream is applied, and the place of the stream.
    leaving: BTreeMap<CallId, usize>,
}

#[derive(Debug)]
struct Opening {
    id: StreamId,
    bounds: StreamBounds,
    callers: Vec<CallId>,
    /// Whether the client is to follow the stream once it is known where it is.
    is_wanted: bool,
}

impl Changes {
    /// Whether the client is about to follow another stream.
    pub(super) fn are_opening(&self) -> bool {
        !self.opening.is_empty()
    }

    fn under_way(&self) -> usize {
        let waiting = self.opening.values().map(|opening| opening.callers.len());
        waiting.sum::<usize>() + self.leaving.len()
    }
}

impl Follower {
    /// Whether the client follows the stream.
    pub(super) fn is_followed(&self) -> bool {
        match self.following {
            Following::FromStart | Following::Since(_) => true,
            Following::Left | Following::Unread => false,
        }
    }

    /// Whether the store holds nothing of the stream that it has yet to do.
    fn is_applied(&self) -> bool {
        self.stream.unapplied_bytes() == 0 && !self.stream.is_beginning()
    }

    /// Whether nothing that is still to come could be taken for another stream's.
    fn is_free(&self) -> bool {
        !self.is_followed()
            && self.is_applied()
            && self.subscriptions.is_empty()
            && self.reading.is_none()
            && self.question.is_none()
            && self.search.is_over()
            && !self.acknowledgement.is_under_way()
            && !self.uses_old
    }
}

impl Session {
    /// The application wants to follow one more stream.
    pub(super) fn follow(&mut self, call: CallId, stream_id: StreamId, bounds: StreamBounds) {
        if self.changes.under_way() >= UNDER_WAY {
            return self.followed(call, Err(FollowError::Busy));
        }
        let is_full = self.followed_or_wanted() >= self.most;
        if let Some(opening) = self.opening_of(&stream_id)
            && (opening.is_wanted || !is_full)
        {
            if opening.bounds.carries.are_documents() != bounds.carries.are_documents() {
                let (is_wanted, other) = (opening.is_wanted, FollowError::OtherKind);
                // One that is wanted no longer is soon out of the way.
                return self.followed(call, Err(if is_wanted { other } else { FollowError::Busy }));
            }
            opening.is_wanted = true;
            return opening.callers.push(call);
        }
        let own = self.place_of(&stream_id);
        let is_same = |at: usize| self.followers[at].stream.carries_documents() == bounds.carries.are_documents();
        if let Some(at) = own.filter(|at| self.followers[*at].is_followed()) {
            let result = if is_same(at) {
                Ok(())
            } else {
                Err(FollowError::OtherKind)
            };
            return self.followed(call, result);
        }
        if is_full {
            let most = self.most;
            return self.followed(call, Err(FollowError::TooMany { most }));
        }
        let place = match own {
            Some(at) if is_same(at) && self.comes_back(at) => {
                self.end_leaving(at);
                let follower = &mut self.followers[at];
                follower.following = Following::Since(self.now);
                // The module may have forgotten it meanwhile, together with the grant.
                follower.acknowledgement.forget();
                self.touch(at);
                self.ask_heads();
                self.set_out(at);
                // What it waited for when it went.
                self.feed(at, Input::AskAgain);
                return self.followed(call, Ok(()));
            }
            Some(at) => Some(at).filter(|at| self.is_free(*at)),
            None => self.free_place(&stream_id, &bounds),
        };
        // What is still under way for the places that are not free ends soon.
        let Some(at) = place else {
            return self.followed(call, Err(FollowError::Busy));
        };
        self.commands.push(Command::Open {
            stream: at,
            stream_id: stream_id.clone(),
            carries: bounds.carries,
        });
        let opening = Opening {
            id: stream_id,
            bounds,
            callers: vec![call],
            is_wanted: true,
        };
        self.changes.opening.insert(at, opening);
    }

    /// The application no longer wants to follow a stream.
    pub(super) fn unfollow(&mut self, call: CallId, stream_id: &StreamId) {
        if self.changes.under_way() >= UNDER_WAY {
            return self.followed(call, Err(FollowError::Busy));
        }
        if let Some(opening) = self.opening_of(stream_id) {
            opening.is_wanted = false;
            return opening.callers.push(call);
        }
        let Some(at) = self.place_of(stream_id) else {
            return self.followed(call, Ok(()));
        };
        if self.followers[at].is_followed() {
            self.leave_stream(at);
        }
        if self.followers[at].is_applied() {
            self.followed(call, Ok(()));
        } else {
            self.changes.leaving.insert(call, at);
        }
    }

    fn opening_of(&mut self, stream_id: &StreamId) -> Option<&mut Opening> {
        self.changes
            .opening
            .values_mut()
            .find(|opening| opening.id == *stream_id)
    }

    /// Where a stream has its place. A place that is being given to another stream is that one's.
    fn place_of(&self, stream_id: &StreamId) -> Option<usize> {
        let places = self.followers.iter().enumerate();
        let mut own = places.filter(|(at, _)| !self.changes.opening.contains_key(at));
        own.find_map(|(at, follower)| (follower.id == *stream_id).then_some(at))
    }

    /// How many streams the client follows or is about to follow.
    fn followed_or_wanted(&self) -> usize {
        let followed = self.followers.iter().filter(|follower| follower.is_followed());
        let wanted = self.changes.opening.values().filter(|opening| opening.is_wanted);
        followed.count() + wanted.count()
    }

    /// Whether a stream that went can go on from what the session knows. One that has stopped is read from the store again.
    fn comes_back(&self, at: usize) -> bool {
        let follower = &self.followers[at];
        match follower.following {
            Following::Unread => false,
            Following::FromStart | Following::Since(_) | Following::Left => {
                !matches!(follower.stream.mode(), Mode::Stopped(_))
            }
        }
    }

    /// Whether another stream may have the place. A replaced connection may still bring something for the one that had it.
    fn is_free(&self, at: usize) -> bool {
        let follower = &self.followers[at];
        let never_had = follower.following == Following::Unread;
        follower.is_free() && (never_had || self.handed_over().is_none()) && !self.changes.opening.contains_key(&at)
    }

    /// A place for another stream: that of one that has gone, or a new one. `None` if too many have yet to become free.
    fn free_place(&mut self, stream_id: &StreamId, bounds: &StreamBounds) -> Option<usize> {
        if let Some(at) = (0..self.followers.len()).find(|at| self.is_free(*at)) {
            return Some(at);
        }
        if self.followers.len() >= self.most + UNDER_WAY {
            return None;
        }
        let stream = Stream::new(Position::start(stream_id), bounds.clone());
        let mut follower = Follower::new(stream_id.clone(), stream, self.now);
        follower.following = Following::Unread;
        follower.share = follower.share();
        self.tally.add(follower.share);
        self.followers.push(follower);
        Some(self.followers.len() - 1)
    }

    /// The store has said where a stream is, or cannot.
    pub(super) fn opened(&mut self, at: usize, result: Result<Opened, StoreError>) {
        let Some(opening) = self.changes.opening.remove(&at) else {
            return;
        };
        let Opening {
            id,
            mut bounds,
            callers,
            is_wanted,
        } = opening;
        let (position, following) = match &result {
            Ok(opened) if is_wanted => (opened.at, Following::Since(self.now)),
            Ok(opened) => (opened.at, Following::Left),
            Err(_) => (Position::start(&id), Following::Unread),
        };
        if let Ok(opened) = &result {
            bounds.carries = opened.carries;
        }
        let mut follower = Follower::new(id, Stream::new(position, bounds), self.now);
        follower.following = following;
        follower.share = follower.share();
        let before = &mut self.followers[at];
        (follower.touched, follower.unshown) = (before.touched, before.unshown);
        self.tally.remove(before.share);
        self.tally.add(follower.share);
        *before = follower;
        self.touch(at);
        // What was asked before was about another stream.
        self.ask_heads();
        self.set_out(at);
        for call in callers {
            let result = result
                .as_ref()
                .map(|_| ())
                .map_err(|error| FollowError::Store(error.clone()));
            self.followed(call, result);
        }
    }

    /// Ends everything of a stream but what is being applied.
    fn leave_stream(&mut self, at: usize) {
        self.acknowledge_if_owed(at);
        self.let_go(at);
        self.withdraw_content(at);
        self.feed(at, Input::Disconnected);
        if let Some(key) = self.followers[at].key.take()
            && self.by_key.get(&key) == Some(&at)
        {
            self.by_key.remove(&key);
        }
        let follower = &mut self.followers[at];
        follower.following = Following::Left;
        follower.awaits_token = false;
        (follower.ask_at, follower.owed, follower.reports) = (None, None, false);
        self.touch(at);
    }

    /// Tells whoever waits that nothing more of a stream is applied, once that is so.
    pub(super) fn end_leaving_if_applied(&mut self, at: usize) {
        let follower = &self.followers[at];
        if !follower.is_followed() && follower.is_applied() {
            self.end_leaving(at);
        }
    }

    fn end_leaving(&mut self, at: usize) {
        let gone = self.changes.leaving.extract_if(.., |_, place| *place == at);
        let replies = gone.map(|(call, _)| Command::Followed { call, result: Ok(()) });
        self.commands.extend(replies);
    }

    /// The session changes nothing any more.
    pub(super) fn end_changes(&mut self) {
        let Changes { opening, leaving } = std::mem::take(&mut self.changes);
        let callers = opening.into_values().flat_map(|opening| opening.callers);
        for call in callers.chain(leaving.into_keys()) {
            self.followed(call, Err(FollowError::Stopped));
        }
    }

    fn followed(&mut self, call: CallId, result: Result<(), FollowError>) {
        self.commands.push(Command::Followed { call, result });
    }

    /// Has a stream begin on the connection that serves. One that its token may not cover waits for the next token, which is due
    /// at once.
    pub(super) fn set_out(&mut self, at: usize) {
        let Connection::Up(up) = &self.connection else { return };
        let follower = &mut self.followers[at];
        let covers = match (follower.following, &up.tenure) {
            (Following::Left | Following::Unread, _) => return,
            (Following::FromStart, _) | (Following::Since(_), None) => true,
            (Following::Since(since), Some(tenure)) => tenure.asked_at() > since || tenure.grants(&follower.id),
        };
        follower.awaits_token = !covers;
        if covers {
            self.feed(at, Input::Connected);
            self.search(at);
        } else {
            self.doubt_token_if(true);
        }
    }

    /// Another token serves: the streams that waited for it begin.
    pub(super) fn set_out_with_token(&mut self) {
        for at in 0..self.followers.len() {
            if self.followers[at].awaits_token {
                self.set_out(at);
            }
        }
    }

    /// The streams to ask a token for: those that the client follows, or any, because no issuer gives a token for none.
    pub(super) fn wanted_streams(&self) -> Vec<StreamId> {
        let ids = |wanted: fn(&Follower) -> bool| -> Vec<StreamId> {
            let wanted = self.followers.iter().filter(|follower| wanted(follower));
            wanted.map(|follower| follower.id.clone()).collect()
        };
        let followed = ids(Follower::is_followed);
        if !followed.is_empty() {
            return followed;
        }
        let mut any = ids(|_| true);
        any.truncate(limit::TOKEN_STREAMS);
        any
    }

    /// The most streams that a session may have: as many as a token holds, or as it began with.
    pub(super) fn most_streams(renewable: bool, began_with: usize) -> usize {
        let most = if renewable {
            limit::TOKEN_STREAMS
        } else {
            limit::SESSION_GRANTS
        };
        most.max(began_with)
    }
}
