//! The rows of assignments: who sees them, what a change writes, what a sweep does when they are due, and how the journal has
//! them.

use std::collections::BTreeSet;
use std::time::Duration;

use spacetime_sync_proto::{AssignmentSide, limit};
use spacetime_sync_rules::assignment::{self, Held, Next, Provider, State};
use spacetime_sync_rules::journal::{
    self, Document, Forgotten, HeldName, Key, assignment_comes_back, assignment_is_over,
};
use spacetimedb::{ReducerContext, Table, Timestamp};

use crate::journal::{check_closed, mark, now_us};
use crate::log_access::{digest_from_column, digest_to_column, trust_row};
use crate::refuse::{Refused, refused};
use crate::tables::{
    AssignmentParty, AssignmentUpdate, ComputeAssignment, ComputeAssignmentChange, ForgottenAssignment, SyncTrust,
    assignment_party, assignment_update, compute_assignment, compute_assignment_change, forgotten_assignment,
};

/// About how many rows of assignments one sweep reads, writes and deletes, so that a transaction stays short. The next sweep soon takes
/// the rest.
const SWEPT_ROWS: u64 = 5_000;

/// Most assignments that one sweep looks at.
const AT_ONCE: usize = 1_250;

/// An assignment. `row` is any of its rows: they differ in the audience alone.
pub struct Assignment {
    pub party: AssignmentParty,
    pub row: ComputeAssignment,
}

impl Assignment {
    pub fn find(ctx: &ReducerContext, request_id: &str) -> Option<Self> {
        let party = ctx.db.assignment_party().request_id().find(request_id.to_owned())?;
        let row = ctx.db.compute_assignment().request_id().filter(request_id).next()?;
        Some(Self { party, row })
    }

    /// What the rules decide by.
    pub fn held(&self) -> Result<Held, Refused> {
        let row = &self.row;
        Ok(Held {
            state: assignment::state(&row.status).map_err(refused)?,
            version: row.version,
            provider_id: (!row.provider_id.is_empty()).then(|| row.provider_id.clone()),
            to_all: row.to_all,
            deadline_us: row.deadline_at.to_micros_since_unix_epoch(),
        })
    }

    /// Makes a change. `provider` is the user of the provider whom the change names. `update_id` is empty if nobody called.
    pub fn change(
        mut self,
        ctx: &ReducerContext,
        next: Next,
        provider: String,
        update_id: &str,
    ) -> Result<(), Refused> {
        match next.provider {
            Provider::Same => {}
            Provider::Nobody => {
                self.row.provider_id.clear();
                self.party.provider.clear();
            }
            Provider::Chosen(provider_id) | Provider::Own(provider_id) => {
                provider_id.as_str().clone_into(&mut self.row.provider_id);
                self.party.provider = provider;
            }
        }
        next.state.as_str().clone_into(&mut self.row.status);
        self.row.version = next.version;
        self.row.to_all = next.to_all;
        self.row.changed_at = ctx.timestamp;
        if let Some(assignment) = next.assignment {
            self.row.assignment = assignment;
        }
        if let Some(report) = next.report {
            self.row.report = report;
        }
        if assignment::is_final(next.state) {
            self.party.has_ended = true;
            self.party.due_at = ctx.timestamp + assignment::REMEMBERED;
        }
        self.place(ctx, next.by.side(), update_id)?;
        ctx.db.assignment_party().request_id().update(self.party);
        Ok(())
    }

    /// Shows the assignment as it is to whoever may see it, and nobody else, and adds to its history what has just been done.
    pub fn place(&self, ctx: &ReducerContext, by: AssignmentSide, update_id: &str) -> Result<(), Refused> {
        let audiences = self.audiences(&trust_row(ctx)?)?;
        let (rows, changes) = (ctx.db.compute_assignment(), ctx.db.compute_assignment_change());
        let request_id = self.row.request_id.as_str();
        mark(ctx, &Key::Assignment(request_id.to_owned()));
        let held: Vec<ComputeAssignment> = rows.request_id().filter(request_id).collect();
        // The history is the same for all audiences. Whoever sees the assignment for the first time sees it, too.
        let is_new = |audience_key: &u64| !held.iter().any(|row| row.audience_key == *audience_key);
        let history: Vec<ComputeAssignmentChange> = match held.first() {
            Some(row) if audiences.iter().any(is_new) => {
                changes.by_version().filter((request_id, row.audience_key)).collect()
            }
            _ => Vec::new(),
        };
        for row in &held {
            if !audiences.contains(&row.audience_key) {
                rows.assignment_id().delete(row.assignment_id);
                changes.by_version().delete((request_id, row.audience_key));
            }
        }
        let version = self.row.version;
        for audience_key in audiences {
            let own = held.iter().find(|row| row.audience_key == audience_key);
            let row = ComputeAssignment {
                assignment_id: own.map_or(0, |row| row.assignment_id),
                audience_key,
                ..self.row.clone()
            };
            if own.is_some() {
                rows.assignment_id().update(row);
            } else {
                rows.insert(row);
                for change in &history {
                    changes.insert(ComputeAssignmentChange {
                        change_id: 0,
                        audience_key,
                        ..change.clone()
                    });
                }
            }
            changes.insert(ComputeAssignmentChange {
                change_id: 0,
                audience_key,
                request_id: request_id.to_owned(),
                version,
                status: self.row.status.clone(),
                provider_id: self.row.provider_id.clone(),
                changed_by: by.as_str().to_owned(),
                update_id: update_id.to_owned(),
                changed_at: ctx.timestamp,
            });
            if let Some(oldest) = version.checked_sub(limit::ASSIGNMENT_CHANGES) {
                changes.by_version().delete((request_id, audience_key, ..=oldest));
            }
        }
        Ok(())
    }

    /// Who sees the assignment.
    fn audiences(&self, trust: &SyncTrust) -> Result<BTreeSet<u64>, Refused> {
        let mut audiences = BTreeSet::from([trust.user_key(&self.party.requester)?]);
        if !self.party.provider.is_empty() {
            audiences.insert(trust.user_key(&self.party.provider)?);
        }
        if self.row.to_all && self.row.status == State::Open.as_str() {
            audiences.insert(trust.providers_key()?);
        }
        Ok(audiences)
    }
}

/// How many assignments that have not ended are with a user's providers, or offered to them.
pub fn unfinished_with(ctx: &ReducerContext, user_id: &str) -> usize {
    ctx.db.assignment_party().by_provider().filter((user_id, false)).count()
}

/// Forgets an assignment, and returns how many rows it had.
pub fn forget(ctx: &ReducerContext, request_id: &str) -> u64 {
    mark(ctx, &Key::Assignment(request_id.to_owned()));
    remove(ctx, request_id)
}

fn remove(ctx: &ReducerContext, request_id: &str) -> u64 {
    ctx.db.assignment_party().request_id().delete(request_id.to_owned());
    ctx.db.compute_assignment().request_id().delete(request_id)
        + ctx.db.compute_assignment_change().by_version().delete(request_id)
        + ctx.db.assignment_update().by_version().delete(request_id)
}

/// Forgets an assignment that has ended, but not that it was opened.
pub fn forget_early(ctx: &ReducerContext, party: AssignmentParty) {
    forget_all_but_its_name(ctx, party, Timestamp::from_micros_since_unix_epoch(0));
}

/// The same, unless its name is free by `free_by`. Returns how many rows were read, written and deleted.
fn forget_all_but_its_name(ctx: &ReducerContext, party: AssignmentParty, free_by: Timestamp) -> u64 {
    let row = ctx
        .db
        .compute_assignment()
        .request_id()
        .filter(party.request_id.as_str())
        .next();
    let at = |time: fn(&ComputeAssignment) -> Timestamp| row.as_ref().map(time);
    let deadline_at = at(|row| row.deadline_at).unwrap_or(party.due_at);
    let opened_at = at(|row| row.opened_at).unwrap_or(Timestamp::UNIX_EPOCH);
    let rows = forget(ctx, &party.request_id);
    if party.due_at.max(deadline_at) <= free_by {
        return rows;
    }
    let forgotten = ctx.db.forgotten_assignment();
    // A tick more than one that ends now is remembered. There are about as many as may linger.
    let long = ctx.timestamp + assignment::REMEMBERED + Duration::from_micros(1);
    let lingering = forgotten
        .by_requester()
        .filter((party.requester.as_str(), long..))
        .count();
    let [due_us, deadline_us] = [party.due_at, deadline_at].map(Timestamp::to_micros_since_unix_epoch);
    let until = assignment::known_until(due_us, deadline_us, lingering);
    let until = Timestamp::from_micros_since_unix_epoch(until);
    // What was only read counts, too: it takes time.
    let rows = rows + lingering as u64;
    if until <= free_by {
        return rows;
    }
    let before = forgotten.by_requester().filter(party.requester.as_str());
    let before: Vec<ForgottenAssignment> = before.collect();
    if before.len() >= limit::ASSIGNMENTS_FORGOTTEN + limit::ASSIGNMENTS_LINGERING
        && let Some(first) = before.first()
    {
        mark(ctx, &Key::Assignment(first.request_id.clone()));
        forgotten.request_id().delete(first.request_id.clone());
    }
    forgotten.insert(ForgottenAssignment {
        request_id: party.request_id,
        requester: party.requester,
        opened_as: party.opened_as,
        until,
        opened_at,
    });
    rows + 1 + before.len() as u64
}

/// Expires the assignments whose deadline has come, and forgets those that ended long ago.
pub fn sweep(ctx: &ReducerContext) {
    let forgotten = ctx.db.forgotten_assignment();
    let past = forgotten.until().filter(..=ctx.timestamp).take(AT_ONCE);
    for request_id in past.map(|row| row.request_id).collect::<Vec<_>>() {
        mark(ctx, &Key::Assignment(request_id.clone()));
        forgotten.request_id().delete(request_id);
    }
    let parties = ctx.db.assignment_party();
    let mut rows = 0;
    // The host reads all that are due before it gives the first, so they are asked for once.
    let due = parties.due_at().filter(..=ctx.timestamp).take(AT_ONCE);
    for due in due.collect::<Vec<AssignmentParty>>() {
        if rows >= SWEPT_ROWS {
            return;
        }
        rows += 1;
        if due.has_ended {
            rows += forget_all_but_its_name(ctx, due, ctx.timestamp);
        } else if expire(ctx, &due.request_id).is_none() {
            rows += forget(ctx, &due.request_id);
        } else {
            // An assignment and a change are written for each of its two audiences.
            rows += 4;
        }
    }
}

/// Expires an assignment. `None` if its rows cannot be read, which no call of the module brings about. The sweep then forgets
/// the assignment instead of failing, because the same transaction ends sessions.
fn expire(ctx: &ReducerContext, request_id: &str) -> Option<()> {
    let assignment = Assignment::find(ctx, request_id)?;
    let next = assignment::expire(&assignment.held().ok()?)?;
    assignment.change(ctx, next, String::new(), "").ok()
}

/// What is held under an assignment's name, as the journal has it.
pub fn document(ctx: &ReducerContext, request_id: &str) -> Option<Document> {
    let Some(Assignment { party, row }) = Assignment::find(ctx, request_id) else {
        let forgotten = ctx.db.forgotten_assignment().request_id();
        return forgotten.find(request_id.to_owned()).map(|row| {
            Document::Forgotten(Forgotten {
                requester: row.requester,
                opened_as: digest_from_column(row.opened_as),
                until: row.until.to_micros_since_unix_epoch(),
                opened_at: row.opened_at.to_micros_since_unix_epoch(),
            })
        });
    };
    let changes = ctx.db.compute_assignment_change().by_version();
    let changes = changes
        .filter((request_id, row.audience_key))
        .map(|change| journal::Change {
            version: change.version,
            status: change.status,
            provider_id: change.provider_id,
            changed_by: change.changed_by,
            update_id: change.update_id,
            changed_at: change.changed_at.to_micros_since_unix_epoch(),
        });
    let updates = ctx.db.assignment_update().by_version();
    let updates = updates.filter(request_id).map(|update| journal::Update {
        version: update.version,
        update_id: update.update_id,
        user_id: update.user_id,
        content: digest_from_column(update.content),
    });
    Some(Document::Assignment(journal::Assignment {
        requester: party.requester,
        provider: party.provider,
        opened_as: digest_from_column(party.opened_as),
        has_ended: party.has_ended,
        due_at: party.due_at.to_micros_since_unix_epoch(),
        version: row.version,
        status: row.status,
        provider_id: row.provider_id,
        to_all: row.to_all,
        assignment: row.assignment,
        report: row.report,
        opened_at: row.opened_at.to_micros_since_unix_epoch(),
        changed_at: row.changed_at.to_micros_since_unix_epoch(),
        deadline_at: row.deadline_at.to_micros_since_unix_epoch(),
        changes: changes.collect(),
        updates: updates.collect(),
    }))
}

/// Writes an assignment as the journal has it, if that is newer than what is held under its name.
pub fn bring_back(ctx: &ReducerContext, request_id: String, kept: Document) -> Result<(), Refused> {
    let forgotten = ctx.db.forgotten_assignment();
    let held = if let Some(held) = Assignment::find(ctx, &request_id) {
        HeldName::Assignment {
            opened_as: digest_from_column(held.party.opened_as),
            opened_at: held.row.opened_at.to_micros_since_unix_epoch(),
            version: held.row.version,
            changed_at: held.row.changed_at.to_micros_since_unix_epoch(),
        }
    } else if let Some(held) = forgotten.request_id().find(request_id.clone()) {
        HeldName::Forgotten {
            opened_as: digest_from_column(held.opened_as),
            opened_at: held.opened_at.to_micros_since_unix_epoch(),
        }
    } else {
        HeldName::Nothing
    };
    let now_us = now_us(ctx);
    if assignment_is_over(held, &kept, now_us) {
        mark(ctx, &Key::Assignment(request_id));
        return Ok(());
    }
    if !assignment_comes_back(held, &kept, now_us) {
        return Ok(());
    }
    check_closed(ctx)?;
    remove(ctx, &request_id);
    forgotten.request_id().delete(request_id.clone());
    match kept {
        Document::Assignment(kept) => write(ctx, request_id, kept),
        Document::Forgotten(kept) => {
            forgotten.insert(ForgottenAssignment {
                request_id,
                requester: kept.requester,
                opened_as: digest_to_column(kept.opened_as),
                until: Timestamp::from_micros_since_unix_epoch(kept.until),
                opened_at: Timestamp::from_micros_since_unix_epoch(kept.opened_at),
            });
            Ok(())
        }
        Document::Capability(_) => Ok(()),
    }
}

/// Writes all rows of an assignment, of which none is there.
fn write(ctx: &ReducerContext, request_id: String, kept: journal::Assignment) -> Result<(), Refused> {
    let at = Timestamp::from_micros_since_unix_epoch;
    let assignment = Assignment {
        party: AssignmentParty {
            request_id: request_id.clone(),
            requester: kept.requester,
            provider: kept.provider,
            opened_as: digest_to_column(kept.opened_as),
            has_ended: kept.has_ended,
            due_at: at(kept.due_at),
        },
        row: ComputeAssignment {
            assignment_id: 0,
            audience_key: 0,
            request_id: request_id.clone(),
            version: kept.version,
            status: kept.status,
            provider_id: kept.provider_id,
            to_all: kept.to_all,
            assignment: kept.assignment,
            report: kept.report,
            opened_at: at(kept.opened_at),
            changed_at: at(kept.changed_at),
            deadline_at: at(kept.deadline_at),
        },
    };
    for audience_key in assignment.audiences(&trust_row(ctx)?)? {
        ctx.db.compute_assignment().insert(ComputeAssignment {
            audience_key,
            ..assignment.row.clone()
        });
        for change in &kept.changes {
            ctx.db.compute_assignment_change().insert(ComputeAssignmentChange {
                change_id: 0,
                audience_key,
                request_id: request_id.clone(),
                version: change.version,
                status: change.status.clone(),
                provider_id: change.provider_id.clone(),
                changed_by: change.changed_by.clone(),
                update_id: change.update_id.clone(),
                changed_at: at(change.changed_at),
            });
        }
    }
    for update in kept.updates {
        ctx.db.assignment_update().insert(AssignmentUpdate {
            update_key: 0,
            request_id: request_id.clone(),
            version: update.version,
            update_id: update.update_id,
            user_id: update.user_id,
            content: digest_to_column(update.content),
        });
    }
    ctx.db.assignment_party().insert(assignment.party);
    Ok(())
}
