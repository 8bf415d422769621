use super::*;

const DAY_US: i64 = 86_400_000_000;

fn assignment() -> Assignment {
    let change = |version, status: &str, changed_by: &str| Change {
        version,
        status: status.to_owned(),
        provider_id: if version == 1 { String::new() } else { "p1".to_owned() },
        changed_by: changed_by.to_owned(),
        update_id: if version == 1 {
            String::new()
        } else {
            format!("u{version}")
        },
        changed_at: 7,
    };
    Assignment {
        requester: "7".to_owned(),
        provider: "8".to_owned(),
        opened_as: [0xab; 32],
        has_ended: false,
        due_at: 100,
        version: 2,
        status: "accepted".to_owned(),
        provider_id: "p1".to_owned(),
        to_all: true,
        assignment: r#"{"job":"ü\u0000"}"#.to_owned(),
        report: String::new(),
        opened_at: 5,
        changed_at: 7,
        deadline_at: 100,
        changes: vec![change(1, "open", "requester"), change(2, "accepted", "provider")],
        updates: vec![Update {
            version: 2,
            update_id: "u2".to_owned(),
            user_id: "8".to_owned(),
            content: [0xcd; 32],
        }],
    }
}

fn forgotten(opened_as: u8) -> Document {
    Document::Forgotten(Forgotten {
        requester: "7".to_owned(),
        opened_as: [opened_as; 32],
        until: 100,
        opened_at: 5,
    })
}

/// What is held once an assignment was forgotten.
fn was(opened_as: u8, opened_at: i64) -> HeldName {
    HeldName::Forgotten {
        opened_as: [opened_as; 32],
        opened_at,
    }
}

fn capability() -> Capability {
    Capability {
        user_id: "8".to_owned(),
        version: 3,
        content: [1; 32],
        ends_at: 50,
        until: 100,
        stands: Some(Standing {
            price_hint_sats: 21,
            region: "eu".to_owned(),
            document: "{}".to_owned(),
            published_at: 5,
        }),
    }
}

fn key(text: &str) -> Key {
    Key::read(text).unwrap()
}

#[test]
fn a_key_is_read_as_it_was_written_and_no_other_text_is_a_key() {
    for text in ["assignment/r1", "capability/p1/gpu"] {
        assert_eq!(key(text).to_text(), text);
    }
    for text in [
        "",
        "assignment",
        "assignment/",
        "assignment/a/b",
        "capability/p1",
        "claim/p1/gpu",
        "assignment/ä",
    ] {
        assert!(Key::read(text).is_err(), "{text}");
    }
}

#[test]
fn a_document_is_read_as_it_was_written() {
    let documents = [
        ("assignment/r1", Document::Assignment(assignment())),
        ("assignment/r1", forgotten(3)),
        ("capability/p1/gpu", Document::Capability(capability())),
        (
            "capability/p1/gpu",
            Document::Capability(Capability {
                stands: None,
                ..capability()
            }),
        ),
    ];
    for (at, document) in documents {
        assert_eq!(Document::read(&key(at), &document.to_text()).unwrap(), document);
    }
}

#[test]
fn what_a_later_release_has_written_is_read_without_what_is_not_known() {
    let (key, document) = (key("assignment/r1"), Document::Assignment(assignment()));
    let more = document.to_text().replace("\"due_at\"", "\"colour\":[1],\"due_at\"");
    let more = more.replace("\"user_id\"", "\"shade\":{},\"user_id\"");
    assert_ne!(more, document.to_text());
    assert_eq!(Document::read(&key, &more).unwrap(), document);
    for (key, document) in [
        ("assignment/r1", r#"{"draft":{"of":"7"}}"#),
        ("draft/r1", "{}"),
        ("draft/r1/1", "anything"),
    ] {
        assert_eq!(read_entry(key, document).unwrap(), None, "{key} {document}");
    }
    for (key, document) in [
        ("assignment/r1", r#"{"assignment":{"of":"7"}}"#),
        ("assignment/r1", r#"{"draft":1,"assignment":{}}"#),
        ("assignment/r1", "{}"),
        ("assignment/r1", "anything"),
        ("capability/r1", "{}"),
        ("/r1", "{}"),
        ("Draft/r1", "{}"),
    ] {
        assert!(read_entry(key, document).is_err(), "{key} {document}");
    }
    let read = read_entry("assignment/r1", &document.to_text()).unwrap();
    assert_eq!(read, Some((key.clone(), document)));
    // An earlier release did not note when it was opened.
    let earlier = forgotten(3).to_text().replace(",\"opened_at\":5", "");
    let Document::Forgotten(read) = Document::read(&key, &earlier).unwrap() else {
        panic!("{earlier}")
    };
    assert_eq!((read.until, read.opened_at), (100, 0));
}

#[test]
fn what_no_module_has_written_does_not_come_back() {
    let good = Document::Assignment(assignment()).to_text();
    let other = |change: fn(&mut Assignment)| {
        let mut changed = assignment();
        change(&mut changed);
        Document::Assignment(changed).to_text()
    };
    for bad in [
        String::new(),
        "{}".to_owned(),
        good.replace("\"version\":2", "\"version\":-2"),
        good.replace("\"requester\":\"7\"", "\"requester\":\"a/b\""),
        good.replace("\"due_at\"", "\"done_at\""),
        good.replace(&"ab".repeat(32), "ab"),
        good.replace("\"changed_by\":\"provider\"", "\"changed_by\":\"somebody\""),
        other(|of| of.provider.clear()),
        other(|of| of.has_ended = true),
        other(|of| of.status = "done".to_owned()),
        other(|of| of.version = 3),
        other(|of| of.assignment = "[]".to_owned()),
        other(|of| of.report = format!("{{\"a\":\"{}\"}}", "x".repeat(limit::ASSIGNMENT_BYTES))),
        other(|of| of.changes.swap(0, 1)),
        other(|of| of.changes.clear()),
        other(|of| of.updates = vec![of.updates[0].clone(); 17]),
        Document::Capability(capability()).to_text(),
        format!("{good}{}", " ".repeat(ENTRY_BYTES)),
    ] {
        let refused = Document::read(&key("assignment/r1"), &bad).unwrap_err();
        assert!(refused.message.contains("assignment/r1"), "{bad}: {refused}");
    }
    assert!(Document::read(&key("capability/p1/gpu"), &good).is_err());
    assert!(Document::read(&key("assignment/r1"), &good).is_ok());
}

#[test]
fn the_largest_documents_that_the_module_writes_are_small_enough_to_come_back() {
    // A control character is the costliest one: two bytes in the document, seven in the text around it.
    let filled = |most: usize| format!("{{\"a\":\"{}\"}}", "\\u0000".repeat((most - 8) / 6));
    let long = "n".repeat(limit::NAME_BYTES);
    let mut largest = assignment();
    for text in [&mut largest.requester, &mut largest.provider, &mut largest.provider_id] {
        text.clone_from(&long);
    }
    (largest.assignment, largest.report) = (filled(limit::ASSIGNMENT_BYTES), filled(limit::ASSIGNMENT_BYTES));
    largest.changes = (1..=limit::ASSIGNMENT_CHANGES)
        .map(|version| Change {
            version,
            status: "succeeded".to_owned(),
            provider_id: long.clone(),
            changed_by: "requester".to_owned(),
            update_id: long.clone(),
            changed_at: i64::MAX,
        })
        .collect();
    largest.version = limit::ASSIGNMENT_CHANGES;
    largest.updates = vec![
        Update {
            version: u64::MAX,
            update_id: long.clone(),
            user_id: long,
            content: [0xff; 32],
        };
        usize::try_from(limit::ASSIGNMENT_CHANGES).unwrap()
    ];
    let text = Document::Assignment(largest).to_text();
    assert!(text.len() < ENTRY_BYTES / 2, "{}", text.len());
    Document::read(&key("assignment/r1"), &text).unwrap();
}

#[test]
fn of_an_assignment_only_what_is_newer_comes_back() {
    let kept = Document::Assignment(assignment());
    let changed = |opened_as, opened_at, version, changed_at| HeldName::Assignment {
        opened_as: [opened_as; 32],
        opened_at,
        version,
        changed_at,
    };
    let held = |opened_as, opened_at, version| changed(opened_as, opened_at, version, 7);
    for (held, comes) in [
        (HeldName::Nothing, true),
        (held(0xab, 5, 1), true),
        (held(0xab, 5, 2), false),
        (held(0xab, 5, 3), false),
        // Another change to the same version.
        (changed(0xab, 5, 2, 6), true),
        (changed(0xab, 5, 2, 8), true),
        (changed(0xab, 5, 3, 6), false),
        // Another one of the same name.
        (held(1, 4, 9), true),
        (held(0xab, 4, 9), true),
        // It was opened while the one that is kept was lost, by somebody else or by a late repeat.
        (held(1, 6, 1), true),
        (held(0xab, 6, 1), true),
        (held(1, 200, 1), true),
        (held(1, DAY_US + 99, 1), true),
        // By then it had expired, and was forgotten.
        (held(1, DAY_US + 100, 1), false),
        (was(0xab, 5), false),
        // A SpacetimeDB that was restored has opened it and forgotten it, and did not know of the one that is kept.
        (was(0xab, 6), true),
        (was(1, 6), true),
        (was(1, DAY_US + 100), false),
        // The same call has opened another one since.
        (was(0xab, 4), true),
        (was(1, 4), true),
        // An earlier release has forgotten it.
        (was(0xab, 0), false),
        (was(1, 0), true),
    ] {
        assert_eq!(assignment_comes_back(held, &kept, 7), comes, "{held:?}");
    }
    let ended = Document::Assignment(Assignment {
        has_ended: true,
        ..assignment()
    });
    // It is remembered until 100.
    for (held, comes) in [
        (held(1, 99, 1), true),
        (held(1, 100, 1), false),
        (held(0xab, 100, 1), false),
    ] {
        assert_eq!(assignment_comes_back(held, &ended, 7), comes, "{held:?}");
    }
    for (held, comes) in [
        (HeldName::Nothing, true),
        (held(3, 5, 9), true),
        (held(4, 5, 9), true),
        // It was opened when the name was free.
        (held(4, 100, 9), false),
        (held(3, 100, 9), false),
        (was(3, 5), false),
        (was(3, 6), false),
        (was(3, 4), true),
    ] {
        assert_eq!(assignment_comes_back(held, &forgotten(3), 7), comes, "{held:?}");
    }
    let capability = Document::Capability(capability());
    assert!(!assignment_comes_back(HeldName::Nothing, &capability, 7));
}

#[test]
fn what_nobody_would_know_by_now_does_not_come_back_and_is_forgotten_by_the_authority() {
    let ended = |deadline_at| {
        Document::Assignment(Assignment {
            has_ended: true,
            deadline_at,
            ..assignment()
        })
    };
    for (kept, over_at) in [
        (ended(50), 100),
        // An older copy takes changes of it until then.
        (ended(200), 200),
        // It expires at 100.
        (Document::Assignment(assignment()), DAY_US + 100),
        (forgotten(3), 100),
    ] {
        for (now, is_over) in [(over_at - 1, false), (over_at, true)] {
            assert_eq!(assignment_is_over(HeldName::Nothing, &kept, now), is_over, "{kept:?}");
            assert_eq!(
                assignment_comes_back(HeldName::Nothing, &kept, now),
                !is_over,
                "{kept:?}"
            );
        }
        assert!(!assignment_is_over(was(3, 5), &kept, over_at));
    }
    assert!(!assignment_is_over(
        HeldName::Nothing,
        &Document::Capability(capability()),
        100
    ));
}

#[test]
fn whoever_took_a_name_while_it_was_lost_does_not_keep_it() {
    let says = |is_same_user, version, content| {
        Some(HeldClaim {
            is_same_user,
            version,
            content: [content; 32],
            until: 100,
        })
    };
    let held = |is_same_user, version| says(is_same_user, version, 1);
    let shorter = |version| held(true, version).map(|held| HeldClaim { until: 99, ..held });
    for (held, now, comes) in [
        (None, 99, true),
        (None, 100, false),
        (held(true, 2), 99, true),
        (held(true, 3), 99, false),
        (held(true, 4), 99, false),
        (says(true, 3, 2), 99, true),
        (says(true, 4, 2), 99, false),
        (shorter(3), 98, true),
        (shorter(4), 98, true),
        (held(false, 9), 99, true),
        (held(false, 9), 100, false),
    ] {
        assert_eq!(
            capability_comes_back(held, &capability(), now),
            comes,
            "{held:?} at {now}"
        );
    }
    for (held, now, is_over) in [(None, 99, false), (None, 100, true), (held(true, 1), 100, false)] {
        assert_eq!(
            capability_is_over(held, &capability(), now),
            is_over,
            "{held:?} at {now}"
        );
    }
}
