use rand::SeedableRng;
use rand::rngs::SmallRng;

use spacetime_sync_proto::Refusal;

use super::*;

/// The machine on a link, with both sides as a test says.
struct Bench {
    journal: Journal,
    ids: Ids,
    dice: SmallRng,
    now: Duration,
    link: LinkId,
    /// How much the machine has told people.
    notices: usize,
}

fn page(is_open: bool, settled: u64) -> JournalPage {
    JournalPage {
        is_open,
        epoch: "one".to_owned(),
        settled,
        whole_at: 0,
        newest: settled,
        waiting: 0,
        oldest: Duration::ZERO,
        to: settled,
        entries: Vec::new(),
    }
}

fn entry(mark: u64) -> JournalEntry {
    JournalEntry {
        mark,
        key: format!("assignment/r{mark}"),
        document: "{}".to_owned(),
    }
}

fn failure(class: RefusalClass) -> Failure {
    Failure {
        class,
        refusal: None,
        text: "no".to_owned(),
    }
}

impl Bench {
    fn new() -> Self {
        let mut ids = Ids::default();
        let link = ids.link();
        let mut bench = Self {
            journal: Journal::new(),
            ids,
            dice: SmallRng::seed_from_u64(1),
            now: Duration::from_secs(1),
            link,
            notices: 0,
        };
        bench.journal.link_up(bench.now, link);
        bench
    }

    /// Lets the machine do what is due.
    fn due(&mut self) -> Option<Command> {
        let mut out = Vec::new();
        self.now = self.now.max(self.journal.next_due()?);
        self.journal.turn(self.now, &mut self.ids, &mut out);
        assert_eq!(out.len(), 1, "{out:?}");
        out.pop()
    }

    /// Feeds an answer, and returns what the machine orders next, but for what it tells people.
    fn then(&mut self, feed: impl FnOnce(&mut Journal, &mut Turn<'_>)) -> Option<Command> {
        let mut out = Vec::new();
        let mut turn = Turn::new(self.now, &mut self.ids, &mut self.dice, &mut out);
        feed(&mut self.journal, &mut turn);
        let all = out.len();
        out.retain(|command| !matches!(command, Command::Tell(_)));
        self.notices += all - out.len();
        assert!(out.len() <= 1, "{out:?}");
        out.pop()
    }

    /// Reads the journal, which is like this.
    fn reads(&mut self, page: JournalPage) -> Option<Command> {
        let Some(Command::ReadJournal(_, request)) = self.due() else {
            panic!("it does not read the journal")
        };
        self.then(|journal, turn| assert_eq!(journal.read(request, Ok(page), turn), Verdict::Fine))
    }

    /// The authority answers a question how far it has come.
    fn begins(&mut self, asked: Option<Command>, newest: u64, epoch: &str) -> Option<Command> {
        let Some(Command::BeginJournal(request)) = asked else {
            panic!("it does not ask the authority: {asked:?}")
        };
        let begun = JournalTurn {
            turn: 7,
            newest,
            epoch: epoch.to_owned(),
        };
        self.then(|journal, turn| journal.begun(request, Ok(begun), turn))
    }

    fn tells(&mut self, request: RequestId) -> Option<Command> {
        self.then(|journal, turn| assert_eq!(journal.told(request, Ok(()), turn), Verdict::Fine))
    }

    fn refuses(&mut self, request: RequestId, failure: Failure) -> Option<Command> {
        self.then(|journal, turn| assert_eq!(journal.told(request, Err(failure), turn), Verdict::Fine))
    }

    fn fetches(&mut self, asked: Option<Command>, after: u64, entries: Vec<JournalEntry>) -> Option<Command> {
        let Some(Command::FetchJournal(request, from)) = asked else {
            panic!("it does not fetch: {asked:?}")
        };
        assert_eq!(from, after);
        self.then(|journal, turn| journal.fetched(request, Ok(entries), turn))
    }

    /// The module accepts changes, of an authority that was given this mark.
    fn opens(&mut self, asked: Option<Command>, expected: u64, epoch: &str) {
        let Some(Command::OpenJournal {
            request,
            newest,
            epoch: said,
            ..
        }) = asked
        else {
            panic!("it does not open the journal: {asked:?}")
        };
        assert_eq!((newest, said.as_str()), (expected, epoch));
        assert_eq!(self.tells(request), None);
    }

    /// A link on which both sides are in step.
    fn following() -> Self {
        let mut bench = Self::new();
        let asked = bench.reads(page(true, 5));
        assert_eq!(bench.begins(asked, 5, "one"), None);
        assert_eq!(bench.journal.backlog().closed_since, None);
        bench
    }
}

#[test]
fn a_fresh_database_gets_everything_back_before_it_accepts_changes() {
    let mut bench = Bench::new();
    let fresh = JournalPage {
        epoch: String::new(),
        ..page(false, 0)
    };
    let asked = bench.reads(fresh);
    let mut asked = bench.begins(asked, 9, "one");
    for (after, entries) in [(0, vec![entry(2), entry(4)]), (4, vec![entry(9)])] {
        let last = entries.last().unwrap().mark;
        let Some(Command::BringBack(link, request, brought)) = bench.fetches(asked, after, entries.clone()) else {
            panic!("it does not bring back")
        };
        assert_eq!((link, brought), (bench.link, entries));
        assert!(bench.journal.backlog().closed_since.is_some());
        asked = bench.tells(request);
        assert!(
            matches!(asked, Some(Command::FetchJournal(_, after)) if after == last),
            "{asked:?}"
        );
    }
    let asked = bench.fetches(asked, 9, Vec::new());
    bench.opens(asked, 9, "one");
    assert_eq!(bench.journal.backlog().closed_since, None);
    assert_eq!(bench.journal.backlog().brought_back, 3);
}

/// What the module says of a page that holds something that it lacks while the journal is open.
fn lacks() -> Failure {
    Failure {
        class: RefusalClass::Reject,
        refusal: Some(Refusal::new(RefusalCode::Lacking, "the journal is open")),
        text: "the journal is open".to_owned(),
    }
}

#[test]
fn a_database_that_was_restored_refuses_changes_until_it_has_what_the_authority_kept_since() {
    let mut bench = Bench::new();
    let asked = bench.reads(page(true, 5));
    let asked = bench.begins(asked, 9, "one");
    let Some(Command::BringBack(_, request, _)) = bench.fetches(asked, 5, vec![entry(8)]) else {
        panic!("it does not compare")
    };
    assert_eq!(bench.journal.backlog().closed_since, None);
    let Some(Command::CloseJournal(_, request, settled)) = bench.refuses(request, lacks()) else {
        panic!("it does not close the journal")
    };
    assert_eq!(settled, 5);
    let asked = bench.tells(request);
    assert!(bench.journal.backlog().closed_since.is_some());
    let Some(Command::BringBack(_, request, _)) = bench.fetches(asked, 5, vec![entry(8)]) else {
        panic!("it does not bring back")
    };
    let asked = bench.tells(request);
    let asked = bench.fetches(asked, 8, Vec::new());
    bench.opens(asked, 9, "one");
    assert_eq!(bench.journal.backlog().closed_since, None);
    assert_eq!(bench.journal.backlog().brought_back, 1);
}

#[test]
fn a_link_that_broke_before_a_page_was_settled_closes_nothing() {
    let mut bench = Bench::new();
    let asked = bench.reads(page(true, 5));
    let mut asked = bench.begins(asked, 9, "one");
    for (after, mark) in [(5, 7), (7, 9)] {
        let Some(Command::BringBack(_, request, _)) = bench.fetches(asked, after, vec![entry(mark)]) else {
            panic!("it does not compare")
        };
        asked = bench.tells(request);
    }
    let asked = bench.fetches(asked, 9, Vec::new());
    bench.opens(asked, 9, "one");
    assert_eq!(bench.journal.backlog().closed_since, None);
    assert_eq!(bench.journal.backlog().brought_back, 0);
    assert_eq!(bench.reads(page(true, 9)), None);
}

#[test]
fn a_comparison_that_fails_for_another_reason_begins_again_and_closes_nothing() {
    let mut bench = Bench::new();
    let asked = bench.reads(page(true, 5));
    let asked = bench.begins(asked, 9, "one");
    let Some(Command::BringBack(_, request, _)) = bench.fetches(asked, 5, vec![entry(8)]) else {
        panic!("it does not compare")
    };
    assert_eq!(bench.refuses(request, failure(RefusalClass::Retry)), None);
    let asked = bench.reads(page(true, 5));
    assert!(matches!(asked, Some(Command::BeginJournal(_))), "{asked:?}");
    // A closed journal that refuses a page is not closed once more.
    let mut bench = Bench::new();
    let asked = bench.reads(page(false, 5));
    let asked = bench.begins(asked, 9, "one");
    let Some(Command::BringBack(_, request, _)) = bench.fetches(asked, 5, vec![entry(8)]) else {
        panic!("it does not bring back")
    };
    assert_eq!(bench.refuses(request, lacks()), None);
}

#[test]
fn an_entry_that_the_module_cannot_read_closes_nothing_and_hides_nothing_that_is_lacking() {
    let unreadable = || Failure {
        refusal: Some(Refusal::new(RefusalCode::InvalidArgument, "the entry r8")),
        ..failure(RefusalClass::Reject)
    };
    let compared = |bench: &mut Bench| {
        let asked = bench.reads(page(true, 5));
        let asked = bench.begins(asked, 9, "one");
        let Some(Command::BringBack(_, request, _)) = bench.fetches(asked, 5, vec![entry(8)]) else {
            panic!("it does not compare")
        };
        bench.refuses(request, unreadable())
    };
    let mut bench = Bench::new();
    for is_first in [true, false, false] {
        let asked = compared(&mut bench);
        let Some(Command::FetchJournal(request, 8)) = asked else {
            panic!("it does not go on: {asked:?}")
        };
        let mut out = Vec::new();
        let mut turn = Turn::new(bench.now, &mut bench.ids, &mut bench.dice, &mut out);
        bench.journal.fetched(request, Ok(Vec::new()), &mut turn);
        // The log says it once.
        let said = [Command::Tell(Notice::JournalFails {
            why: "no".to_owned(),
            for_a_person: true,
        })];
        let said = if is_first { format!("{said:?}") } else { "[]".to_owned() };
        assert_eq!(format!("{out:?}"), said);
        assert_eq!(bench.journal.backlog().closed_since, None);
        assert!(bench.journal.next_due() > Some(bench.now));
    }
    let asked = compared(&mut bench);
    let Some(Command::BringBack(_, request, _)) = bench.fetches(asked, 8, vec![entry(9)]) else {
        panic!("it does not compare the rest")
    };
    let asked = bench.refuses(request, lacks());
    assert!(matches!(asked, Some(Command::CloseJournal(_, _, 5))), "{asked:?}");
}

#[test]
fn an_authority_of_another_history_or_with_less_is_told_everything_anew() {
    for (newest, epoch) in [(5, "two"), (4, "one"), (4, "two")] {
        let mut bench = Bench::new();
        let asked = bench.reads(page(true, 5));
        let asked = bench.begins(asked, newest, epoch);
        bench.opens(asked, newest, epoch);
    }
}

#[test]
fn what_has_changed_is_kept_and_then_settled() {
    let mut bench = Bench::following();
    let changed = JournalPage {
        newest: 9,
        waiting: 3,
        oldest: Duration::from_millis(40),
        to: 8,
        entries: vec![entry(6), entry(8)],
        ..page(true, 5)
    };
    let Some(Command::KeepJournal {
        request,
        turn,
        entries,
        to,
    }) = bench.reads(changed.clone())
    else {
        panic!("it keeps nothing")
    };
    assert_eq!((turn, entries.len(), to), (7, 2, 8));
    // There is more than the page, and it may have changed at any time since the link came up.
    let (backlog, up) = (bench.journal.backlog(), Duration::from_secs(1));
    let later = bench.now + Duration::from_millis(2);
    assert_eq!((backlog.waiting, backlog.behind_since), (3, Some(up)));
    assert_eq!(backlog.oldest(later), Duration::from_millis(42));
    assert_eq!(
        backlog.oldest(up + Duration::from_secs(9)),
        Duration::from_secs(9) + Duration::from_millis(40)
    );
    bench.now += Duration::from_millis(5);
    let asked = bench.then(|journal, turn| journal.kept(request, Ok(()), turn));
    let Some(Command::SettleJournal(_, request, 8)) = asked else {
        panic!("it does not settle: {asked:?}")
    };
    assert_eq!(bench.tells(request), None);
    assert_eq!(bench.journal.backlog().lag, Duration::from_millis(45));
    // There is more.
    assert_eq!(bench.journal.next_due(), Some(bench.now));
    let rest = JournalPage {
        newest: 9,
        waiting: 1,
        to: 9,
        entries: vec![entry(9)],
        ..page(true, 8)
    };
    let Some(Command::KeepJournal { request, .. }) = bench.reads(rest) else {
        panic!("it keeps nothing")
    };
    let Some(Command::SettleJournal(_, request, 9)) = bench.then(|journal, turn| journal.kept(request, Ok(()), turn))
    else {
        panic!("it does not settle")
    };
    assert_eq!(bench.tells(request), None);
    assert_eq!(bench.journal.next_due(), Some(bench.now + QUIET));
    assert_eq!(bench.reads(page(true, 9)), None);
    assert_eq!(bench.journal.next_due(), Some(bench.now + QUIET));
    assert_eq!(
        (bench.journal.backlog().kept, bench.journal.backlog().behind_since),
        (3, None)
    );
    // What does not fit into the next page may have changed since then.
    let kept_at = bench.now;
    bench.now += Duration::from_secs(1);
    let more = JournalPage {
        newest: 12,
        waiting: 2,
        to: 11,
        entries: vec![entry(11)],
        ..page(true, 9)
    };
    bench.reads(more);
    assert_eq!(bench.journal.backlog().behind_since, Some(kept_at));
}

#[test]
fn while_the_module_marks_everything_anew_it_is_read_without_a_pause() {
    let mut bench = Bench::following();
    let looked_at = JournalPage {
        waiting: 1_000_000,
        whole_at: u64::MAX,
        ..page(true, 5)
    };
    assert_eq!(bench.reads(looked_at), None);
    assert_eq!(bench.journal.next_due(), Some(bench.now));
}

#[test]
fn nobody_says_that_the_journal_is_closed_before_it_was_read() {
    let mut bench = Bench::new();
    let up = bench.now;
    let Some(Command::ReadJournal(_, request)) = bench.due() else {
        panic!("it does not read the journal")
    };
    bench.now += Duration::from_secs(9);
    let backlog = bench.journal.backlog();
    assert_eq!(
        (backlog.closed_since, backlog.out_of_step(bench.now)),
        (None, Duration::from_secs(9))
    );
    assert_eq!(up + backlog.out_of_step(bench.now), bench.now);
    bench.then(|journal, turn| assert_eq!(journal.read(request, Ok(page(false, 5)), turn), Verdict::Fine));
    let backlog = bench.journal.backlog();
    assert_eq!(
        (backlog.closed_since, backlog.out_of_step(bench.now)),
        (Some(bench.now), Duration::from_secs(9))
    );
}

#[test]
fn nobody_says_that_both_sides_are_in_step_while_every_comparison_fails() {
    let mut bench = Bench::new();
    let up = bench.now;
    let mut asked = bench.reads(page(true, 5));
    for _ in 0..20 {
        let comparing = bench.begins(asked, 9, "one");
        let Some(Command::BringBack(_, request, _)) = bench.fetches(comparing, 5, vec![entry(8)]) else {
            panic!("it does not compare")
        };
        assert_eq!(bench.refuses(request, failure(RefusalClass::Retry)), None);
        asked = bench.reads(page(true, 5));
        assert_eq!(up + bench.journal.backlog().out_of_step(bench.now), bench.now);
    }
    assert!(bench.now > up + BACKOFF.1);
    let asked = bench.begins(asked, 5, "one");
    assert_eq!(asked, None);
    assert_eq!(bench.journal.backlog().out_of_step(bench.now), Duration::ZERO);
}

#[test]
fn marks_of_what_changed_again_are_settled_although_nothing_is_to_be_kept() {
    let mut bench = Bench::following();
    let moved = JournalPage {
        newest: 90_000,
        to: 16_389,
        ..page(true, 5)
    };
    let asked = bench.reads(moved);
    assert!(
        matches!(asked, Some(Command::KeepJournal { to: 16_389, .. })),
        "{asked:?}"
    );
}

#[test]
fn what_is_of_another_history_is_forgotten_once_everything_was_said_anew() {
    let mut bench = Bench::following();
    let said = |settled| JournalPage {
        whole_at: 6,
        newest: 6,
        ..page(true, settled)
    };
    assert_eq!(bench.reads(said(5)), None);
    for gone in [256, 1, 0] {
        let Some(Command::ForgetJournal(request, _)) = bench.reads(said(6)) else {
            panic!("it does not forget")
        };
        assert_eq!(
            bench.then(|journal, turn| journal.forgotten(request, Ok(gone), turn)),
            None
        );
    }
    assert_eq!(bench.reads(said(6)), None);
}

#[test]
fn after_a_failure_the_journal_finds_out_again_which_side_has_lost_something() {
    let mut bench = Bench::following();
    let changed = JournalPage {
        newest: 6,
        to: 6,
        entries: vec![entry(6)],
        ..page(true, 5)
    };
    let Some(Command::KeepJournal { request, .. }) = bench.reads(changed) else {
        panic!("it keeps nothing")
    };
    let away = failure(RefusalClass::Retry);
    assert_eq!(bench.then(|journal, turn| journal.kept(request, Err(away), turn)), None);
    let due = bench.journal.next_due().unwrap();
    assert!((BACKOFF.0 / 2..BACKOFF.0).contains(&(due - bench.now)), "{due:?}");
    // The authority has kept the page before it went away, and the module does not know it.
    let asked = bench.reads(page(true, 5));
    let asked = bench.begins(asked, 6, "one");
    assert!(matches!(asked, Some(Command::FetchJournal(_, 5))), "{asked:?}");
}

#[test]
fn people_hear_of_the_first_failure_only_until_the_journal_is_followed_again() {
    let mut bench = Bench::following();
    let fails = |bench: &mut Bench| {
        let Some(Command::ReadJournal(_, request)) = bench.due() else {
            panic!("it does not read the journal")
        };
        let away = Err(failure(RefusalClass::Retry));
        assert_eq!(
            bench.then(|journal, turn| assert_eq!(journal.read(request, away, turn), Verdict::Fine)),
            None
        );
        bench.journal.next_due().unwrap() - bench.now
    };
    for _ in 0..9 {
        fails(&mut bench);
        assert_eq!(bench.notices, 1);
    }
    let asked = bench.reads(page(true, 5));
    assert_eq!(bench.begins(asked, 5, "one"), None);
    let wait = fails(&mut bench);
    assert_eq!(bench.notices, 2);
    assert!(wait < BACKOFF.0, "{wait:?}");
}

#[test]
fn a_journal_that_somebody_else_has_closed_is_not_followed() {
    let mut bench = Bench::following();
    let asked = bench.reads(page(false, 5));
    let asked = bench.begins(asked, 5, "one");
    let asked = bench.fetches(asked, 5, Vec::new());
    bench.opens(asked, 5, "one");
}

#[test]
fn a_module_that_refuses_the_bridge_ends_the_link() {
    let mut bench = Bench::new();
    let Some(Command::ReadJournal(_, request)) = bench.due() else {
        panic!("it does not read the journal")
    };
    let mut out = Vec::new();
    let mut turn = Turn::new(bench.now, &mut bench.ids, &mut bench.dice, &mut out);
    let verdict = bench
        .journal
        .read(request, Err(failure(RefusalClass::Fatal)), &mut turn);
    assert_eq!(verdict, Verdict::DropLink("no".to_owned()));
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut bench = Bench::following();
    let stale = bench.ids.request();
    let before = format!("{:?}", bench.journal);
    let mut out = Vec::new();
    let mut turn = Turn::new(bench.now, &mut bench.ids, &mut bench.dice, &mut out);
    let journal = &mut bench.journal;
    assert_eq!(journal.read(stale, Ok(page(false, 0)), &mut turn), Verdict::Fine);
    assert_eq!(
        journal.told(stale, Err(failure(RefusalClass::Fatal)), &mut turn),
        Verdict::Fine
    );
    journal.begun(stale, Err(failure(RefusalClass::Retry)), &mut turn);
    journal.fetched(stale, Ok(vec![entry(1)]), &mut turn);
    journal.kept(stale, Ok(()), &mut turn);
    journal.forgotten(stale, Ok(1), &mut turn);
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(format!("{:?}", bench.journal), before);
    bench.journal.link_down();
    assert_eq!(bench.journal.next_due(), None);
}

#[test]
fn without_a_link_only_what_was_counted_is_known() {
    let counted = Backlog {
        kept: 3,
        brought_back: 2,
        lag: Duration::from_millis(45),
        ..Backlog::default()
    };
    let at = Duration::from_secs(1);
    let known = Backlog {
        closed_since: Some(at),
        waiting: 5,
        oldest: at,
        behind_since: Some(at),
        read_at: Some(at),
        in_step_at: Some(at),
        ..counted
    };
    assert_eq!(known.without_link(), counted);
}
