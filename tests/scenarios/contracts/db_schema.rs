//! The document of the authority's schema.

use spacetime_sync_tests::db_schema::describe;
use spacetime_sync_tests::postgres::Cluster;
use sqlx::{Connection as _, PgConnection};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/DB_SCHEMA.md");

#[tokio::test(flavor = "multi_thread")]
async fn the_document_of_the_schema_is_what_the_migrations_make() {
    let database = Cluster::shared().await.create_database().await.unwrap();
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let made = describe(&mut connection).await.unwrap();
    let written = std::fs::read_to_string(DOCUMENT).unwrap();
    let differing = made
        .lines()
        .zip(written.lines())
        .find(|(made, written)| made != written);
    assert!(
        made == written,
        "docs/DB_SCHEMA.md differs, first in {differing:?}; write it anew: target/release/db-schema > docs/DB_SCHEMA.md"
    );
    // The leads are views that nobody may comment.
    let bare = made
        .lines()
        .filter(|line| line.ends_with("|  |") && !line.starts_with("| `lead` |"));
    assert_eq!(bare.collect::<Vec<_>>(), Vec::<&str>::new(), "without a comment");
}
