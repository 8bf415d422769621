//! The module that the host's tests publish. It has one small thing for each feature of a host.
//!
//! It is unrelated to Spacetime Sync. Its cargo features make the versions that the tests of updates need.

use std::time::Duration;

use spacetimedb::{
    Filter, Identity, ProcedureContext, ReducerContext, ScheduleAt, Table, client_visibility_filter, procedure,
    reducer, table,
};

#[cfg(not(feature = "incompatible"))]
type Text = String;
#[cfg(feature = "incompatible")]
type Text = u32;

/// A note that anyone can read.
#[cfg(not(feature = "breaking"))]
#[table(accessor = note, public)]
pub struct Note {
    #[primary_key]
    pub id: u64,
    pub text: Text,
}

/// A note that anyone can read, and rate.
#[cfg(feature = "breaking")]
#[table(accessor = note, public)]
pub struct Note {
    #[primary_key]
    pub id: u64,
    pub text: Text,
    #[default(7)]
    pub stars: u32,
}

/// A note that only its owner can read.
#[table(accessor = diary, public)]
pub struct Diary {
    #[primary_key]
    pub id: u64,
    #[index(btree)]
    pub owner: Identity,
    pub text: String,
}

#[client_visibility_filter]
const OWN_DIARY: Filter = Filter::Sql("SELECT * FROM diary WHERE owner = :sender");

/// The claims of everyone who called `introduce`.
#[table(accessor = guest, public)]
pub struct Guest {
    #[primary_key]
    pub identity: Identity,
    pub claims: String,
}

/// How often the clock has ticked.
#[table(accessor = clock, public)]
pub struct Clock {
    #[primary_key]
    pub id: u64,
    pub ticks: u64,
}

#[table(accessor = clock_schedule, scheduled(tick))]
pub struct ClockSchedule {
    #[primary_key]
    #[auto_inc]
    pub scheduled_id: u64,
    pub scheduled_at: ScheduleAt,
}

#[cfg(feature = "compatible")]
#[table(accessor = label, public)]
pub struct Label {
    #[primary_key]
    pub name: String,
}

#[reducer(init)]
pub fn init(ctx: &ReducerContext) -> Result<(), String> {
    if cfg!(feature = "stillborn") {
        return Err("this module never starts".into());
    }
    ctx.db.clock().insert(Clock { id: 0, ticks: 0 });
    Ok(())
}

/// Refuses a caller whose name is `unwelcome`.
#[reducer(client_connected)]
pub fn client_connected(ctx: &ReducerContext) -> Result<(), String> {
    let unwelcome = ctx
        .sender_auth()
        .jwt()
        .is_some_and(|token| token.subject() == "unwelcome");
    if unwelcome {
        Err("you are not welcome here".into())
    } else {
        Ok(())
    }
}

#[reducer]
pub fn add_note(ctx: &ReducerContext, id: u64, text: Text) -> Result<(), String> {
    let note = Note {
        id,
        text,
        #[cfg(feature = "breaking")]
        stars: 7,
    };
    ctx.db.note().try_insert(note).map(drop).map_err(|e| e.to_string())
}

#[cfg(feature = "compatible")]
#[reducer]
pub fn add_label(ctx: &ReducerContext, name: String) {
    ctx.db.label().insert(Label { name });
}

#[reducer]
pub fn add_diary(ctx: &ReducerContext, id: u64, text: String) {
    ctx.db.diary().insert(Diary {
        id,
        owner: ctx.sender(),
        text,
    });
}

#[reducer]
pub fn introduce(ctx: &ReducerContext) -> Result<(), String> {
    let claims = ctx.sender_auth().jwt().ok_or("no token")?.raw_payload().to_owned();
    ctx.db.guest().insert(Guest {
        identity: ctx.sender(),
        claims,
    });
    Ok(())
}

#[reducer]
pub fn fail(_ctx: &ReducerContext, text: String) -> Result<(), String> {
    Err(text)
}

#[reducer]
pub fn say(_ctx: &ReducerContext, text: String) {
    log::info!("{text}");
}

#[reducer]
pub fn start_clock(ctx: &ReducerContext) {
    ctx.db.clock_schedule().insert(ClockSchedule {
        scheduled_id: 0,
        scheduled_at: Duration::from_millis(20).into(),
    });
}

#[reducer]
pub fn tick(ctx: &ReducerContext, _row: ClockSchedule) {
    if let Some(clock) = ctx.db.clock().id().find(0) {
        ctx.db.clock().id().update(Clock {
            ticks: clock.ticks + 1,
            ..clock
        });
    }
}

#[procedure]
pub fn double(_ctx: &mut ProcedureContext, number: u64) -> u64 {
    number * 2
}
