//! A pass over everything that is held, which marks it for an authority that may lack any of it. Each read of the journal
//! goes on with it for a bounded number of looks, and only while few marks wait. So no transaction grows with what is held, and no
//! call is refused because much is held.
//!
//! It goes by the times at which things are due. A thing that does not change keeps its time, so the pass meets it; a thing that
//! changes is marked by its change.

use spacetime_sync_proto::journal::PAGE_ENTRIES;
use spacetime_sync_proto::limit;

use super::Document;
use super::marks::{JournalRows, NOT_YET, State, place};
use crate::{assignment, capability};

/// Of how many steps a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    /// How much time one look covers, in microseconds.
    pub look_us: i64,
    /// Most looks in one step.
    pub looks: usize,
    /// Of so few things all are looked at in one look.
    pub few: u64,
    /// A step looks at nothing more once so many marks wait.
    pub most: u64,
    /// Nothing is due later than so long after it was written, in microseconds.
    pub horizon_us: i64,
}

impl Steps {
    /// The module's. Users choose in seconds when things are due, so unless very many of them mean to, no more is due within a look
    /// than a few seconds of calls have made. While nothing is due, a look takes some microseconds.
    pub const SHIPPED: Self = Self {
        look_us: 4_000_000,
        looks: 512,
        few: 1_024,
        most: PAGE_ENTRIES as u64,
        horizon_us: HORIZON_US,
    };
}

/// Nothing that the module writes is due later than so long after it was written.
const HORIZON_US: i64 = {
    let capability = limit::CAPABILITY_SECONDS + capability::REMEMBERED.as_secs();
    let assignment = limit::ASSIGNMENT_SECONDS + assignment::REMEMBERED.as_secs();
    let seconds = if capability > assignment {
        capability
    } else {
        assignment
    };
    (seconds * 1_000_000).cast_signed()
};

/// A kind of things that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Assignments.
    Assignment,
    /// Assignments that are held no longer, and whose names are not free yet.
    Forgotten,
    /// Capabilities.
    Capability,
}

impl Kind {
    /// All kinds, in the order in which a pass visits them.
    pub const ALL: [Self; 3] = [Self::Assignment, Self::Forgotten, Self::Capability];

    /// The kind of a thing.
    pub fn of(thing: &Document) -> Self {
        match thing {
            Document::Assignment(_) => Self::Assignment,
            Document::Forgotten(_) => Self::Forgotten,
            Document::Capability(_) => Self::Capability,
        }
    }
}

impl Document {
    /// When the thing is due: when it expires, or may be forgotten.
    pub fn due_us(&self) -> i64 {
        match self {
            Self::Assignment(assignment) => assignment.due_at,
            Self::Forgotten(forgotten) => forgotten.until,
            Self::Capability(capability) => capability.until,
        }
    }
}

/// How far a pass has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// How many of [`Kind::ALL`] are done.
    pub kinds: u8,
    /// The next look begins here.
    pub from_us: i64,
    /// When the pass began.
    pub begun_us: i64,
    /// Whether the authority may forget, after it, what it keeps from another history.
    pub is_for_another_history: bool,
}

impl Pass {
    /// A pass that begins.
    pub fn new(now_us: i64, is_for_another_history: bool) -> Self {
        Self {
            kinds: 0,
            from_us: i64::MIN,
            begun_us: now_us,
            is_for_another_history,
        }
    }

    fn kind(&self) -> Option<Kind> {
        Kind::ALL.get(usize::from(self.kinds)).copied()
    }

    /// Up to when the next look goes, where so many things of its kind are held.
    fn look_ends(&self, held: u64, steps: &Steps) -> i64 {
        if held <= steps.few || self.from_us > self.begun_us.saturating_add(steps.horizon_us) {
            i64::MAX
        } else if self.from_us <= self.begun_us {
            // The sweep soon takes what is due by then, or has taken it.
            self.begun_us
        } else {
            self.from_us.saturating_add(steps.look_us - 1)
        }
    }

    fn after(self, look_ended: i64) -> Self {
        match look_ended.checked_add(1) {
            Some(from_us) => Self { from_us, ..self },
            None => Self {
                kinds: self.kinds + 1,
                from_us: i64::MIN,
                ..self
            },
        }
    }
}

/// Goes on with the pass that is under way, if there is one, and returns how many things it may still have to mark.
pub(super) fn go_on(rows: &mut impl JournalRows, state: &mut State, steps: &Steps, now_us: i64) -> u64 {
    let Some(mut pass) = rows.pass() else { return 0 };
    let mut looks = 0;
    while let Some(kind) = pass.kind()
        && rows.marks() < steps.most
        && looks < steps.looks
    {
        let to = pass.look_ends(rows.held(kind), steps);
        for key in rows.due(kind, pass.from_us..=to) {
            let key = key.to_text();
            // What has a mark already is read without another one.
            if rows.mark_of(&key).is_none() {
                place(rows, state, key, now_us);
            }
        }
        pass = pass.after(to);
        looks += 1;
    }
    let is_done = pass.kind().is_none();
    if is_done && pass.is_for_another_history {
        debug_assert_eq!(state.whole_at, NOT_YET);
        state.whole_at = state.next_mark - 1;
    }
    rows.set_pass((!is_done).then_some(pass));
    rows.set_state(state.clone());
    let open = Kind::ALL.iter().skip(usize::from(pass.kinds));
    open.map(|kind| rows.held(*kind)).sum()
}

#[cfg(test)]
mod tests;
