//! Draws the screen. What is drawn follows from the state and the time alone, and every text of others goes through [`clean`]
//! first.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant, SystemTime};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, HighlightSpacing, Paragraph, Row, Table, TableState};
use spacetime_sync_client::{
    Audience, CallError, CapabilityKey, Freshness, OfflineReason, Phase, PresenceKey, PresenceStatus, Says,
    SeenAssignment, SeenCapability, SeenPresence, StreamId, StreamPhase, StreamStatus, Subject,
};
use spacetime_sync_rules::assignment::is_final;

use crate::acts::possible;
use crate::clean::clean;
use crate::state::{Call, Now, Outcome, Pane, Passing, State, Told};

/// What the keys do everywhere.
const KEYS: &str = "q quit  tab pane  arrows move  n open  p publish";
/// What stands for something that is not there.
const NOTHING: &str = "-";
/// What the title of a closed pane begins with, as it goes on after it.
const LINE: &str = "─";
/// Marks the chosen row.
const CHOSEN: &str = "> ";
/// What is drawn around a pane takes one column or row on each side.
const BORDER: u16 = 1;

/// What the connection and the calls take: two lines and what is drawn around them.
const TWO_LINES: u16 = 2 + 2 * BORDER;
/// What a pane takes that is closed: its title.
const CLOSED: u16 = 1;
/// Which pane is closed first on a small screen, and when: when the panes that are open would have fewer lines than this. With four,
/// a pane shows one row.
const CLOSES: [(Pane, u16); 5] = [
    (Pane::Told, 5),
    (Pane::Capabilities, 5),
    (Pane::Nodes, 4),
    (Pane::Streams, 4),
    (Pane::Assignments, 4),
];

/// Draws everything.
pub(crate) fn screen(frame: &mut Frame<'_>, state: &State, now: Now) {
    let areas = Layout::vertical([
        Constraint::Length(TWO_LINES),
        Constraint::Fill(1),
        Constraint::Length(TWO_LINES),
        Constraint::Length(1),
    ]);
    let [connection, panes, calls, keys] = areas.areas(frame.area());
    draw_connection(frame, connection, state, now);
    let areas = Layout::vertical(heights(panes.height, state.pane)).areas::<{ Pane::ALL.len() }>(panes);
    for (pane, area) in Pane::ALL.into_iter().zip(areas) {
        match pane {
            Pane::Nodes => draw_nodes(frame, area, state, now),
            Pane::Capabilities => draw_capabilities(frame, area, state, now),
            Pane::Assignments => draw_assignments(frame, area, state, now),
            Pane::Streams => draw_streams(frame, area, state, now),
            Pane::Told => draw_told(frame, area, state, now),
        }
    }
    draw_calls(frame, calls, state, now);
    let acts = state
        .chosen()
        .map(|(_, seen)| possible(seen.state))
        .into_iter()
        .flatten();
    let acts: String = acts.map(|act| format!("  {} {}", act.key, act.word)).collect();
    frame.render_widget(Line::raw(clean(&format!("{KEYS}{acts}"), keys.width.into())), keys);
}

/// How the panes share so many lines. The chosen one is never closed.
fn heights(lines: u16, chosen: Pane) -> [Constraint; Pane::ALL.len()] {
    let mut open = Pane::ALL.len() as u16;
    let mut closed = Vec::new();
    for (pane, least) in CLOSES {
        let room = lines.saturating_sub(CLOSED * closed.len() as u16);
        if room / open < least && pane != chosen {
            closed.push(pane);
            open -= 1;
        }
    }
    Pane::ALL.map(|pane| {
        if closed.contains(&pane) {
            Constraint::Length(CLOSED)
        } else {
            Constraint::Fill(1)
        }
    })
}

fn draw_connection(frame: &mut Frame<'_>, area: Rect, state: &State, now: Now) {
    let token = state.status.token.as_ref();
    let renewed = token.map_or("no token".to_owned(), |token| {
        let failed = match token.failures {
            0 => String::new(),
            failures => format!(" ({failures} attempts failed)"),
        };
        let due = token.refresh_at.saturating_duration_since(now.instant);
        format!("token renewed in {}{failed}", span(due))
    });
    let session = token.and_then(|token| token.session_id.as_deref()).unwrap_or(NOTHING);
    let reconnects = state.status.counters.reconnects;
    let (says, colour) = phase(&state.status.phase);
    let says = format!("{says}; session {session}, {renewed}, reconnects {reconnects}");
    let why = match (&state.status.phase, &state.last_disconnect) {
        (Phase::Stopped { reason }, _) => reason.to_string(),
        (_, None) => "last disconnect: none".to_owned(),
        (_, Some((why, at))) => format!("last disconnect {} ago: {why}", since(*at, now)),
    };
    let columns = usize::from(area.width.saturating_sub(2 * BORDER));
    let says = clean(&says, columns);
    let lines = vec![
        Line::styled(says, Style::new().fg(colour).add_modifier(Modifier::BOLD)),
        Line::raw(clean(&why, columns)),
    ];
    let title = Line::raw(clean(&format!(" spacetime-sync: {} ", state.own.database), columns));
    let providers = match state.providers_online.freshness {
        Freshness::Unseen => " providers online: ".to_owned(),
        Freshness::Live | Freshness::Stale { .. } => format!(" providers online: {}, ", state.providers_online.rows),
    };
    let (fresh, colour) = freshness(state.providers_online.freshness, now);
    let providers = clean(&format!("{providers}{fresh} "), columns.saturating_sub(title.width()));
    let providers = Line::styled(providers, Style::new().fg(colour)).right_aligned();
    let block = Block::bordered().title(title).title(providers);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// How fresh something is, and its colour.
fn freshness(freshness: Freshness, now: Now) -> (String, Color) {
    match freshness {
        Freshness::Unseen => ("not seen yet".to_owned(), Color::Yellow),
        Freshness::Live => ("live".to_owned(), Color::Green),
        Freshness::Stale { since: at } => (format!("STALE for {}", since(at, now)), Color::Yellow),
    }
}

/// What the client does, and its colour.
fn phase(phase: &Phase) -> (String, Color) {
    match phase {
        Phase::Idle => (
            "idle: no connection, or no stream may be read".to_owned(),
            Color::Yellow,
        ),
        Phase::Connecting { attempt } => (format!("connecting: attempt {attempt}"), Color::Yellow),
        Phase::CatchingUp { applied, target } => (format!("catching up: {applied} of {target} applied"), Color::Cyan),
        Phase::Live => ("live".to_owned(), Color::Green),
        Phase::Backoff { attempt, retry_in, .. } => {
            let says = format!(
                "reconnecting: attempt {attempt} failed, next within {}",
                span(*retry_in)
            );
            (says, Color::Yellow)
        }
        Phase::Stopped { reason } => (format!("stopped: {}", reason.code()), Color::Red),
    }
}

fn draw_nodes(frame: &mut Frame<'_>, area: Rect, state: &State, now: Now) {
    let columns = [
        ("session", Constraint::Fill(1)),
        ("node", Constraint::Fill(1)),
        ("status", Constraint::Length(7)),
        ("since", Constraint::Length(5)),
        ("heard", Constraint::Length(5)),
        ("region", Constraint::Length(8)),
        ("surface", Constraint::Length(8)),
        ("key", Constraint::Length(9)),
    ];
    let own = state
        .status
        .token
        .as_ref()
        .and_then(|token| token.session_id.as_deref());
    let row = |(key, seen): (&PresenceKey, &SeenPresence)| {
        let is_this_one = own == Some(key.session_id.as_str()) && key.node_id == state.own.node_id;
        [
            if is_this_one {
                "this one".to_owned()
            } else {
                key.session_id.clone()
            },
            key.node_id.clone(),
            presence(seen.status, seen.reason).to_owned(),
            age(seen.started_at, now),
            age(seen.last_seen, now),
            seen.region.clone(),
            seen.surface.clone(),
            seen.nostr_key.map_or(NOTHING.to_owned(), |key| key.to_string()),
        ]
    };
    let rows = state.presences.rows.iter().map(row).collect();
    let look = Look {
        title: "Who is here",
        freshness: state.presences.freshness,
        is_chosen: state.pane == Pane::Nodes,
        row: Some(state.node),
        newest: None,
    };
    look.draw(frame, area, columns, rows, now);
}

/// How a node is, in a word.
fn presence(status: PresenceStatus, reason: Option<OfflineReason>) -> &'static str {
    match (status, reason) {
        (PresenceStatus::Offline, Some(OfflineReason::Explicit)) => "left",
        (PresenceStatus::Offline, Some(OfflineReason::TtlExpired)) => "silent",
        (status, _) => status.as_str(),
    }
}

fn draw_capabilities(frame: &mut Frame<'_>, area: Rect, state: &State, now: Now) {
    let columns = [
        ("provider", Constraint::Fill(1)),
        ("capability", Constraint::Fill(1)),
        ("version", Constraint::Length(13)),
        ("price", Constraint::Length(12)),
        ("region", Constraint::Length(8)),
        ("ends", Constraint::Length(8)),
    ];
    let row = |(key, seen): (&CapabilityKey, &SeenCapability)| {
        [
            key.provider_id.clone(),
            key.capability.clone(),
            seen.version.to_string(),
            format!("{} sats", seen.price_hint_sats),
            seen.region.clone(),
            left(seen.ends_at, now),
        ]
    };
    let rows = state.capabilities.rows.iter().map(row).collect();
    let look = Look {
        title: "Who can do what",
        freshness: state.capabilities.freshness,
        is_chosen: state.pane == Pane::Capabilities,
        row: Some(state.capability),
        newest: None,
    };
    look.draw(frame, area, columns, rows, now);
}

fn draw_assignments(frame: &mut Frame<'_>, area: Rect, state: &State, now: Now) {
    let columns = [
        ("assignment", Constraint::Fill(1)),
        ("state", Constraint::Length(9)),
        ("version", Constraint::Length(7)),
        ("holder", Constraint::Length(16)),
        ("deadline", Constraint::Length(8)),
        ("changed", Constraint::Length(15)),
    ];
    let row = |(name, seen): (&str, &SeenAssignment)| {
        let by = seen.changes.last().map(|change| format!("by {} ", change.changed_by));
        [
            name.to_owned(),
            seen.state.to_string(),
            seen.version.to_string(),
            seen.provider_id.clone().unwrap_or(NOTHING.to_owned()),
            deadline(seen, now),
            format!("{}{}", by.unwrap_or_default(), age(seen.changed_at, now)),
        ]
    };
    let rows = state.in_order().into_iter().map(row).collect();
    let look = Look {
        title: "Assignments",
        freshness: state.assignments.freshness,
        is_chosen: state.pane == Pane::Assignments,
        row: state.chosen_row(),
        newest: None,
    };
    look.draw(frame, area, columns, rows, now);
}

/// How long an assignment may still take.
fn deadline(seen: &SeenAssignment, now: Now) -> String {
    if is_final(seen.state) {
        return NOTHING.to_owned();
    }
    left(seen.deadline_at, now)
}

/// How long until then, by SpacetimeDB's clock and this machine's.
fn left(until: SystemTime, now: Now) -> String {
    match until.duration_since(now.clock) {
        Ok(left) => format!("in {}", span(left)),
        Err(_) => "passed".to_owned(),
    }
}

fn draw_streams(frame: &mut Frame<'_>, area: Rect, state: &State, now: Now) {
    let columns = [
        ("stream", Constraint::Fill(2)),
        ("state", Constraint::Length(11)),
        ("applied", Constraint::Length(9)),
        ("head", Constraint::Length(9)),
        ("behind", Constraint::Length(7)),
        ("why", Constraint::Fill(1)),
    ];
    let row = |(name, status): (&StreamId, &StreamStatus)| {
        let head = status.head.map(|head| head.get());
        let applied = status.applied.seq.get();
        let number = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
        [
            name.to_string(),
            status.phase.code().replace('_', " "),
            applied.to_string(),
            number(head),
            number(head.map(|head| head.saturating_sub(applied))),
            why(&status.phase),
        ]
    };
    let rows = state.status.streams.iter().map(row).collect();
    let look = Look {
        title: "Streams",
        freshness: state.streams_are,
        is_chosen: state.pane == Pane::Streams,
        row: Some(state.stream),
        newest: None,
    };
    look.draw(frame, area, columns, rows, now);
}

/// Why a stream does not go on, if it does not.
fn why(phase: &StreamPhase) -> String {
    match phase {
        StreamPhase::Waiting | StreamPhase::CatchingUp | StreamPhase::Live => String::new(),
        StreamPhase::Unanswered => "a read failed".to_owned(),
        StreamPhase::Forbidden { code } => format!("refused: {code:?}"),
        StreamPhase::Recovering { rung, attempt } => format!("{}, attempt {attempt}", rung.code()),
        StreamPhase::Retrying { message } => message.clone(),
        StreamPhase::Stopped { reason } => reason.to_string(),
    }
}

fn draw_told(frame: &mut Frame<'_>, area: Rect, state: &State, now: Now) {
    let columns = [
        ("heard", Constraint::Length(5)),
        ("who", Constraint::Fill(2)),
        ("about", Constraint::Fill(2)),
        ("what", Constraint::Fill(3)),
    ];
    let rows: Vec<_> = state.told.iter().map(|told| passing(told, now)).collect();
    let newest = rows
        .first()
        .map(|[at, who, about, what]| format!("{at} ago: {who}, {about}: {what}"));
    let look = Look {
        title: "Told in passing",
        freshness: state.listening,
        is_chosen: state.pane == Pane::Told,
        row: Some(state.told_row),
        newest,
    };
    look.draw(frame, area, columns, rows, now);
}

/// When something was heard, from whom, about what, and what it says.
fn passing(told: &Told, now: Now) -> [String; 4] {
    let node = |key: &PresenceKey| format!("{}/{}", key.session_id, key.node_id);
    let nobody = || NOTHING.to_owned();
    let [who, about, what] = match &told.what {
        Passing::Signal(signal) => [
            signal.from.as_ref().map_or("the other party".to_owned(), node),
            subject(&signal.subject),
            says(&signal.says),
        ],
        Passing::Presence(change) => [
            node(&change.key),
            "its node".to_owned(),
            presence(change.status, change.reason).to_owned(),
        ],
        Passing::Refused(audience, refusal) => [nobody(), readers(audience), format!("refused: {refusal}")],
        Passing::Missed(missed) => [nobody(), nobody(), format!("at least {missed} more came too fast")],
        Passing::Unheard(time) => [
            nobody(),
            nobody(),
            format!("not everything was heard for {}", span(*time)),
        ],
    };
    [since(told.at, now), who, about, what]
}

fn readers(audience: &Audience) -> String {
    match audience {
        Audience::OwnUser => "this user".to_owned(),
        Audience::Stream(stream) => format!("stream {stream}"),
        Audience::Providers => "providers".to_owned(),
    }
}

fn subject(subject: &Subject) -> String {
    match subject {
        Subject::User(name) if name.is_empty() => "this user".to_owned(),
        Subject::User(name) => format!("user's {name}"),
        Subject::Stream(stream) => format!("stream {stream}"),
        Subject::Assignment(name) => format!("assignment {name}"),
    }
}

fn says(says: &Says) -> String {
    let (what, note) = match says {
        Says::Progress { done, total: 0, note } => (format!("{done} steps done"), note),
        Says::Progress { done, total, note } => (format!("{done} of {total} steps done"), note),
        Says::Typing { note } => ("types".to_owned(), note),
        Says::Conflict { note } => ("conflict".to_owned(), note),
    };
    match note.as_str() {
        "" => what,
        note => format!("{what}: {note}"),
    }
}

/// How a pane with rows looks.
struct Look {
    title: &'static str,
    freshness: Freshness,
    is_chosen: bool,
    /// The row that is chosen.
    row: Option<usize>,
    /// What is shown beside the title if the pane is closed.
    newest: Option<String>,
}

impl Look {
    fn draw<const N: usize>(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        columns: [(&'static str, Constraint); N],
        rows: Vec<[String; N]>,
        now: Now,
    ) {
        let count = rows.len();
        let (fresh, colour) = freshness(self.freshness, now);
        let (left, room) = (CHOSEN.len() as u16, area.width.saturating_sub(2 * BORDER));
        let title = |before: &str, more: &str| {
            let title = format!(" {} ({count}): {fresh}{more} ", self.title);
            Line::styled(
                format!("{before}{}", clean(&title, room.into())),
                Style::new().fg(colour),
            )
        };
        if area.height <= CLOSED {
            let newest = self.newest.as_ref().map(|newest| format!("; {newest}"));
            let title = title(LINE, &newest.unwrap_or_default());
            return frame.render_widget(Block::new().borders(Borders::TOP).title(title), area);
        }
        let inner = Rect::new(0, 0, room.saturating_sub(left), 1);
        let layout = Layout::horizontal(columns.map(|(_, width)| width)).spacing(1);
        let widths: [u16; N] = layout.areas::<N>(inner).map(|column| column.width);
        let line = |cells: [String; N]| {
            let cells = cells.into_iter().zip(widths);
            Row::new(
                cells
                    .map(|(text, width)| clean(&text, width.into()))
                    .collect::<Vec<_>>(),
            )
        };
        let head = line(columns.map(|(name, _)| name.to_owned()));
        // What is stale is dim: whoever looks at the rows alone sees it, too.
        let body = match self.freshness {
            Freshness::Live => Style::new(),
            Freshness::Unseen | Freshness::Stale { .. } => Style::new().add_modifier(Modifier::DIM),
        };
        let border = if self.is_chosen {
            Style::new().fg(Color::Cyan)
        } else {
            Style::new()
        };
        let table = Table::new(rows.into_iter().map(line), widths.map(Constraint::Length))
            .column_spacing(1)
            .header(head.style(Style::new().add_modifier(Modifier::BOLD)))
            .style(body)
            .highlight_symbol(CHOSEN)
            .highlight_spacing(HighlightSpacing::Always)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::bordered().border_style(border).title(title("", "")));
        let chosen = self.row.filter(|_| self.is_chosen && count > 0);
        let mut at = TableState::new().with_selected(chosen.map(|row| row.min(count.saturating_sub(1))));
        frame.render_stateful_widget(table, area, &mut at);
    }
}

fn draw_calls(frame: &mut Frame<'_>, area: Rect, state: &State, now: Now) {
    let columns = usize::from(area.width.saturating_sub(2 * BORDER));
    let newest = state
        .calls
        .iter()
        .rev()
        .take(area.height.saturating_sub(2 * BORDER).into());
    let lines: Vec<Line<'_>> = newest
        .map(|call| Line::raw(clean(&outcome(call, now), columns)))
        .collect();
    let waiting = state.unanswered().count();
    let title = match waiting {
        0 => " Calls ".to_owned(),
        waiting => format!(" Calls ({waiting} without an answer) "),
    };
    let title = clean(&title, columns);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

/// A call, and what became of it.
fn outcome(call: &Call, now: Now) -> String {
    let what = &call.what;
    match &call.outcome {
        Outcome::Asked { at } => format!("{what}: no answer for {}", since(*at, now)),
        Outcome::Done => format!("{what}: done"),
        Outcome::Failed(CallError::Refused(refusal)) => format!("{what}: refused: {refusal}"),
        Outcome::Failed(error) => format!("{what}: {error}"),
        Outcome::Not(why) => format!("{what}: not asked for: {why}"),
    }
}

/// How long ago something was, by SpacetimeDB's clock and this machine's.
fn age(at: SystemTime, now: Now) -> String {
    span(now.clock.duration_since(at).unwrap_or_default())
}

/// How long ago something was on this machine.
fn since(at: Instant, now: Now) -> String {
    span(now.instant.saturating_duration_since(at))
}

/// A length of time in its largest fitting unit.
fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}
