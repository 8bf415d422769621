use super::*;
use crate::journal::marks::{Mark, mark, open, page, settle};
use crate::journal::memory::MemoryJournal;
use crate::journal::{Capability, Forgotten, Key};

const NOW: i64 = 1_000_000_000_000;
const DAY_US: i64 = 86_400_000_000;

fn name(nth: usize) -> Key {
    Key::Assignment(format!("r{nth}"))
}

fn forgotten(until: i64) -> Document {
    Document::Forgotten(Forgotten {
        requester: "7".to_owned(),
        opened_as: [1; 32],
        until,
        opened_at: NOW,
    })
}

/// A module that holds so many things, due one after another, `apart_us` apart, and whose journal is settled.
fn holding(many: usize, apart_us: i64) -> MemoryJournal {
    let mut rows = MemoryJournal::default();
    open(&mut rows, "one".to_owned(), 0, NOW).unwrap();
    let capability = Document::Capability(Capability {
        user_id: "8".to_owned(),
        version: 1,
        content: [1; 32],
        ends_at: NOW,
        until: NOW + DAY_US,
        stands: None,
    });
    let key = Key::Capability {
        provider_id: "p1".to_owned(),
        capability: "gpu".to_owned(),
    };
    rows.things.insert(key, capability);
    for nth in 0..many {
        rows.things.insert(name(nth), forgotten(NOW + nth as i64 * apart_us));
    }
    while rows.pass.is_some() {
        settle_all(&mut rows);
    }
    settle_all(&mut rows);
    rows
}

/// Reads a page and settles it. Returns the keys.
fn settle_all(rows: &mut MemoryJournal) -> Vec<String> {
    let page = page(rows, 256, &Steps::SHIPPED, NOW);
    settle(rows, page.to, NOW).unwrap();
    page.entries.into_iter().map(|entry| entry.key).collect()
}

#[test]
fn everything_is_marked_in_bounded_steps_and_nothing_twice() {
    for (many, apart_us) in [(0, 1), (700, 1), (1_100, DAY_US / 500), (1_100, 1)] {
        let mut rows = holding(many, apart_us);
        open(&mut rows, "two".to_owned(), 0, NOW).unwrap();
        assert_eq!(rows.marks.len(), 0, "opening marks nothing");
        let (mut told, mut reads) = (Vec::new(), 0);
        while rows.pass.is_some() || !rows.marks.is_empty() {
            assert_eq!(
                rows.state.as_ref().unwrap().whole_at,
                if rows.pass.is_some() { NOT_YET } else { told_by(&rows) }
            );
            told.extend(settle_all(&mut rows));
            reads += 1;
            assert!(reads < 10_000);
            // All that is due within one look is marked at once.
            let at_once = if apart_us == 1 {
                many
            } else {
                Steps::SHIPPED.few as usize
            };
            assert!(rows.marks.len() <= PAGE_ENTRIES + at_once, "{}", rows.marks.len());
        }
        assert_eq!(told.len(), many + 1);
        told.sort();
        told.dedup();
        assert_eq!(told.len(), many + 1);
        let state = rows.state.unwrap();
        assert_eq!(
            (state.whole_at, state.settled),
            (state.next_mark - 1, state.next_mark - 1)
        );
    }
}

fn told_by(rows: &MemoryJournal) -> u64 {
    rows.state.as_ref().unwrap().next_mark - 1
}

#[test]
fn a_pass_marks_nothing_while_much_waits_and_counts_what_it_has_not_marked() {
    let mut rows = holding(700, 1);
    open(&mut rows, "two".to_owned(), 0, NOW).unwrap();
    for nth in 0..PAGE_ENTRIES as u64 {
        let state = rows.state.as_mut().unwrap();
        rows.marks.insert(
            state.next_mark,
            Mark {
                mark: state.next_mark,
                key: format!("assignment/gone{nth}"),
                since_us: NOW,
            },
        );
        state.next_mark += 1;
    }
    assert_eq!(page(&mut rows, 256, &Steps::SHIPPED, NOW).waiting, 256 + 701);
    assert_eq!(rows.marks.len(), 256);
    settle_all(&mut rows);
    assert_eq!(page(&mut rows, 256, &Steps::SHIPPED, NOW).waiting, 701);
}

#[test]
fn what_changes_during_a_pass_is_told_as_it_is_in_the_end() {
    let mut rows = holding(1_100, DAY_US / 500);
    open(&mut rows, "two".to_owned(), 0, NOW).unwrap();
    let told = settle_all(&mut rows);
    assert!(rows.pass.is_some());
    // One from behind the pass, one from before it, which gets a time that the pass has left behind, and one that is new there.
    let changes = [(0, NOW + 5 * DAY_US), (1_099, NOW), (5_000, NOW)];
    for (nth, until) in changes {
        rows.things.insert(name(nth), forgotten(until));
        mark(&mut rows, &name(nth), NOW);
    }
    rows.things.remove(&name(1_000));
    mark(&mut rows, &name(1_000), NOW);
    let mut last = std::collections::BTreeMap::new();
    while rows.pass.is_some() || !rows.marks.is_empty() {
        let page = page(&mut rows, 256, &Steps::SHIPPED, NOW);
        settle(&mut rows, page.to, NOW).unwrap();
        last.extend(page.entries.into_iter().map(|entry| (entry.key, entry.document)));
    }
    for (key, thing) in &rows.things {
        let text = key.to_text();
        assert!(told.contains(&text) || last.contains_key(&text), "{text}");
        if let Some(document) = last.get(&text) {
            assert_eq!(*document, thing.to_text());
        }
    }
    for (nth, _) in changes {
        assert!(last.contains_key(&name(nth).to_text()));
    }
    assert_eq!(last[&name(1_000).to_text()], "");
}

#[test]
fn a_database_from_before_the_journal_is_told_too_and_the_authority_forgets_nothing_for_it() {
    let mut rows = MemoryJournal::default();
    rows.things
        .extend((0..1_100).map(|nth| (name(nth), forgotten(NOW + nth as i64 * 1_000_000))));
    mark(&mut rows, &name(7), NOW);
    assert_eq!(rows.marks.len(), 1);
    let mut told = Vec::new();
    while rows.pass.is_some() || !rows.marks.is_empty() {
        told.extend(settle_all(&mut rows));
    }
    told.sort();
    told.dedup();
    assert_eq!((told.len(), rows.state.unwrap().whole_at), (1_100, 0));
}
