use super::*;
use crate::journal::Forgotten;
use crate::journal::memory::MemoryJournal;

const NOW: i64 = 1_000_000;

fn key(name: &str) -> Key {
    Key::Assignment(name.to_owned())
}

fn document(until: i64) -> Document {
    Document::Forgotten(Forgotten {
        requester: "7".to_owned(),
        opened_as: [1; 32],
        until,
        opened_at: NOW,
    })
}

impl MemoryJournal {
    /// A thing changes, and is marked.
    fn change(&mut self, name: &str, until: i64, now_us: i64) {
        self.things.insert(key(name), document(until));
        mark(self, &key(name), now_us);
    }

    fn goes(&mut self, name: &str) {
        self.things.remove(&key(name));
        mark(self, &key(name), NOW);
    }

    /// The names and the marks of a page, and up to where it goes.
    fn read(&mut self, most: u64) -> (Vec<(String, u64)>, u64) {
        let page = page(self, most, &Steps::SHIPPED, NOW);
        let name = |entry: &JournalEntry| entry.key.trim_start_matches("assignment/").to_owned();
        let entries = page.entries.iter().map(|entry| (name(entry), entry.mark)).collect();
        (entries, page.to)
    }
}

fn opened(newest: u64) -> MemoryJournal {
    let mut rows = MemoryJournal::default();
    open(&mut rows, "one".to_owned(), newest, NOW).unwrap();
    rows
}

fn read(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected
        .iter()
        .map(|(name, mark)| ((*name).to_owned(), *mark))
        .collect()
}

#[test]
fn a_database_that_is_new_or_older_than_the_journal_is_closed_and_marks_what_it_holds() {
    let mut rows = MemoryJournal::default();
    assert_eq!(check_open(&rows).unwrap_err().code, RefusalCode::BeingBroughtBack);
    rows.things.extend([(key("a"), document(1)), (key("b"), document(2))]);
    assert_eq!(rows.read(256), (read(&[("a", 1), ("b", 2)]), 2));
    assert_eq!(check_room(&rows).unwrap_err().code, RefusalCode::BeingBroughtBack);
    check_closed(&mut rows, NOW).unwrap();
    open(&mut rows, "one".to_owned(), 0, NOW).unwrap();
    check_room(&rows).unwrap();
    assert_eq!(check_closed(&mut rows, NOW).unwrap_err().code, RefusalCode::Lacking);
    assert_eq!(rows.read(256).1, 2, "opening marks nothing twice");
}

#[test]
fn each_thing_has_one_mark_and_waits_since_it_first_changed() {
    let mut rows = opened(0);
    rows.change("a", 1, NOW - 50);
    rows.change("b", 1, NOW - 40);
    rows.change("a", 2, NOW - 30);
    let page = page(&mut rows, 256, &Steps::SHIPPED, NOW);
    assert_eq!((page.waiting, page.oldest), (2, Duration::from_micros(50)));
    assert_eq!(rows.read(256), (read(&[("b", 2), ("a", 3)]), 3));
    rows.goes("b");
    assert_eq!(rows.read(256), (read(&[("a", 3), ("b", 4)]), 4));
    assert_eq!(
        super::page(&mut rows, 256, &Steps::SHIPPED, NOW).entries[1].document,
        ""
    );
}

#[test]
fn what_changes_after_it_was_read_stays_when_the_page_is_settled() {
    let mut rows = opened(0);
    for name in ["a", "b", "c"] {
        rows.change(name, 1, NOW);
    }
    assert_eq!(rows.read(2), (read(&[("a", 1), ("b", 2)]), 2));
    rows.change("a", 2, NOW);
    settle(&mut rows, 2, NOW).unwrap();
    settle(&mut rows, 1, NOW).unwrap();
    assert_eq!(rows.read(256), (read(&[("c", 3), ("a", 4)]), 4));
    assert!(settle(&mut rows, 5, NOW).is_err());
    settle(&mut rows, 4, NOW).unwrap();
    assert_eq!(rows.read(256), (Vec::new(), 4));
}

#[test]
fn a_read_looks_through_a_bounded_number_of_settled_marks_and_says_how_far_it_came() {
    let mut rows = opened(0);
    for until in 0..40_000 {
        rows.change("a", until, NOW);
    }
    let far = RANGES as u64 * PAGE_ENTRIES as u64;
    assert_eq!(rows.read(256), (Vec::new(), far));
    settle(&mut rows, far, NOW).unwrap();
    settle(&mut rows, 2 * far, NOW).unwrap();
    assert_eq!(rows.read(256), (read(&[("a", 40_000)]), 40_000));
}

#[test]
fn a_page_is_bounded_in_bytes_and_holds_one_entry_at_least() {
    let mut rows = opened(0);
    for name in ["a", "b", "c"] {
        let requester = "x".repeat(PAGE_BYTES / 2);
        let large = Document::Forgotten(Forgotten {
            requester,
            opened_as: [1; 32],
            until: 1,
            opened_at: NOW,
        });
        rows.things.insert(key(name), large);
        mark(&mut rows, &key(name), NOW);
    }
    assert_eq!(rows.read(256), (read(&[("a", 1)]), 1));
}

#[test]
fn what_was_marked_while_things_came_back_stays_after_everything_that_the_authority_has() {
    let mut rows = MemoryJournal::default();
    rows.change("a", 1, NOW);
    rows.goes("b");
    open(&mut rows, "one".to_owned(), 9, NOW).unwrap();
    assert_eq!(rows.read(256), (read(&[("a", 10), ("b", 11)]), 11));
    assert_eq!(rows.state.as_ref().unwrap().settled, 9);
    rows.change("c", 1, NOW);
    assert_eq!(rows.read(256).1, 12);
}

#[test]
fn an_authority_of_another_history_or_with_less_is_told_everything_anew() {
    for (epoch, newest, anew) in [("one", 2, false), ("two", 2, true), ("one", 1, true), ("two", 9, true)] {
        let mut rows = opened(0);
        rows.change("a", 1, NOW);
        rows.change("b", 1, NOW);
        rows.read(256);
        settle(&mut rows, 2, NOW).unwrap();
        open(&mut rows, epoch.to_owned(), newest, NOW).unwrap();
        let first = newest.max(2) + 1;
        assert_eq!(rows.state.as_ref().unwrap().whole_at, if anew { NOT_YET } else { 0 });
        let expected = if anew {
            (read(&[("a", first), ("b", first + 1)]), first + 1)
        } else {
            (Vec::new(), 2)
        };
        assert_eq!(rows.read(256), expected, "{epoch} {newest}");
        let whole_at = if anew { first + 1 } else { 0 };
        assert_eq!(rows.state.as_ref().unwrap().whole_at, whole_at);
    }
}

#[test]
fn a_journal_is_closed_only_as_the_bridge_has_found_it() {
    let mut rows = opened(4);
    assert_eq!(close(&mut rows, 3, NOW).unwrap_err().code, RefusalCode::InvalidArgument);
    check_open(&rows).unwrap();
    close(&mut rows, 4, NOW).unwrap();
    assert_eq!(check_open(&rows).unwrap_err().code, RefusalCode::BeingBroughtBack);
    let long = "e".repeat(limit::NAME_BYTES + 1);
    for (epoch, newest) in [("", 0), (long.as_str(), 0), ("one", u64::MAX), ("one", MOST_MARKS + 1)] {
        let refused = open(&mut rows, epoch.to_owned(), newest, NOW).unwrap_err();
        assert_eq!(refused.code, RefusalCode::InvalidArgument);
    }
    open(&mut rows, "one".to_owned(), MOST_MARKS, NOW).unwrap();
}

#[test]
fn while_very_much_waits_nothing_new_is_taken() {
    let mut rows = opened(0);
    for mark in 1..limit::JOURNAL_WAITING {
        rows.marks.insert(
            mark,
            Mark {
                mark,
                key: String::new(),
                since_us: NOW,
            },
        );
    }
    check_room(&rows).unwrap();
    rows.marks.insert(u64::MAX, rows.marks[&1].clone());
    assert_eq!(check_room(&rows).unwrap_err().code, RefusalCode::RateLimited);
    check_open(&rows).unwrap();
}
