//! What becomes of a table's documents when its columns, its key or its name are unusual or change, and when others write meanwhile.

use super::*;

/// The entities of a projection that have a document.
async fn documents(connection: &mut PgConnection, projection: &str) -> Vec<String> {
    sqlx::query_scalar(
        "select entity_id from runtime.sync_documents where projection = $1 and document is not null order by entity_id",
    )
    .bind(projection)
    .fetch_all(connection)
    .await
    .unwrap()
}

async fn compare(connection: &mut PgConnection, projection: &str) {
    for nth in 0..4 {
        sqlx::query("select runtime.sync_reproject($1, 100, $2)")
            .bind(projection)
            .bind(nth == 0)
            .execute(&mut *connection)
            .await
            .unwrap();
    }
}

/// Until a session waits for a lock.
async fn until_it_waits(owner: &mut PgConnection, pid: i32) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let waits: bool = sqlx::query_scalar(
            "select coalesce((select wait_event_type = 'Lock' from pg_stat_activity where pid = $1), false)",
        )
        .bind(pid)
        .fetch_one(&mut *owner)
        .await
        .unwrap();
        if waits {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "it does not wait");
    }
}

async fn pid(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(connection)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_may_have_any_name() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (n int primary key, o text, r int, d int, p int, k int, e int, c int, g int, document text,
                 key text, nth int);
             insert into public.items values (1, 'x', 3);
             select runtime.sync_attach('public.items', stream => 's');
             insert into public.items values (2, 'x', 3); update public.items set o = 'y'; delete from public.items where n = 1;
             create type public.mood as enum ('sad', 'ok');
             alter table public.items add column \"new_rows\" public.mood default 'ok';
             insert into public.items values (3, 'x', 3); update public.items set r = 7, n = n + 10;
             delete from public.items where n = 13",
        )
        .await
        .unwrap();
    compare(&mut owner, "public.items").await;
    let differences = "select count(*) from public.items i
        full join (select * from runtime.sync_documents where document is not null) t on t.entity_id = i.n::text
        where t.document is distinct from to_jsonb(i.*)";
    assert_eq!(number(&mut owner, differences).await, 0);
    assert_eq!(documents(&mut owner, "public.items").await, ["12"]);
}

/// The end of a transaction reads each change once, because it holds the locks of streams.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_many_statements_commits_soon() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (id int primary key);
             select runtime.sync_attach('public.items', stream => 's')",
        )
        .await
        .unwrap();
    let many = |statement: &str| format!("begin; do $$ begin for nth in 1..8000 loop {statement}; end loop; end $$");
    for statement in [
        "insert into public.items values (nth)",
        "delete from public.items where id = nth",
    ] {
        owner.execute(&*many(statement)).await.unwrap();
        tokio::time::timeout(SOON, owner.execute("commit"))
            .await
            .expect(statement)
            .unwrap();
    }
    assert_eq!(told(&mut owner, "s").await.len(), 16_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_table_has_no_documents_of_the_same_transaction() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (id int primary key);
             select runtime.sync_attach('public.items', stream => 's');
             insert into public.items values (1);
             begin; insert into public.items values (7); truncate public.items; insert into public.items values (8); commit",
        )
        .await
        .unwrap();
    assert_eq!(documents(&mut owner, "public.items").await, ["8"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_lost_a_column_is_refused_until_the_table_is_attached_again() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (a int, b int, primary key (a, b));
             select runtime.sync_attach('public.items', stream => 's');
             insert into public.items values (1, 1), (2, 1);
             alter table public.items rename column a to first",
        )
        .await
        .unwrap();
    for write in [
        "insert into public.items values (3, 1)",
        "update public.items set b = 5",
    ] {
        let (code, message) = refusal(&mut owner, write).await;
        assert_eq!(code, "SY016", "{write}: {message}");
    }
    let compared = "select runtime.sync_reproject('public.items', 10, true)";
    assert_eq!(refusal(&mut owner, compared).await.0, "SY015");
    owner
        .execute("select runtime.sync_attach('public.items', stream => 's'); insert into public.items values (3, 1)")
        .await
        .unwrap();
    assert_eq!(documents(&mut owner, "public.items").await, ["1:1", "2:1", "3:1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_rows_have_other_names_is_not_attached() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.whole (id int primary key) partition by range (id);
             create table public.part partition of public.whole for values from (0) to (10);
             create table public.parent (id int primary key);
             create table public.child (primary key (id)) inherits (public.parent);
             create table public.listed (id int[] primary key);
             create table public.plain (id int primary key)",
        )
        .await
        .unwrap();
    for (table, expected) in [
        ("whole", "42809"),
        ("part", "42809"),
        ("parent", "42809"),
        ("child", "42809"),
        ("listed", "SY015"),
    ] {
        let attach = format!("select runtime.sync_attach('public.{table}', stream => 's')");
        let (code, message) = refusal(&mut owner, &attach).await;
        assert_eq!(code, expected, "{table}: {message}");
    }
    // It would not see what others have committed once it has locked.
    let early = "begin isolation level repeatable read; select runtime.sync_attach('public.plain', stream => 's')";
    assert_eq!(refusal(&mut owner, early).await.0, "25001");
    owner.execute("rollback").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_or_another_name_leaves_no_documents_behind() {
    let database = database().await;
    let mut owner = owner(&database).await;
    owner
        .execute(
            "create table public.items (id int primary key, code text not null unique);
             insert into public.items values (1, 'a'), (2, 'b');
             select runtime.sync_attach('public.items', stream => 's');
             select runtime.sync_attach('public.items', stream => 's', key => '{code}')",
        )
        .await
        .unwrap();
    assert_eq!(documents(&mut owner, "public.items").await, ["a", "b"]);
    // Whoever follows its documents knows them by the name that it had.
    owner
        .execute(
            "alter table public.items rename to things;
             select runtime.sync_attach('public.things', stream => 's', key => '{code}');
             insert into public.things values (3, 'c')",
        )
        .await
        .unwrap();
    assert_eq!(documents(&mut owner, "public.items").await, ["a", "b", "c"]);
    assert_eq!(documents(&mut owner, "public.things").await, Vec::<String>::new());
    let other =
        "create table public.items (id int primary key); select runtime.sync_attach('public.items', stream => 's')";
    assert_eq!(refusal(&mut owner, other).await.0, "SY014");
}

/// What is held is read again once its stream is locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_beside_a_comparison_decides_by_what_the_comparison_has_committed() {
    let database = database().await;
    let mut owner = owner(&database).await;
    // One change, which looks as if nothing were different; one document that moves, and two of one transaction.
    for (write, stream, kind) in [
        ("update public.items set note = 'x' where id = 1", "s.a", "document.put"),
        ("delete from public.items where id = 2", "s.b", "document.delete"),
        ("delete from public.items where id >= 3", "s.b", "document.delete"),
    ] {
        owner
            .execute(
                "drop table if exists public.items;
                 create table public.items (id int primary key, at text not null, note text);
                 insert into public.items values (1, 'a', 'x'), (2, 'a', 'x'), (3, 'a', 'x'), (4, 'a', 'x');
                 select runtime.sync_attach('public.items', stream => 's.{at}');
                 alter table public.items disable trigger all;
                 update public.items set note = 'y' where id = 1; update public.items set at = 'b' where id > 1;
                 alter table public.items enable trigger all",
            )
            .await
            .unwrap();
        let mut comparing = super::owner(&database).await;
        comparing
            .execute("begin; select runtime.sync_reproject('public.items', 100, true)")
            .await
            .unwrap();
        let mut writer = super::owner(&database).await;
        let pid = pid(&mut writer).await;
        let writing = tokio::spawn(async move { writer.execute(write).await.map(|_| ()) });
        until_it_waits(&mut owner, pid).await;
        comparing.execute("commit").await.unwrap();
        writing.await.unwrap().unwrap();
        let differences = "select count(*) from public.items i
            full join (select * from runtime.sync_documents where document is not null) t on t.entity_id = i.id::text
            where t.document is distinct from to_jsonb(i.*)";
        assert_eq!(number(&mut owner, differences).await, 0, "{write}");
        let told = told(&mut owner, stream).await;
        assert_eq!(told.last().unwrap().0, kind, "{write}");
    }
}

/// Two projectors of one document that name two streams wait for no common lock.
#[tokio::test(flavor = "multi_thread")]
async fn projectors_of_two_streams_do_not_go_backwards() {
    let database = database().await;
    let mut owner = owner(&database).await;
    let (mut first, mut second) = (super::owner(&database).await, super::owner(&database).await);
    let project = |entity: &str, seq: u32, stream: &str| {
        format!("select runtime.sync_project('fleet_workers', '{entity}', {seq}, '{{}}', '{stream}')")
    };
    // Nothing is held, and then something is that moves on meanwhile.
    owner.execute(&*project("moving", 1, "s.a")).await.unwrap();
    for (entity, expected) in [("new", "40001"), ("moving", "SY012")] {
        first
            .execute(&*format!("begin; {}", project(entity, 5, "s.b")))
            .await
            .unwrap();
        let pid = pid(&mut second).await;
        let late = project(entity, 4, "s.c");
        let writing = tokio::spawn(async move { (refusal(&mut second, &late).await, second) });
        until_it_waits(&mut owner, pid).await;
        first.execute("commit").await.unwrap();
        let ((code, message), connection) = writing.await.unwrap();
        second = connection;
        assert_eq!(code, expected, "{entity}: {message}");
        let held = format!("select doc_version from runtime.sync_fleet_workers where entity_id = '{entity}'");
        assert_eq!(number(&mut owner, &held).await, 5);
    }
}
