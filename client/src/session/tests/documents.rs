//! Streams of documents: how they begin, and how the contents that they lack are fetched.

use bytes::Bytes;
use spacetime_sync_proto::PayloadHash;
use spacetime_sync_proto::document::{DocumentPage, Pointer};

use super::*;

/// A session whose streams all carry documents. Connected, and with nothing of them in the store.
fn case(streams: usize) -> (Case, ConnectionId) {
    let mut case = Case::within(streams, 3, |config| {
        config.history = History::At("http://bridge".to_owned());
        config.documents = std::mem::take(&mut config.streams);
    });
    let connection = case.dial();
    case.serve(connection);
    (case, connection)
}

fn pointer(key: &str) -> (String, Pointer) {
    let hash = PayloadHash::of(key.as_bytes());
    (key.to_owned(), Pointer { hash, bytes: 100_000 })
}

/// What the commands order, in short words.
fn ordered(commands: &[Command]) -> Vec<String> {
    let about = |question: &Question| match question {
        Question::Documents { at, after } => {
            let at = at.map_or_else(|| "?".to_owned(), |at| at.seq.to_string());
            format!("documents at {at} after {}", after.as_deref().unwrap_or("nothing"))
        }
        Question::Content(Content { key, .. }) => format!("content of {key}"),
        Question::Events(after) => format!("events after {}", after.seq),
        Question::Document => "document".to_owned(),
    };
    let show = |command: &Command| match command {
        Command::Ask {
            stream,
            about: question,
            ..
        } => Some(format!("{stream} asks for {}", about(question))),
        Command::Withdraw { .. } => Some("withdraws".to_owned()),
        Command::Apply { stream, work } => Some(match work {
            Work::Batch(batch) => format!("{stream} applies up to {}", batch.to.seq),
            Work::StartOver(_) => format!("{stream} starts over"),
            Work::Stage(staging) => format!("{stream} stages {}", staging.documents.len()),
            Work::Adopt(adoption) => format!("{stream} adopts at {}", adoption.at.seq),
            Work::NextPointer { after } => format!("{stream} looks after {}", after.as_deref().unwrap_or("nothing")),
            Work::Fill { content, .. } => format!("{stream} fills {}", content.key),
        }),
        Command::Read { stream, after, .. } => Some(format!("{stream} reads after {after}")),
        _ => None,
    };
    commands.iter().filter_map(show).collect()
}

fn questions(commands: &[Command]) -> Vec<QuestionId> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::Ask { question, .. } => Some(*question),
        _ => None,
    });
    asked.collect()
}

impl Case {
    fn done(&mut self, stream: usize, result: Applied) -> &[Command] {
        self.step(Event::Applied(Outcome {
            stream,
            released: 0,
            result,
        }))
    }

    fn reply_to(&mut self, question: QuestionId, stream: usize, answer: Answer) -> &[Command] {
        self.step(Event::Answered {
            question,
            stream,
            answer,
        })
    }

    /// The store has found the next pointer, or none. Returns the question that follows.
    fn found(&mut self, stream: usize, key: Option<&str>) -> Option<QuestionId> {
        let found = Applied::Pointer(Ok(key.map(pointer)));
        questions(self.done(stream, found)).pop()
    }

    fn has_content(&mut self, question: QuestionId, key: &str) -> Vec<String> {
        let content = Answer::Content(Some(Bytes::copy_from_slice(key.as_bytes())));
        ordered(self.reply_to(question, 0, content))
    }
}

#[test]
fn a_stream_begins_with_its_documents_and_goes_on_with_the_events_after_them() {
    let (mut case, _) = case(1);
    assert_eq!(
        ordered(&case.commands),
        ["0 looks after nothing", "0 asks for documents at ? after nothing"]
    );
    let question = questions(&case.commands)[0];
    let at = case.logs[0].at(2);
    let page = |next_after: Option<&str>| {
        Answer::Documents(Box::new(DocumentPage {
            at,
            documents: Vec::new(),
            next_after: next_after.map(str::to_owned),
            head_seq: at.seq,
        }))
    };
    let commands = case.reply_to(question, 0, page(Some("k:5")));
    assert_eq!(ordered(commands), ["0 stages 0", "0 asks for documents at 2 after k:5"]);
    let (question, fetch) = (questions(commands)[0], super::super::stream::FetchId(1));
    let commands = case.reply_to(question, 0, page(None));
    assert_eq!(ordered(commands), ["0 stages 0"], "two parts are not saved yet");
    assert_eq!(ordered(case.done(0, Applied::Staged(fetch))), [""; 0]);
    assert_eq!(ordered(case.done(0, Applied::Staged(fetch))), ["0 adopts at 2"]);
    let commands = case.done(0, Applied::StartedOver(at));
    assert_eq!(
        ordered(commands),
        ["0 reads after 2"],
        "the search for contents is under way already"
    );
    assert_eq!(case.session.counters().rebootstraps, 1);
}

#[test]
fn contents_are_fetched_one_after_the_other_and_what_cannot_be_had_is_tried_again_later() {
    let (mut case, connection) = case(1);
    let question = case.found(0, Some("a")).unwrap();
    assert_eq!(case.has_content(question, "a"), ["0 fills a"]);
    assert_eq!(
        ordered(case.done(0, Applied::Filled(Filled::Saved))),
        ["0 looks after a"]
    );
    // A newer version is on its way: the next one is not held up.
    let question = case.found(0, Some("b")).unwrap();
    assert_eq!(
        ordered(case.reply_to(question, 0, Answer::Content(None))),
        ["0 looks after b"]
    );
    let question = case.found(0, Some("c")).unwrap();
    assert_eq!(case.has_content(question, "c"), ["0 fills c"]);
    assert_eq!(
        ordered(case.done(0, Applied::Filled(Filled::Altered))),
        ["0 looks after c"]
    );
    assert_eq!(case.found(0, None), None);
    assert_eq!(ordered(&case.commands), [""; 0], "what is lacking waits");
    let later = case.stay(connection, 10 * second());
    assert_eq!(ordered(&later), ["0 looks after nothing"]);
    // A bridge that does not answer is left alone for a while, whatever else is lacking.
    let question = case.found(0, Some("b")).unwrap();
    let failed = Answer::Failed {
        message: "no".to_owned(),
        retry_after: Some(5 * second()),
    };
    assert_eq!(ordered(case.reply_to(question, 0, failed)), [""; 0]);
    assert_eq!(ordered(&case.stay(connection, 4 * second())), [""; 0]);
    assert_eq!(ordered(&case.stay(connection, 10 * second())), ["0 looks after b"]);
    let counters = case.session.counters();
    assert_eq!((counters.contents, counters.documents_refused), (1, 2));
}

#[test]
fn a_pointer_that_comes_while_others_are_fetched_is_fetched_as_well() {
    let (mut case, _) = case(1);
    let question = case.found(0, Some("x")).unwrap();
    let to = case.logs[0].at(1);
    case.done(
        0,
        Applied::DocumentsTo {
            to,
            have_pointers: true,
            refused: 0,
        },
    );
    case.has_content(question, "x");
    case.done(0, Applied::Filled(Filled::Saved));
    let found = Applied::Pointer(Ok(None));
    assert_eq!(
        ordered(case.done(0, found)),
        ["0 looks after nothing"],
        "once more from the beginning"
    );
    assert_eq!(case.found(0, None), None);
    assert_eq!(ordered(&case.commands), [""; 0]);
}

#[test]
fn few_contents_are_under_way_over_all_streams_and_a_slot_is_held_until_the_content_is_saved() {
    let (mut case, _) = case(3);
    let first = case.found(0, Some("a")).unwrap();
    case.found(1, Some("a")).unwrap();
    assert_eq!(case.found(2, Some("a")), None);
    assert_eq!(
        case.has_content(first, "a"),
        ["0 fills a"],
        "it is in memory until it is saved"
    );
    let commands = case.done(0, Applied::Filled(Filled::Saved));
    assert_eq!(ordered(commands), ["0 looks after a", "2 asks for content of a"]);
}

#[test]
fn a_lost_connection_ends_the_question_and_the_next_one_begins_the_search_again() {
    let (mut case, connection) = case(1);
    case.found(0, Some("a")).unwrap();
    let commands = case.close(connection);
    assert!(ordered(&commands).contains(&"withdraws".to_owned()), "{commands:?}");
    let connection = case.dial();
    case.serve(connection);
    assert!(ordered(&case.commands).contains(&"0 looks after nothing".to_owned()));
    assert!(case.found(0, Some("a")).is_some(), "its slot was freed");
}

#[test]
fn a_store_that_cannot_say_what_it_lacks_is_asked_again_later() {
    let (mut case, connection) = case(1);
    let failure = super::super::stream::ApplyFailure::Retry {
        message: "busy".to_owned(),
    };
    assert_eq!(ordered(case.done(0, Applied::Pointer(Err(failure)))), [""; 0]);
    assert_eq!(
        ordered(&case.stay(connection, 10 * second())),
        ["0 looks after nothing"]
    );
}

#[test]
fn a_page_that_leads_nowhere_ends_the_fetch_and_the_next_begins_after_growing_pauses() {
    let (mut case, connection) = case(1);
    let mut pauses = Vec::new();
    let mut question = questions(&case.commands)[0];
    for _ in 0..4 {
        let at = case.logs[0].at(2);
        let page = DocumentPage {
            at,
            documents: Vec::new(),
            next_after: Some("k:1".to_owned()),
            head_seq: at.seq,
        };
        let next = questions(case.reply_to(question, 0, Answer::Documents(Box::new(page.clone()))))[0];
        // It says the same again, as if the part had never been read.
        case.reply_to(next, 0, Answer::Documents(Box::new(page)));
        let since = case.now;
        question = (0..1_000)
            .find_map(|_| questions(&case.stay(connection, QUARTER)).pop())
            .unwrap();
        pauses.push(case.now - since);
    }
    assert!(pauses[3] > pauses[0] && pauses[3] > second(), "{pauses:?}");
}

#[test]
fn a_part_that_does_not_belong_to_the_fetch_ends_it() {
    use spacetime_sync_proto::document::{Document, DocumentState};

    let document = |key: &str, seq: u64| Document {
        key: key.to_owned(),
        version: 1,
        seq: Seq::new(seq).unwrap(),
        state: DocumentState::Deleted,
    };
    let sound = |case: &Case| DocumentPage {
        at: case.logs[0].at(2),
        documents: vec![document("k:6", 1), document("k:7", 2)],
        next_after: Some("k:9".to_owned()),
        head_seq: Seq::new(2).unwrap(),
    };
    type Change = fn(&mut DocumentPage, &Case);
    let changes: [(&str, bool, Change); 7] = [
        ("sound", true, |_, _| {}),
        ("another position", false, |page, case| {
            page.at.chain = case.logs[0].at(1).chain
        }),
        ("newer than the position", false, |page, _| {
            page.documents[0].seq = Seq::new(3).unwrap()
        }),
        ("out of order", false, |page, _| page.documents.reverse()),
        ("twice", false, |page, _| page.documents[1].key = "k:6".to_owned()),
        ("before what came", false, |page, _| {
            page.documents[0].key = "k:5".to_owned()
        }),
        ("past the head", false, |page, _| page.head_seq = Seq::new(1).unwrap()),
    ];
    for (what, goes_on, change) in changes {
        let (mut case, _) = case(1);
        let question = questions(&case.commands)[0];
        let first = DocumentPage {
            documents: Vec::new(),
            next_after: Some("k:5".to_owned()),
            ..sound(&case)
        };
        let next = questions(case.reply_to(question, 0, Answer::Documents(Box::new(first))))[0];
        let mut page = sound(&case);
        change(&mut page, &case);
        let ordered = ordered(case.reply_to(next, 0, Answer::Documents(Box::new(page))));
        assert_eq!(ordered == ["0 stages 2"], goes_on, "{what}: {ordered:?}");
    }
}

#[test]
fn an_answer_to_a_fetch_that_was_given_up_does_not_begin_the_next_one() {
    let (mut case, connection) = case(1);
    let at = case.logs[0].at(2);
    let page = |next_after: Option<&str>| {
        Answer::Documents(Box::new(DocumentPage {
            at,
            documents: Vec::new(),
            next_after: next_after.map(str::to_owned),
            head_seq: at.seq,
        }))
    };
    let first = questions(&case.commands)[0];
    let late = questions(case.reply_to(first, 0, page(Some("k:5"))))[0];
    // Events that were handed out before are not the bridge's: where the stream begins is asked for once more.
    let unproven = super::super::stream::ApplyFailure::Unproven {
        to: at.seq,
        why: crate::seal::Unproven::NoSeal,
    };
    assert_eq!(ordered(case.done(0, Applied::Failed(unproven))), [""; 0]);
    let later = ordered(&case.stay(connection, 10 * second()));
    assert_eq!(later, ["withdraws", "0 asks for documents at ? after nothing"]);
    assert_eq!(ordered(case.reply_to(late, 0, page(None))), [""; 0]);
}
