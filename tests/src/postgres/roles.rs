//! Roles that log in with few rights. Roles belong to the whole server, so their names are random.

use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use super::{ClusterError, Database, sql_error};

impl Database {
    /// A new role that may log in, as a member of these roles. Returns its name and the url with which it logs in.
    pub async fn login(&self, roles: &[&str]) -> Result<(String, String), ClusterError> {
        self.login_with("", roles).await
    }

    /// Like [`login`](Self::login), with attributes such as `createrole`.
    pub async fn login_with(&self, attributes: &str, roles: &[&str]) -> Result<(String, String), ClusterError> {
        let name = format!("sync_login_{:016x}", rand::random::<u64>());
        let mut connection = PgConnection::connect(&self.url)
            .await
            .map_err(sql_error("cannot connect"))?;
        let mut statement = format!("create role {name} login password '{name}' {attributes};");
        for role in roles {
            statement.push_str(&format!("grant {role} to {name};"));
        }
        connection
            .execute(&*statement)
            .await
            .map_err(sql_error("cannot create a role"))?;
        connection.close().await.map_err(sql_error("cannot disconnect"))?;
        self.forget_with_it(&name);
        let options: sqlx::postgres::PgConnectOptions = self.url.parse().map_err(sql_error("the url is malformed"))?;
        let url = options.username(&name).password(&name).to_url_lossy().to_string();
        Ok((name, url))
    }
}
