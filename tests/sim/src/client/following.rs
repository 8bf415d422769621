//! An application that follows a stream no longer, and follows it again.

use std::collections::BTreeMap;

use spacetime_sync_client::FollowError;
use spacetime_sync_client::session::{CallId, Event};

use super::ClientStep;
use crate::agenda::{MILLISECOND, Micros};
use crate::world::{World, say};

/// What an application wishes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Follow,
    /// To follow it no longer. It has yet to hear that nothing more is applied.
    Unfollow,
    /// It has heard so: from here on nothing may be applied.
    Unfollowed,
}

/// The wishes that were not answered, and of which stream they are.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    asked: BTreeMap<CallId, (usize, Wish)>,
    made: u64,
    /// Whether the client is ending, and fulfils no wish any more.
    is_ending: bool,
}

impl Wishes {
    fn ask(&mut self, stream: usize, wish: Wish) -> CallId {
        self.made += 1;
        let call = CallId(self.made);
        self.asked.insert(call, (stream, wish));
        call
    }

    /// Whether the client has refused a wish because it is ending.
    pub(super) fn are_refused(&self) -> bool {
        self.is_ending
    }

    /// Whether the session may not yet do, or does no more, what the application wishes of the stream.
    pub(super) fn are_open(&self, stream: usize) -> bool {
        self.is_ending || self.asked.values().any(|(asked, _)| *asked == stream)
    }
}

impl World {
    pub(super) fn unfollow(&mut self, at: usize, stream: usize, follow_after: Micros) {
        let (client, stream_id) = (&mut self.clients[at], self.logs[stream].id.clone());
        client.followed[stream].wish = Wish::Unfollow;
        let call = client.wishes.ask(stream, Wish::Unfollow);
        say!(self, "client {at}: unfollows stream {stream}");
        self.client_in(at, follow_after, ClientStep::Follow { stream });
        self.tell_client(at, Event::Unfollow { call, stream_id });
    }

    pub(super) fn follow(&mut self, at: usize, stream: usize) {
        let (client, stream_id) = (&mut self.clients[at], self.logs[stream].id.clone());
        let followed = &mut client.followed[stream];
        // What has stopped is read from the store again, and may stop again.
        (followed.wish, followed.stopped) = (Wish::Follow, false);
        let call = client.wishes.ask(stream, Wish::Follow);
        let bounds = self.setup.bounds.clone();
        say!(self, "client {at}: follows stream {stream}");
        let follow = Event::Follow {
            call,
            stream_id,
            bounds,
        };
        self.tell_client(at, follow);
    }

    pub(super) fn wish_answered(&mut self, at: usize, call: CallId, result: Result<(), FollowError>) {
        let client = &mut self.clients[at];
        let Some((stream, wish)) = client.wishes.asked.remove(&call) else {
            return self.violate("I13", || {
                format!("client {at} answers a wish that nobody has: {call:?}")
            });
        };
        match result {
            Ok(()) => {
                let followed = &mut client.followed[stream];
                if (wish, followed.wish) == (Wish::Unfollow, Wish::Unfollow) {
                    followed.wish = Wish::Unfollowed;
                    self.coverage.seen("client: stream unfollowed");
                }
            }
            // What is still under way for the stream ends soon.
            Err(FollowError::Busy) if wish == Wish::Follow => {
                self.coverage.seen("client: place of a stream still in use");
                client.followed[stream].wish = Wish::Unfollow;
                self.client_in(at, 100 * MILLISECOND, ClientStep::Follow { stream });
            }
            Err(FollowError::Stopped) => client.wishes.is_ending = true,
            Err(error) => self.violate("I13", || {
                format!("client {at}, stream {stream}: {wish:?} is refused: {error}")
            }),
        }
    }
}
