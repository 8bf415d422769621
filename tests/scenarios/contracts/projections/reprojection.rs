//! `spacetime-sync reproject`: a table's documents compared with its rows.

use std::process::{Command, Stdio};

use spacetime_sync_tests::lane::Lane;
use spacetime_sync_tests::process::built;
use spacetime_sync_tests::tool;

use super::*;

/// A table with more rows than attaching brings in.
const ROWS: u32 = 20_000;

async fn attached(connection: &mut PgConnection) {
    let statements = format!(
        "create table public.items (id int primary key, name text not null);
         insert into public.items select g, 'item ' || g from generate_series(1, {ROWS}) g;
         select runtime.sync_attach('public.items', stream => 'shop.items')"
    );
    connection.execute(&*statements).await.unwrap();
}

fn reproject(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(built("spacetime-sync"));
    command
        .args(["reproject", "public.items", "--authority-url", url])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Documents that are not what the rows are, and rows without one.
const DIFFERENCES: &str = "
    select count(*) from public.items i
      full join (select * from runtime.sync_documents where projection = 'public.items' and document is not null) d
        on d.entity_id = i.id::text
      where d.document is distinct from to_jsonb(i)";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_reprojection_goes_on_where_it_was_while_the_lane_runs() {
    let lane = Lane::start().await.unwrap();
    let mut owner = owner(&lane.database).await;
    attached(&mut owner).await;
    let (operator, url) = lane.database.login(&["spacetime_sync_runtime"]).await.unwrap();
    owner
        .execute(&*format!("grant select, trigger on public.items to {operator}"))
        .await
        .unwrap();
    let brought = number(&mut owner, "select count(*) from runtime.sync_documents").await;
    assert!((1..i64::from(ROWS)).contains(&brought), "{brought}");

    let items = stream("shop.items");
    let bridge = lane.bridge().unwrap();
    let mut client = lane.client(std::slice::from_ref(&items)).await.unwrap();
    client.start().unwrap();

    // Slow enough that it is killed on its way.
    let mut first = reproject(&url, &["--per-second", "2000", "--page", "100"])
        .spawn()
        .unwrap();
    let looked =
        "select looked_at from runtime.sync_reprojections where projection = 'public.items' and phase = 'rows'";
    let before = number(&mut owner, looked).await;
    let deadline = std::time::Instant::now() + SOON;
    while number(&mut owner, looked).await < before + 500 {
        assert!(std::time::Instant::now() < deadline, "it looked at nothing");
        assert!(first.try_wait().unwrap().is_none(), "it ended too early");
        // A writer goes on meanwhile, and waits for no more than a page.
        owner
            .execute("update public.items set name = name || '.' where id % 1000 = 7")
            .await
            .unwrap();
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let at = number(&mut owner, looked).await;
    let rows = number(&mut owner, DIFFERENCES).await;
    assert!(rows > 0, "it was done before it was killed");

    let again = [
        "reproject",
        "public.items",
        "--authority-url",
        &url,
        "--per-second",
        "1000000",
    ];
    let second = tool::run("spacetime-sync", &again, &[]).await;
    assert!(
        second.stderr.contains("goes on where an earlier run was stopped"),
        "{}",
        second.stderr
    );
    second.good();
    assert_eq!(number(&mut owner, DIFFERENCES).await, 0);
    // It did not begin again: each row was looked at once, and each document.
    let total = number(
        &mut owner,
        "select looked_at from runtime.sync_reprojections where phase = 'done'",
    )
    .await;
    assert!(at < total && total <= i64::from(2 * ROWS) + 1_000, "{at} {total}");

    let head = number(
        &mut owner,
        "select head_seq from runtime.sync_streams where stream_id = 'shop.items'",
    )
    .await;
    client
        .until_applied(u64::try_from(head).unwrap(), 2 * SOON)
        .await
        .unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());
    assert_eq!(bridge.stop().await.unwrap(), 0);

    // Whoever runs it again finds nothing to do.
    let third = tool::run(
        "spacetime-sync",
        &["reproject", "public.items", "--authority-url", &url],
        &[],
    )
    .await;
    let said = third.good();
    assert!(said.ends_with(", 0 events\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_brings_in_what_no_trigger_saw() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (id int primary key, name text not null);
             insert into public.items select g, 'item' from generate_series(1, 50) g;
             select runtime.sync_attach('public.items', stream => 'shop.items');
             alter table public.items disable trigger all;
             delete from public.items where id <= 5;
             update public.items set name = 'other' where id between 6 and 8;
             insert into public.items values (99, 'new');
             alter table public.items enable trigger all",
        )
        .await
        .unwrap();
    assert_eq!(number(&mut owner, DIFFERENCES).await, 9);
    let done = tool::run(
        "spacetime-sync",
        &[
            "reproject",
            "public.items",
            "--authority-url",
            database.url(),
            "--page",
            "7",
            "--per-second",
            "100000",
        ],
        &[],
    )
    .await;
    assert_eq!(done.good(), "public.items: looked at 97 rows and documents, 9 events\n");
    assert_eq!(number(&mut owner, DIFFERENCES).await, 0);
    assert_eq!(told(&mut owner, "shop.items").await.len(), 59);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_cannot_do_it_says() {
    let database = database().await;
    let mut owner = owner(&database).await;
    for (projection, said) in [
        ("public.nothing", "is not known"),
        ("run_summaries", "is a projector's"),
    ] {
        let ended = tool::run(
            "spacetime-sync",
            &["reproject", projection, "--authority-url", database.url()],
            &[],
        )
        .await;
        ended.failed(1, &["SY014", said]);
    }
    // A role that may not read the table cannot reproject it.
    attached(&mut owner).await;
    let (_, url) = database.login(&["spacetime_sync_runtime"]).await.unwrap();
    let ended = tool::run(
        "spacetime-sync",
        &["reproject", "public.items", "--authority-url", &url],
        &[],
    )
    .await;
    ended.failed(1, &["denies access"]);
}
