//! Takes a database back to an earlier time, as a restore from a backup does.

use std::time::Duration;

use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use tokio::time::Instant;

use super::{ClusterError, Database, sql_error};

/// How long sessions may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A copy of a database.
#[derive(Debug)]
pub struct Backup {
    of: String,
    name: String,
}

impl Database {
    /// Copies the database in its current state. This ends all its sessions.
    pub async fn back_up(&self) -> Result<Backup, ClusterError> {
        let name = format!("{}_backup", self.name);
        let end = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'",
            self.name
        );
        let create = format!("create database {name} template {} strategy wal_log", self.name);
        let deadline = Instant::now() + LIMIT;
        let mut connection = self.maintenance().await?;
        loop {
            connection
                .execute(&*end)
                .await
                .map_err(sql_error("cannot end sessions"))?;
            // Somebody may have reconnected meanwhile.
            match connection.execute(&*create).await {
                Ok(_) => break,
                Err(_) if Instant::now() < deadline => tokio::time::sleep(crate::STEP).await,
                Err(error) => return Err(sql_error("cannot back up")(error)),
            }
        }
        connection.close().await.map_err(sql_error("cannot disconnect"))?;
        Ok(Backup {
            of: self.name.clone(),
            name,
        })
    }

    /// Replaces the database with the backup. This ends all its sessions.
    pub async fn restore(&self, backup: Backup) -> Result<(), ClusterError> {
        assert_eq!(backup.of, self.name, "the backup is of another database");
        let mut connection = self.maintenance().await?;
        for statement in [
            format!("drop database {} with (force)", self.name),
            format!("alter database {} rename to {}", backup.name, self.name),
        ] {
            connection
                .execute(&*statement)
                .await
                .map_err(sql_error("cannot restore"))?;
        }
        connection.close().await.map_err(sql_error("cannot disconnect"))
    }

    async fn maintenance(&self) -> Result<sqlx::PgConnection, ClusterError> {
        let options: sqlx::postgres::PgConnectOptions = self.url.parse().map_err(sql_error("the url is malformed"))?;
        let options = options.database("postgres");
        options.connect().await.map_err(sql_error("cannot connect"))
    }
}
