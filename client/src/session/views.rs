//! What the application watches, and how fresh the session says that it is. What everybody sees alike the session subscribes to
//! here, on each connection that serves. What is shown to audiences comes through the ears.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::event::ConnectionId;
use super::{Command, Session};
use crate::signal::Purpose;
use crate::watched::{Freshness, Watchable};

/// Everything that is watched, on the connection that serves.
pub(super) type Views = BTreeMap<Watchable, View>;

#[derive(Debug)]
pub(super) struct View {
    watching: Watching,
    freshness: Freshness,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watching {
    /// The connection brings nothing. The session subscribes at this time, or at once.
    Nothing { ask_at: Option<Instant> },
    /// The session has subscribed, or the ears will, and not all rows are there.
    Subscribing,
    /// The connection brings every change.
    Live,
}

impl Session {
    /// The application wants to watch this. It never gives anything up.
    pub(super) fn watch(&mut self, watchables: BTreeSet<Watchable>) {
        for watchable in watchables {
            self.views.entry(watchable).or_insert(View {
                watching: watchable.not_watched(),
                freshness: Freshness::Unseen,
            });
        }
        self.subscribe_to_views();
        self.views_follow_ears();
    }

    /// Nothing that is watched changes any more, as far as the application can see.
    pub(super) fn views_are_stale(&mut self) {
        for (watchable, view) in &mut self.views {
            view.watching = watchable.not_watched();
            self.commands.extend(view.becomes_stale(*watchable, self.now));
        }
    }

    /// What is shown to audiences is live as long as all of them are heard.
    pub(super) fn views_follow_ears(&mut self) {
        let Some(on) = self.serving() else { return };
        for (watchable, view) in &mut self.views {
            let Some(purpose) = watchable.of_audiences() else {
                continue;
            };
            match (view.watching, self.ears.hear_all(purpose)) {
                (Watching::Live, true) | (Watching::Subscribing | Watching::Nothing { .. }, false) => {}
                (Watching::Live, false) => {
                    view.watching = Watching::Subscribing;
                    self.commands.extend(view.becomes_stale(*watchable, self.now));
                }
                (Watching::Subscribing | Watching::Nothing { .. }, true) => {
                    self.commands.push(view.becomes_live(*watchable, on));
                }
            }
        }
    }

    /// Subscribes to what is due.
    pub(super) fn subscribe_to_views(&mut self) {
        let Some(connection) = self.serving() else { return };
        for (watchable, view) in &mut self.views {
            if let Watching::Nothing { ask_at } = view.watching
                && ask_at.is_none_or(|at| at <= self.now)
            {
                view.watching = Watching::Subscribing;
                let watchable = *watchable;
                self.commands.push(Command::Watch { connection, watchable });
            }
        }
    }

    /// All rows that a subscription begins with are there.
    pub(super) fn view_began(&mut self, from: ConnectionId, watchable: Watchable) {
        if let Some(view) = self.view_of(from, watchable)
            && view.watching == Watching::Subscribing
        {
            let live = view.becomes_live(watchable, from);
            self.commands.push(live);
        }
    }

    /// Shows the rows that the connection has now, of whatever is live.
    pub(super) fn show_views(&mut self, from: ConnectionId, changed: impl IntoIterator<Item = Watchable>) {
        for watchable in changed {
            if let Some(view) = self.view_of(from, watchable)
                && view.watching == Watching::Live
            {
                let (rows_of, freshness) = (Some(from), view.freshness);
                self.commands.push(Command::Show {
                    watchable,
                    rows_of,
                    freshness,
                });
            }
        }
    }

    /// SpacetimeDB ended a subscription, or never began it.
    pub(super) fn view_failed(&mut self, from: ConnectionId, watchable: Watchable, detail: &str) {
        let (now, again) = (self.now, self.now + self.settings.limits.ask_again_after);
        let Some(view) = self.view_of(from, watchable) else {
            return;
        };
        tracing::warn!(?watchable, detail, "cannot watch");
        view.watching = Watching::Nothing { ask_at: Some(again) };
        let stale = view.becomes_stale(watchable, now);
        self.commands.extend(stale);
    }

    /// A view, if this is the connection that serves.
    fn view_of(&mut self, from: ConnectionId, watchable: Watchable) -> Option<&mut View> {
        if self.serving() == Some(from) {
            self.views.get_mut(&watchable)
        } else {
            None
        }
    }
}

impl Watchable {
    /// For what the ears hear its audiences, if it is shown to audiences.
    fn of_audiences(self) -> Option<Purpose> {
        match self {
            Self::Presences => Some(Purpose::Presences),
            Self::Assignments => Some(Purpose::Assignments),
            Self::ProvidersOnline | Self::Capabilities | Self::Outbox => None,
        }
    }

    fn not_watched(self) -> Watching {
        match self.of_audiences() {
            Some(_) => Watching::Subscribing,
            None => Watching::Nothing { ask_at: None },
        }
    }
}

impl View {
    /// The order to show what the connection has.
    fn becomes_live(&mut self, watchable: Watchable, from: ConnectionId) -> Command {
        (self.watching, self.freshness) = (Watching::Live, Freshness::Live);
        Command::Show {
            watchable,
            rows_of: Some(from),
            freshness: Freshness::Live,
        }
    }

    /// The order to show it, if it was live until now.
    fn becomes_stale(&mut self, watchable: Watchable, now: Instant) -> Option<Command> {
        match self.freshness {
            Freshness::Unseen | Freshness::Stale { .. } => None,
            Freshness::Live => {
                self.freshness = Freshness::Stale { since: now };
                Some(Command::Show {
                    watchable,
                    rows_of: None,
                    freshness: self.freshness,
                })
            }
        }
    }
}
