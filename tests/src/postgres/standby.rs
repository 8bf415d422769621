//! A second server that streams from the first and can take over: each commit waits until both have it on disk.

use std::time::Instant;

use sqlx::{Connection, Executor, PgConnection};

use super::server::Own;
use super::{Cluster, ClusterError, START_LIMIT, sql_error};
use crate::process::Environment;

impl Cluster {
    /// Starts a standby. From now on this server commits nothing that the standby does not have.
    pub async fn start_standby(&self) -> Result<Self, ClusterError> {
        let own = self.own.as_ref().ok_or(ClusterError::NotOurs)?;
        let Some(parent) = own.folder.path().parent().map(ToOwned::to_owned) else {
            return Err(ClusterError::NotOurs);
        };
        let copy = [
            "--host=127.0.0.1".to_owned(),
            format!("--port={}", own.port),
            "--username=postgres".to_owned(),
            "--write-recovery-conf".to_owned(),
            "--wal-method=stream".to_owned(),
            "--checkpoint=fast".to_owned(),
            "--no-sync".to_owned(),
        ];
        let standby = Self::of(move || Own::create(&parent, Environment::new(), "pg_basebackup", &copy)).await?;
        // Set after the copy. Otherwise the promoted standby would itself wait for a standby.
        let mut primary = PgConnection::connect(&self.url)
            .await
            .map_err(sql_error("cannot connect"))?;
        for statement in [
            "alter system set synchronous_standby_names = '*'",
            "select pg_reload_conf()",
        ] {
            let done = primary.execute(statement).await;
            done.map_err(sql_error("cannot make commits wait for the standby"))?;
        }
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let streams: i64 = sqlx::query_scalar("select count(*) from pg_stat_replication where sync_state = 'sync'")
                .fetch_one(&mut primary)
                .await
                .map_err(sql_error("cannot ask for the standby"))?;
            if streams > 0 {
                return Ok(standby);
            }
            if Instant::now() > deadline {
                let log = standby.own.as_ref().map(Own::log).unwrap_or_default();
                return Err(ClusterError::NotUp { log });
            }
            tokio::time::sleep(crate::STEP).await;
        }
    }

    /// Promotes this standby, and returns when it accepts writes.
    pub async fn promote(&self) -> Result<(), ClusterError> {
        let mut standby = PgConnection::connect(&self.url)
            .await
            .map_err(sql_error("cannot connect"))?;
        let promoted: bool = sqlx::query_scalar("select pg_promote(true, 30)")
            .fetch_one(&mut standby)
            .await
            .map_err(sql_error("cannot promote the standby"))?;
        if !promoted {
            let log = self.own.as_ref().map(Own::log).unwrap_or_default();
            return Err(ClusterError::NotUp { log });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_promoted_standby_has_every_commit_of_the_primary() {
        let primary = Cluster::start().await.unwrap();
        if !primary.can_be_killed() {
            return;
        }
        let database = primary.create_empty_database().await.unwrap();
        let standby = primary.start_standby().await.unwrap();
        let mut connection = PgConnection::connect(database.url()).await.unwrap();
        connection.execute("create table kept as select 7 as n").await.unwrap();
        primary.kill().unwrap();
        let url = database.url_at(standby.addr().unwrap()).unwrap();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        assert!(connection.execute("insert into kept values (8)").await.is_err());
        standby.promote().await.unwrap();
        connection.execute("insert into kept values (8)").await.unwrap();
        let sum: i64 = sqlx::query_scalar("select sum(n) from kept")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(sum, 15);
    }
}
