//! The HTTP API of a SpacetimeDB server: what publishing, configuring and checking need.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use spacetime_sync_proto::access::Compatibility;
use spacetime_sync_proto::contract::{Contract, ContractRow};
use spacetime_sync_proto::{DatabasePin, Refusal, error_text};

use super::StdbError;
use spacetime_sync_proto::Secret;
use spacetime_sync_transport::Transport;

/// How long a request may take, except publishing.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// How long publishing may take: the server compiles the module.
const PUBLISH_LIMIT: Duration = Duration::from_secs(180);
/// The HTTP status with which the server passes on an error of the reducer itself.
const REDUCER_ERROR: u16 = 530;

/// An identity of a server, and the token that proves it.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The identity in hex.
    pub identity: String,
    /// The bearer token.
    pub token: Secret,
}

/// One database of a server, over HTTP.
#[derive(Debug, Clone)]
pub struct Admin {
    http: reqwest::Client,
    uri: String,
    database: String,
    token: Secret,
}

/// How much an update may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaking {
    /// Allow only changes that no connected client notices.
    Refuse,
    /// Also allow changes that disconnect clients.
    DisconnectClients,
    /// Delete everything in the database, and set it up again.
    DeleteData,
}

/// What publishing a module over the running one would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The database does not exist yet.
    New,
    /// The server can migrate the data automatically.
    Update {
        /// The changes, in the server's words.
        changes: String,
        /// Whether the update would disconnect every client.
        breaks_clients: bool,
        /// Proof that the caller has seen this plan. The server demands it before it disconnects clients.
        token: String,
    },
    /// The server cannot migrate the data.
    Impossible {
        /// Why, in the server's words.
        reason: String,
    },
}

impl Admin {
    /// Talks to one database with the token of the caller.
    pub fn new(uri: &str, database: &str, token: Secret) -> Self {
        Self::over(&Transport::default(), uri, database, token)
    }

    /// Like [`new`](Self::new), with another transport than the default.
    pub fn over(transport: &Transport, uri: &str, database: &str, token: Secret) -> Self {
        // The options are constants, so this fails only where no client can be made at all.
        let http = transport.http(uri).build();
        Self {
            http: http.expect("a client whose options are constants"),
            uri: uri.trim_end_matches('/').to_owned(),
            database: database.to_owned(),
            token,
        }
    }

    /// The same database with another token, over the same connections.
    #[must_use]
    pub fn with_token(&self, token: Secret) -> Self {
        Self { token, ..self.clone() }
    }

    /// The same server with another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// `http://…` of the server.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Asks a server for a new identity.
    pub async fn new_identity(uri: &str) -> Result<Credential, StdbError> {
        Self::new_identity_over(&Transport::default(), uri).await
    }

    /// Like [`new_identity`](Self::new_identity), with another transport than the default.
    pub async fn new_identity_over(transport: &Transport, uri: &str) -> Result<Credential, StdbError> {
        let admin = Self::over(transport, uri, "", Secret::from(String::new()));
        let request = admin
            .http
            .post(format!("{}/v1/identity", admin.uri))
            .timeout(REQUEST_LIMIT);
        let answer: Value = admin.json(admin.send("identity", request).await?, "identity").await?;
        match (answer["identity"].as_str(), answer["token"].as_str()) {
            (Some(identity), Some(token)) => Ok(Credential {
                identity: identity.to_owned(),
                token: Secret::from(token.to_owned()),
            }),
            _ => Err(admin.unexpected("identity", "an answer without identity and token".to_owned())),
        }
    }

    /// Checks that the database exists, and runs our module of a release that this one works with. Returns the schema
    /// version that both speak. When it returns, everything that the server answered before is durable.
    pub async fn check_contract(&self) -> Result<u32, StdbError> {
        let foreign = |message: String| StdbError::ForeignModule {
            database: self.database.clone(),
            message,
        };
        let request = self
            .request(Method::POST, "/sql")
            .query(&[("confirmed", "true")])
            .body("SELECT * FROM sync_contract");
        let response = self.send("the contract", request).await?;
        if response.status() == StatusCode::BAD_REQUEST {
            return Err(foreign(text(response).await));
        }
        let answer: Value = self
            .json(self.success("the contract", response).await?, "the contract")
            .await?;
        let rows = answer[0]["rows"].as_array().into_iter().flatten();
        let Some(found) = Contract::of_rows(rows.filter_map(contract_row)) else {
            return Err(foreign("its table sync_contract says no version".to_owned()));
        };
        let ours = Contract::ours();
        ours.agree(&found).map_err(|mismatch| StdbError::ContractMismatch {
            database: self.database.clone(),
            found: Box::new(found),
            ours: Box::new(ours),
            mismatch,
        })
    }

    /// Sets how many rows a query of anybody but the owner may scan, by SpacetimeDB's estimate.
    pub async fn set_row_limit(&self, rows: u64) -> Result<(), StdbError> {
        let request = self
            .request(Method::POST, "/sql")
            .body(format!("SET row_limit = {rows}"));
        let response = self.send("the row limit", request).await?;
        self.success("the row limit", response).await.map(|_| ())
    }

    /// The module's schema. `None` if the database does not exist.
    pub async fn schema(&self) -> Result<Option<Value>, StdbError> {
        let request = self.request(Method::GET, "/schema").query(&[("version", "9")]);
        match self.send("the schema", request).await {
            Ok(response) => Ok(Some(
                self.json(self.success("the schema", response).await?, "the schema")
                    .await?,
            )),
            Err(StdbError::NoDatabase { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The identities of the database and of its owner. Anybody may ask.
    pub async fn pin(&self) -> Result<DatabasePin, StdbError> {
        const WHAT: &str = "which database it is";
        let response = self.send(WHAT, self.request(Method::GET, "")).await?;
        let answer: Value = self.json(self.success(WHAT, response).await?, WHAT).await?;
        DatabasePin::from_answer(&answer).ok_or_else(|| self.unexpected(WHAT, answer.to_string()))
    }

    /// Asks what publishing a module would change, without doing it.
    pub async fn plan(&self, wasm: Vec<u8>) -> Result<Plan, StdbError> {
        const WHAT: &str = "the plan";
        let request = self
            .request(Method::POST, "/pre_publish")
            .query(&[("style", "NoColor")])
            .timeout(PUBLISH_LIMIT)
            .body(wasm);
        let answer: Value = match self.send(WHAT, request).await {
            Ok(response) => self.json(self.success(WHAT, response).await?, WHAT).await?,
            Err(StdbError::NoDatabase { .. }) => return Ok(Plan::New),
            Err(error) => return Err(error),
        };
        if let Some(reason) = answer["ManualMigrate"]["reason"].as_str() {
            return Ok(Plan::Impossible {
                reason: reason.trim().to_owned(),
            });
        }
        let plan = &answer["AutoMigrate"];
        match (
            plan["migrate_plan"].as_str(),
            plan["break_clients"].as_bool(),
            plan["token"].as_str(),
        ) {
            (Some(changes), Some(breaks_clients), Some(token)) => Ok(Plan::Update {
                changes: changes.trim().to_owned(),
                breaks_clients,
                token: token.to_owned(),
            }),
            _ => Err(self.unexpected(WHAT, answer.to_string())),
        }
    }

    /// Creates the database with a module, or updates it. Fails before anything changes if the update breaks more than
    /// `breaking` allows.
    pub async fn publish(&self, wasm: Vec<u8>, breaking: Breaking) -> Result<(), StdbError> {
        let mut request = self.request(Method::PUT, "").timeout(PUBLISH_LIMIT);
        if breaking == Breaking::DeleteData {
            request = request.query(&[("clear", "true")]);
        } else {
            match self.plan(wasm.clone()).await? {
                // Without a policy the server itself refuses to disconnect clients.
                Plan::New
                | Plan::Update {
                    breaks_clients: false, ..
                } => {}
                Plan::Update { token, .. } if breaking == Breaking::DisconnectClients => {
                    request = request.query(&[("policy", "BreakClients"), ("token", &token)]);
                }
                Plan::Update { changes, .. } => {
                    return Err(StdbError::BreaksClients {
                        database: self.database.clone(),
                        plan: changes,
                    });
                }
                Plan::Impossible { reason } => {
                    return Err(StdbError::NeedsDeletion {
                        database: self.database.clone(),
                        reason,
                    });
                }
            }
        }
        let response = self.send("publish", request.body(wasm)).await?;
        self.success("publish", response).await.map(|_| ())
    }

    /// Tells the module which identity is the bridge. `key_secret` is hex; an empty one keeps the secret that is set.
    pub async fn configure(&self, bridge: &str, key_secret: &str) -> Result<(), StdbError> {
        self.call("configure", json!([{ "__identity__": prefixed(bridge) }, key_secret]))
            .await
    }

    /// Tells the module whose tokens to trust, and how often to look for sessions that have ended.
    pub async fn trust_issuer(&self, issuer: &str, audience: &str, sweep_every_ms: u32) -> Result<(), StdbError> {
        self.call("trust_issuer", json!([issuer, audience, sweep_every_ms]))
            .await
    }

    /// Tells the module which clients to accept.
    pub async fn set_compatibility(&self, compatibility: &Compatibility) -> Result<(), StdbError> {
        let arguments = json!([
            compatibility.min_client_build_id,
            compatibility.max_client_build_id,
            compatibility.min_schema_version,
            compatibility.max_schema_version,
        ]);
        self.call("set_compatibility", arguments).await
    }

    /// Calls a reducer.
    pub async fn call(&self, reducer: &'static str, arguments: Value) -> Result<(), StdbError> {
        let request = self.request(Method::POST, &format!("/call/{reducer}")).json(&arguments);
        let response = self.send(reducer, request).await?;
        if response.status().as_u16() == REDUCER_ERROR {
            let text = text(response).await;
            return Err(match Refusal::from_wire(&text) {
                Some(refusal) => StdbError::Refused(refusal),
                None => self.unexpected(reducer, text),
            });
        }
        self.success(reducer, response).await.map(|_| ())
    }

    /// The rows that a query finds.
    pub(super) async fn rows(&self, query: &str) -> Result<Vec<Value>, StdbError> {
        let request = self.request(Method::POST, "/sql").body(query.to_owned());
        let response = self.success("a query", self.send("a query", request).await?).await?;
        let mut answer: Value = self.json(response, "a query").await?;
        match answer[0]["rows"].take() {
            Value::Array(rows) => Ok(rows),
            other => Err(self.unexpected("a query", other.to_string())),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/v1/database/{}{path}", self.uri, self.database);
        let request = self.http.request(method, url).timeout(REQUEST_LIMIT);
        match self.token.expose() {
            // The server takes whoever shows none for anybody.
            "" => request,
            token => request.bearer_auth(token),
        }
    }

    /// Sends a request, and handles the errors that all routes share.
    async fn send(&self, what: &'static str, request: RequestBuilder) -> Result<Response, StdbError> {
        let response = request.send().await.map_err(|error| self.transport(what, &error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Err(StdbError::Unauthorized {
                uri: self.uri.clone(),
                message: text(response).await,
            }),
            StatusCode::FORBIDDEN => Err(self.forbidden(text(response).await)),
            StatusCode::NOT_FOUND => {
                let message = text(response).await;
                if is_about_a_function(&message) {
                    Err(StdbError::ForeignModule {
                        database: self.database.clone(),
                        message,
                    })
                } else {
                    Err(StdbError::NoDatabase {
                        uri: self.uri.clone(),
                        database: self.database.clone(),
                    })
                }
            }
            _ => Ok(response),
        }
    }

    /// A 403 is the server's own, or what the module's `client_connected` says about the caller.
    fn forbidden(&self, message: String) -> StdbError {
        let database = self.database.clone();
        match Refusal::from_wire(&message) {
            Some(refusal) => StdbError::NotLetIn { database, refusal },
            None => StdbError::Forbidden {
                uri: self.uri.clone(),
                database,
                message,
            },
        }
    }

    async fn success(&self, what: &'static str, response: Response) -> Result<Response, StdbError> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        Err(self.unexpected(what, format!("{status}: {}", text(response).await)))
    }

    async fn json(&self, response: Response, what: &'static str) -> Result<Value, StdbError> {
        response.json().await.map_err(|error| self.transport(what, &error))
    }

    fn transport(&self, what: &'static str, error: &reqwest::Error) -> StdbError {
        if error.is_timeout() {
            return StdbError::TimedOut {
                uri: self.uri.clone(),
                what,
            };
        }
        StdbError::Unavailable {
            uri: self.uri.clone(),
            message: error_text(error),
        }
    }

    pub(super) fn unexpected(&self, what: &'static str, message: String) -> StdbError {
        StdbError::Unexpected {
            uri: self.uri.clone(),
            what,
            message,
        }
    }
}

/// Reads a row of `sync_contract`.
fn contract_row(row: &Value) -> Option<ContractRow> {
    Some(ContractRow {
        id: u8::try_from(row[0].as_u64()?).ok()?,
        protocol: row[1].as_str()?.to_owned(),
        schema_version: u32::try_from(row[2].as_u64()?).ok()?,
        schema_hash: row[3].as_str()?.to_owned(),
    })
}

async fn text(response: Response) -> String {
    response
        .text()
        .await
        .unwrap_or_else(|error| format!("(unreadable: {error})"))
}

/// Whether a 404 is about a missing function. The server looks for a procedure when it finds no reducer, so both texts
/// occur. A 404 about a database quotes the database's name, which may contain anything.
fn is_about_a_function(message: &str) -> bool {
    message
        .split_whitespace()
        .any(|word| matches!(word, "reducer" | "procedure"))
}

pub(super) fn prefixed(identity: &str) -> String {
    format!("0x{}", identity.trim_start_matches("0x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_database_is_not_mistaken_for_a_missing_function() {
        for (message, expected) in [
            ("no such reducer", true),
            ("No such procedure", true),
            ("`reducer-lab` not found", false),
            ("`procedure` not found", false),
            ("No such database.", false),
        ] {
            assert_eq!(is_about_a_function(message), expected, "{message}");
        }
    }
}
