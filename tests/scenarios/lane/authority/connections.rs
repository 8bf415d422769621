//! What happens to a bridge whose database does not fit, or goes away.

use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_incompatible_database_is_refused_with_advice() {
    let cluster = Cluster::shared().await;
    let database = cluster.create_empty_database().await.unwrap();
    let error = Authority::connect(database.url(), 1).await.unwrap_err();
    assert!(
        matches!(error, AuthorityError::NotMigrated { found: 0, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("spacetime-sync migrate"), "{error}");
    assert_eq!(error.class(), RefusalClass::Fatal);

    // Two migrations at once, and one more: all are harmless.
    let (one, two) = tokio::join!(Authority::migrate(database.url()), Authority::migrate(database.url()));
    one.unwrap();
    two.unwrap();
    Authority::migrate(database.url()).await.unwrap();
    Authority::connect(database.url(), 1).await.unwrap();

    let mut connection = client(&database).await;
    let application_ledger: bool = sqlx::query_scalar("select to_regclass('public._sqlx_migrations') is not null")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(!application_ledger);

    connection
        .execute("update spacetime_sync._sqlx_migrations set checksum = '\\x00' where version = 1")
        .await
        .unwrap();
    let error = Authority::connect(database.url(), 1).await.unwrap_err();
    assert!(
        matches!(error, AuthorityError::ForeignMigration { version: 1, .. }),
        "{error:?}"
    );

    connection
        .execute(
            "insert into spacetime_sync._sqlx_migrations (version, description, success, checksum, execution_time)
             select 9999, 'from later', true, '\\x00', 0;
             delete from spacetime_sync._sqlx_migrations where version < 9999",
        )
        .await
        .unwrap();
    for error in [
        Authority::connect(database.url(), 1).await.unwrap_err(),
        Authority::migrate(database.url()).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, AuthorityError::NewerSchema { found: 9999, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("upgrade the bridge"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_next_release_is_one_to_work_with_while_that_says_so() {
    let cluster = Cluster::shared().await;
    let database = cluster.create_empty_database().await.unwrap();
    Authority::migrate(database.url()).await.unwrap();
    let mut connection = client(&database).await;
    let next = "insert into spacetime_sync._sqlx_migrations (version, description, success, checksum, execution_time)
         select 9999, 'of the next release', true, '\\x00', 0";
    connection.execute(next).await.unwrap();
    let newest = SCHEMA_VERSION;
    for (migration, oldest, newest, is_good) in [
        (9_999, newest, newest + 1, true),
        // Noted before somebody applied another migration.
        (9_998, newest, newest + 1, false),
        (9_999, newest + 1, newest + 2, false),
    ] {
        let noted = format!(
            r#"{{"migration":{migration},"protocol":"{PROTOCOL}","oldest":{oldest},"newest":{newest},"more":1}}"#
        );
        connection
            .execute(&*format!(
                "comment on table spacetime_sync._sqlx_migrations is '{noted}'"
            ))
            .await
            .unwrap();
        let connected = Authority::connect(database.url(), 1).await.map(drop);
        let migrated = Authority::migrate(database.url()).await;
        for ended in [connected, migrated] {
            match ended {
                Ok(()) => assert!(is_good, "{noted}"),
                Err(error) => assert!(
                    !is_good && matches!(error, AuthorityError::NewerSchema { found: 9_999, .. }),
                    "{noted}: {error:?}"
                ),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_bridge_leads_when_the_first_one_is_gone() {
    let (database, authority) = setup().await;
    let mut first = authority.try_lead().await.unwrap().expect("the lead is free");
    assert!(authority.try_lead().await.unwrap().is_none());
    let mut connection = client(&database).await;
    connection
        .execute(
            "select pg_terminate_backend(pid) from pg_locks
             where relation = 'runtime.sync_lead'::regclass
               and database = (select oid from pg_database where datname = current_database())",
        )
        .await
        .unwrap();
    // A bridge that waits for other things too starts this wait again and again.
    eventually("the loss of the lead", async || {
        timeout(Duration::from_millis(20), first.lost()).await.is_ok()
    })
    .await;
    let second = authority.try_lead().await.unwrap().expect("the lead is free");
    second.release().await;
    eventually("the lead, given up", async || {
        authority.try_lead().await.unwrap().is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_survives_a_kill_of_postgres() {
    let cluster = Cluster::start().await.unwrap();
    if !cluster.can_be_killed() {
        return;
    }
    let database = cluster.create_database().await.unwrap();
    let authority = Authority::connect(database.url(), 4).await.unwrap();
    let id = stream("s");
    authority.append_batch(&id, &numbered(1, 100)).await.unwrap();
    let mut lead = authority.try_lead().await.unwrap().unwrap();
    cluster.kill().unwrap();
    timeout(SOON, lead.lost()).await.unwrap();
    let error = authority.append(&id, &numbered(101, 101)[0]).await.unwrap_err();
    assert_eq!(error.class(), RefusalClass::Retry, "{error:?}");
    cluster.restart().await.unwrap();
    let again = numbered(101, 101);
    eventually("an append after the restart", async || {
        match authority.append(&id, &again[0]).await {
            Ok(at) => at == seq(101),
            Err(error) => {
                assert_eq!(error.class(), RefusalClass::Retry, "{error:?}");
                false
            }
        }
    })
    .await;
    assert_eq!(verified_log(&authority, &id).await.len(), 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_during_a_call_is_of_class_retry() {
    let (database, _) = setup().await;
    let Some(addr) = Cluster::shared().await.addr() else {
        return;
    };
    let proxy = Proxy::start(addr).await.unwrap();
    let authority = Authority::connect(&database.url_at(proxy.addr()).unwrap(), 1)
        .await
        .unwrap();
    let id = stream("s");
    // The first call prepares the statement, so that the second one is a single round trip.
    authority.append(&id, &numbered(1, 1)[0]).await.unwrap();
    proxy.stall(Direction::ToClient);
    let call = tokio::spawn({
        let (authority, id) = (authority.clone(), id.clone());
        async move { authority.append(&id, &numbered(2, 2)[0]).await }
    });
    // The append is committed, but its answer is held back, so the caller cannot know.
    let direct = Authority::connect(database.url(), 1).await.unwrap();
    eventually("the append", async || {
        direct.position(&id).await.unwrap().unwrap().head_seq == seq(2)
    })
    .await;
    proxy.refuse().await;
    proxy.cut();
    let error = timeout(SOON, call).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.class(), RefusalClass::Retry, "{error:?}");
    proxy.resume(Direction::ToClient);
    proxy.accept().await;
    eventually(
        "the repeat",
        async || matches!(authority.append(&id, &numbered(2, 2)[0]).await, Ok(at) if at == seq(2)),
    )
    .await;
    assert_eq!(verified_log(&authority, &id).await.len(), 2);
}
