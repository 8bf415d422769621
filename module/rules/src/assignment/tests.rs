use super::*;

const NOW: i64 = 1_800_000_000_000_000;

/// The caller's parts, as one letter each: requester, provider, may provide.
fn part(letters: &str) -> Part {
    Part {
        is_requester: letters.contains('r'),
        is_provider: letters.contains('p'),
        may_provide: letters.contains('m'),
    }
}

fn held(state: State, provider_id: Option<&str>) -> Held {
    Held {
        state,
        version: 4,
        provider_id: provider_id.map(str::to_owned),
        to_all: true,
        deadline_us: NOW + 1,
    }
}

fn wants(status: &str, provider_id: &str, document: &str) -> Change {
    change("a1", "u1", 4, status, provider_id, document).unwrap()
}

/// Whom a state leaves the assignment with.
fn holder(state: State) -> Option<&'static str> {
    (state != State::Open).then_some("p1")
}

/// Which of these callers may make the change.
fn may(from: State, to: State) -> Vec<&'static str> {
    let held = held(from, holder(from));
    let provider = if to == State::Offered || (from, to) == (State::Open, State::Accepted) {
        "p2"
    } else {
        ""
    };
    let change = wants(to.as_str(), provider, "");
    let allowed = |letters: &&str| match decide(&held, &change, part(letters), NOW) {
        Ok(next) => {
            assert_eq!((next.state, next.version), (to, 5));
            true
        }
        Err(refusal) => {
            let expected = match *letters {
                "" => RefusalCode::ForbiddenAssignment,
                _ => RefusalCode::AssignmentConflict,
            };
            assert_eq!(refusal.code, expected, "{from} → {to} by {letters:?}: {refusal}");
            false
        }
    };
    ["", "r", "p", "m"].into_iter().filter(allowed).collect()
}

#[test]
fn every_pair_of_states_has_its_callers() {
    use State::{Accepted, Cancelled, Failed, Offered, Open, Running, Succeeded};
    for from in State::ALL.iter().copied() {
        for to in State::ALL.iter().copied() {
            let expected: &[&str] = match (from, to) {
                (Open, Open | Offered) | (Open | Offered | Accepted | Running, Cancelled) => &["r"],
                (Open, Accepted) => &["m"],
                (Offered, Open) => &["r", "p"],
                (Offered, Accepted) | (Accepted, Open | Running | Failed) | (Running, Succeeded | Failed) => &["p"],
                _ => &[],
            };
            assert_eq!(may(from, to), expected, "{from} → {to}");
        }
    }
}

#[test]
fn what_has_ended_stays_as_it_is_and_everything_else_expires() {
    for state in State::ALL.iter().copied() {
        let ends = matches!(
            state,
            State::Succeeded | State::Failed | State::Cancelled | State::Expired
        );
        assert_eq!(is_final(state), ends, "{state}");
        let expired = expire(&held(state, holder(state)));
        assert_eq!(expired.is_none(), ends, "{state}");
        if let Some(next) = expired {
            assert_eq!((next.state, next.version, next.by), (State::Expired, 5, Who::Clock));
        }
        assert_eq!(super::state(state.as_str()), Ok(state));
    }
    assert_eq!(super::state("Open").unwrap_err().code, RefusalCode::InvalidArgument);
}

#[test]
fn a_deadline_that_has_passed_counts_before_a_sweep_comes() {
    let mut running = held(State::Running, Some("p1"));
    running.deadline_us = NOW;
    let refused = decide(&running, &wants("succeeded", "", ""), part("p"), NOW).unwrap_err();
    assert_eq!(refused.code, RefusalCode::AssignmentConflict);
    assert!(refused.message.contains("deadline"), "{refused}");
    assert!(decide(&running, &wants("succeeded", "", ""), part("p"), NOW - 1).is_ok());
}

#[test]
fn a_conflict_names_both_states_the_version_and_the_holder() {
    let running = held(State::Running, Some("p1"));
    let stale = change("a1", "u1", 3, "accepted", "p2", "").unwrap();
    let refused = decide(&running, &stale, part("m"), NOW).unwrap_err();
    assert_eq!(refused.code, RefusalCode::AssignmentConflict);
    assert_eq!(
        refused.message,
        "expected version 3, to make it accepted; found a1 is running at version 4, with provider p1: it was changed since"
    );
    let illegal = decide(&running, &wants("open", "", ""), part("r"), NOW).unwrap_err();
    assert_eq!(
        illegal.message,
        "expected version 4, to make it open; found a1 is running at version 4, with provider p1: there is no such change"
    );
    let offered = held(State::Offered, Some("p1"));
    let foreign = decide(&offered, &wants("accepted", "p2", ""), part("m"), NOW).unwrap_err();
    assert_eq!(
        foreign.message,
        "expected version 4, to make it accepted; found a1 is offered at version 4, offered to p1: only its provider may do that"
    );
}

#[test]
fn nobody_learns_of_an_assignment_that_was_never_shown_to_all() {
    for state in State::ALL.iter().copied() {
        let mut held = held(state, holder(state));
        held.to_all = false;
        let refused = decide(&held, &wants("accepted", "p2", ""), part("m"), NOW).unwrap_err();
        assert_eq!(refused, forbidden(), "{state}");
    }
    // It was shown to all, so whoever comes too late hears who has it.
    let refused = decide(
        &held(State::Accepted, Some("p1")),
        &wants("accepted", "p2", ""),
        part("m"),
        NOW,
    );
    assert_eq!(refused.unwrap_err().code, RefusalCode::AssignmentConflict);
}

#[test]
fn what_was_offered_to_one_is_shown_to_all_by_the_requester_alone() {
    let mut offered = held(State::Offered, Some("p1"));
    offered.to_all = false;
    let open = wants("open", "", "");
    let after = |held: &Held, letters| decide(held, &open, part(letters), NOW).unwrap();
    assert!(!after(&offered, "p").to_all);
    assert!(after(&offered, "r").to_all);
    assert!(after(&offered, "rp").to_all, "who is both acts as the requester");
    let mut declined = held(State::Open, None);
    declined.to_all = false;
    assert!(after(&declined, "r").to_all);
    let offered = decide(&declined, &wants("offered", "p2", ""), part("r"), NOW).unwrap();
    assert!(!offered.to_all);
}

#[test]
fn a_provider_is_named_where_one_begins_and_nowhere_else() {
    let open = held(State::Open, None);
    let said = |held: &Held, status, provider, letters| {
        decide(held, &wants(status, provider, ""), part(letters), NOW)
            .map(|next| next.provider)
            .map_err(|refusal| refusal.code)
    };
    let p2 = Label::new("p2").unwrap();
    assert_eq!(said(&open, "offered", "p2", "r"), Ok(Provider::Chosen(p2.clone())));
    assert_eq!(said(&open, "accepted", "p2", "m"), Ok(Provider::Own(p2)));
    for (status, letters) in [("offered", "r"), ("accepted", "m")] {
        let refused = said(&open, status, "", letters);
        assert_eq!(refused, Err(RefusalCode::InvalidArgument), "{status}");
    }
    let running = held(State::Running, Some("p1"));
    for provider in ["", "p1"] {
        assert_eq!(said(&running, "succeeded", provider, "p"), Ok(Provider::Same));
    }
    let refused = said(&running, "succeeded", "p2", "p");
    assert_eq!(refused, Err(RefusalCode::AssignmentConflict));
    let accepted = held(State::Accepted, Some("p1"));
    assert_eq!(said(&accepted, "open", "p1", "p"), Ok(Provider::Nobody));
}

#[test]
fn each_side_writes_its_own_document() {
    let documents = |state, status, letters, document| {
        let next = decide(
            &held(state, holder(state)),
            &wants(status, "", document),
            part(letters),
            NOW,
        );
        let next = next.unwrap();
        (next.assignment, next.report)
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        documents(State::Running, "succeeded", "p", r#"{"n":1}"#),
        (None, some(r#"{"n":1}"#))
    );
    assert_eq!(documents(State::Running, "succeeded", "p", ""), (None, None));
    assert_eq!(
        documents(State::Running, "cancelled", "r", r#"{"n":1}"#),
        (some(r#"{"n":1}"#), None)
    );
    // What comes back brings nothing of the last provider but what that one says in going.
    assert_eq!(documents(State::Accepted, "open", "p", ""), (None, some("")));
    assert_eq!(
        documents(State::Accepted, "open", "p", r#"{"n":1}"#),
        (None, some(r#"{"n":1}"#))
    );
    assert_eq!(documents(State::Offered, "open", "r", "{}"), (some("{}"), some("")));
}

#[test]
fn an_opening_or_a_change_with_an_invalid_field_is_refused() {
    let full = format!("{{\"a\":\"{}\"}}", "x".repeat(limit::ASSIGNMENT_BYTES - 8));
    let large = format!("{full} ");
    let opened = |request, provider, document, seconds| {
        opening(request, provider, document, seconds)
            .map(|opening| opening.state())
            .map_err(|refusal| refusal.code)
    };
    let invalid = RefusalCode::InvalidArgument;
    assert_eq!(opened("a1", "", &full, 1), Ok(State::Open));
    assert_eq!(opened("a1", "p1", "{}", limit::ASSIGNMENT_SECONDS), Ok(State::Offered));
    for bad in [
        opened("", "", "{}", 60),
        opened("a/1", "", "{}", 60),
        opened("a1", "p/1", "{}", 60),
        opened("a1", "", "", 60),
        opened("a1", "", "7", 60),
        opened("a1", "", &large, 60),
        opened("a1", "", "{}", 0),
        opened("a1", "", "{}", limit::ASSIGNMENT_SECONDS + 1),
        opened("a1", "", "{}", u64::MAX),
    ] {
        assert_eq!(bad, Err(invalid));
    }
    let changed = |request, update, status, provider, document| {
        let said = change(request, update, 1, status, provider, document);
        said.map(|change| change.document).map_err(|refusal| refusal.code)
    };
    assert_eq!(changed("a1", "u1", "open", "", ""), Ok(None));
    assert_eq!(changed("a1", "u1", "open", "p1", &full), Ok(Some(full.clone())));
    for bad in [
        changed("", "u1", "open", "", ""),
        changed("a1", "", "open", "", ""),
        changed("a1", "u 1", "open", "", ""),
        changed("a1", "u1", "done", "", ""),
        changed("a1", "u1", "open", "p/1", ""),
        changed("a1", "u1", "open", "", "[]"),
        changed("a1", "u1", "open", "", &large),
    ] {
        assert_eq!(bad, Err(invalid));
    }
}

#[test]
fn a_repeat_is_told_from_another_call_by_everything_it_says() {
    let first = opening("a1", "", "{}", 60).unwrap();
    assert_eq!(first.check_repeat(true, first.content), Ok(()));
    let foreign = first.check_repeat(false, first.content).unwrap_err();
    assert_eq!(foreign.code, RefusalCode::AssignmentConflict);
    for other in [
        opening("a1", "p1", "{}", 60),
        opening("a1", "", "{ }", 60),
        opening("a1", "", "{}", 61),
    ] {
        let refused = other.unwrap().check_repeat(true, first.content).unwrap_err();
        assert_eq!(refused.code, RefusalCode::AssignmentConflict);
    }
    let content = |update, version, status, provider, document| {
        let said = change("a1", update, version, status, provider, document);
        said.unwrap().content
    };
    let contents = [
        content("u1", 1, "open", "", ""),
        content("u2", 1, "open", "", ""),
        content("u1", 2, "open", "", ""),
        content("u1", 1, "failed", "", ""),
        content("u1", 1, "open", "p1", ""),
        content("u1", 1, "open", "", "{}"),
    ];
    let distinct: std::collections::BTreeSet<_> = contents.iter().collect();
    assert_eq!(distinct.len(), contents.len());
}

#[test]
fn a_requester_has_a_bounded_number_of_assignments_that_have_not_ended() {
    assert_eq!(check_room(limit::ASSIGNMENTS - 1), Ok(()));
    assert_eq!(
        check_room(limit::ASSIGNMENTS).unwrap_err().code,
        RefusalCode::InvalidArgument
    );
}

#[test]
fn a_provider_has_a_bounded_number_of_them_and_offers_fill_half_of_it() {
    let provider = Label::new("p1").unwrap();
    let most = limit::PROVIDER_ASSIGNMENTS;
    assert_eq!(check_offer(&provider, most - 1), Ok(()));
    let refused = check_offer(&provider, most).unwrap_err();
    assert_eq!(refused.code, RefusalCode::InvalidArgument);
    assert!(refused.message.contains("p1"), "{refused}");
    assert_eq!(check_taking(2 * most - 1), Ok(()));
    assert_eq!(check_taking(2 * most).unwrap_err().code, RefusalCode::InvalidArgument);
}

#[test]
fn whoever_takes_no_part_any_more_hears_nothing_but_the_name_of_its_own_change() {
    let mut offered = held(State::Offered, Some("p2"));
    offered.to_all = false;
    let change = wants("open", "", "");
    let said = |letters| other_change(&offered, &change, part(letters));
    assert_eq!(said("r").code, RefusalCode::AssignmentConflict);
    assert!(said("r").message.contains("p2"));
    assert_eq!(said("m").code, RefusalCode::AssignmentConflict);
    assert_eq!(said("m").message, "u1 is the name of another change, which was made");
}

#[test]
fn what_is_held_no_longer_is_known_until_its_deadline_where_there_is_room() {
    let most = limit::ASSIGNMENTS_LINGERING;
    for (remembered, deadline, known, until) in [(5, 3, 0, 5), (5, 9, 0, 9), (5, 9, most - 1, 9), (5, 9, most, 5)] {
        assert_eq!(
            known_until(remembered, deadline, known),
            until,
            "{remembered} {deadline} {known}"
        );
    }
}
