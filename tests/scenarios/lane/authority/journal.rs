//! What the authority keeps of what only SpacetimeDB decides.

use spacetime_sync_proto::journal::{JournalEntry, PAGE_BYTES, PAGE_ENTRIES};

use super::*;

fn entry(mark: u64, name: &str, document: &str) -> JournalEntry {
    JournalEntry {
        mark,
        key: format!("assignment/{name}"),
        document: document.to_owned(),
    }
}

async fn extent(connection: &mut PgConnection) -> (i64, i64) {
    let counted = "select x.entries, (select count(*) from runtime.sync_journal) from runtime.sync_journal_extent x";
    sqlx::query_as(counted).fetch_one(connection).await.unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, AuthorityError>, code: &str, class: RefusalClass) {
    let error = outcome.unwrap_err();
    assert_eq!(error.refusal(), Some(code), "{error}");
    assert_eq!(error.class(), class);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_kept_once_and_nothing_older_replaces_it() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    let begun = authority.begin_journal().await.unwrap();
    assert_eq!((begun.turn, begun.newest), (1, 0));
    assert_eq!(begun.epoch, authority.epoch().await.unwrap().epoch);
    let keep = async |entries: &[JournalEntry], to| authority.keep_journal(1, entries, to).await;
    let first = [entry(2, "a", "a1"), entry(5, "b", "b1")];
    for _ in 0..2 {
        keep(&first, 6).await.unwrap();
        assert_eq!(authority.kept_journal(0).await.unwrap(), first);
        assert_eq!(extent(&mut connection).await, (2, 2));
    }
    // What is newer replaces it, what is gone goes, and what comes too late does neither.
    let second = [
        entry(7, "a", "a2"),
        entry(8, "b", ""),
        entry(9, "c", "c1"),
        entry(10, "d", ""),
    ];
    let held = [second[0].clone(), second[2].clone()];
    for pages in [[&second[..], &first[..1]], [&second[..], &[]]] {
        for page in pages {
            keep(page, 10).await.unwrap();
        }
        assert_eq!(authority.kept_journal(0).await.unwrap(), held);
        assert_eq!(extent(&mut connection).await, (2, 2));
    }
    keep(&[entry(6, "a", ""), entry(7, "c", "")], 7).await.unwrap();
    assert_eq!(authority.kept_journal(0).await.unwrap(), held);
    assert_eq!(authority.kept_journal(7).await.unwrap(), held[1..]);
    assert!(authority.kept_journal(9).await.unwrap().is_empty());
    // A page of a link that is gone comes too late.
    let begun = authority.begin_journal().await.unwrap();
    assert_eq!((begun.turn, begun.newest), (2, 10));
    refused(keep(&[entry(11, "a", "a3")], 11).await, "SY010", RefusalClass::Retry);
    authority.keep_journal(2, &[], 20).await.unwrap();
    assert_eq!(authority.begin_journal().await.unwrap().newest, 20);
    assert_eq!(authority.kept_journal(0).await.unwrap(), held);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_bounded() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    let turn = authority.begin_journal().await.unwrap().turn;
    connection
        .execute("update runtime.sync_journal_extent set most = 2")
        .await
        .unwrap();
    let keep = async |entries: &[JournalEntry]| authority.keep_journal(turn, entries, 9).await;
    keep(&[entry(1, "a", "x"), entry(2, "b", "x")]).await.unwrap();
    refused(keep(&[entry(3, "c", "x")]).await, "SY009", RefusalClass::Reject);
    assert_eq!(extent(&mut connection).await, (2, 2));
    // What is there may change, and what is gone makes room.
    keep(&[entry(3, "a", "y")]).await.unwrap();
    keep(&[entry(4, "b", ""), entry(5, "c", "x")]).await.unwrap();
    assert_eq!(extent(&mut connection).await, (2, 2));
    for (key, document) in [("k".repeat(513), "x".to_owned()), ("k".to_owned(), "x".repeat(131_073))] {
        let wrong = JournalEntry { mark: 6, key, document };
        assert!(keep(&[entry(5, "c", ""), wrong]).await.is_err());
    }
    assert_eq!(extent(&mut connection).await, (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_read_in_bounded_pages() {
    let (_database, authority) = setup().await;
    let turn = authority.begin_journal().await.unwrap().turn;
    let small = PAGE_ENTRIES as u64 + 10;
    let entries: Vec<_> = (1..=small).map(|n| entry(n, &n.to_string(), "x")).collect();
    for page in entries.chunks(PAGE_ENTRIES) {
        authority.keep_journal(turn, page, small).await.unwrap();
    }
    let large = "x".repeat(100_000);
    let more: Vec<_> = (small + 1..small + 7)
        .map(|n| entry(n, &n.to_string(), &large))
        .collect();
    authority.keep_journal(turn, &more, small + 6).await.unwrap();
    let (mut after, mut read) = (0, 0);
    loop {
        let page = authority.kept_journal(after).await.unwrap();
        let Some(last) = page.last() else { break };
        let bytes: usize = page.iter().map(|entry| entry.document.len()).sum();
        assert!(page.len() <= PAGE_ENTRIES && bytes <= PAGE_BYTES, "{bytes}");
        (after, read) = (last.mark, read + page.len() as u64);
    }
    assert_eq!(read, small + 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_another_history_is_forgotten_page_by_page() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    let turn = authority.begin_journal().await.unwrap().turn;
    let entries: Vec<_> = (1..=2 * PAGE_ENTRIES as u64)
        .map(|n| entry(n, &n.to_string(), "x"))
        .collect();
    for page in entries.chunks(PAGE_ENTRIES) {
        authority.keep_journal(turn, page, 600).await.unwrap();
    }
    assert_eq!(authority.forget_journal(turn).await.unwrap(), 0);
    connection
        .execute("update runtime.sync_epoch set epoch = gen_random_uuid()")
        .await
        .unwrap();
    // What this turn keeps is of the history in which it began, and so nothing of it is forgotten.
    authority
        .keep_journal(turn, &[entry(600, "600", "z")], 600)
        .await
        .unwrap();
    assert_eq!(authority.forget_journal(turn).await.unwrap(), 0);
    let old = turn;
    let turn = authority.begin_journal().await.unwrap().turn;
    assert!(
        authority.forget_journal(old).await.is_err(),
        "another link keeps the journal"
    );
    let anew = [entry(601, "1", "y"), entry(602, "2", "y")];
    authority.keep_journal(turn, &anew, 602).await.unwrap();
    let mut gone = Vec::new();
    while gone.last() != Some(&0) {
        gone.push(authority.forget_journal(turn).await.unwrap());
    }
    assert_eq!(gone, [256, 255, 0]);
    assert_eq!(authority.kept_journal(0).await.unwrap(), anew);
    assert_eq!(extent(&mut connection).await, (2, 2));
}
