//! Prints docs/DB_SCHEMA.md, for a fresh database with the migrations of this tree.

use std::io::Write as _;

use anyhow::Context as _;
use spacetime_sync_tests::db_schema::describe;
use spacetime_sync_tests::postgres::Cluster;
use sqlx::Connection as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let database = cluster.create_database().await?;
    let mut connection = sqlx::PgConnection::connect(database.url()).await?;
    let text = describe(&mut connection).await?;
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")
}
