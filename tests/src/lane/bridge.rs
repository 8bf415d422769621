//! A running bridge, as an operator sees it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use spacetime_sync_proto::access::REVOKE_PATH;

use crate::issuing::ADMIN;
use crate::process::Process;
use crate::until;

/// How long a bridge may take until it handles SIGTERM.
const START: Duration = Duration::from_secs(30);
/// How long a bridge may take to stop.
const STOP: Duration = Duration::from_secs(30);
/// A running bridge.
#[derive(Debug)]
pub struct Bridge {
    /// The process.
    pub process: Process,
    pub(super) http: String,
}

impl Bridge {
    /// `http://host:port` of the bridge's HTTP server.
    pub fn url(&self) -> &str {
        &self.http
    }

    /// Where its HTTP server listens.
    pub fn addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.http.trim_start_matches("http://").parse()?)
    }

    /// The status (whether it is a success) and the JSON body at a path such as `/healthz`.
    pub async fn ask(&self, path: &str) -> anyhow::Result<(bool, Value)> {
        let response = self.get(path).await?;
        Ok((response.status().is_success(), response.json().await?))
    }

    /// The text at a path.
    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        Ok(self.get(path).await?.text().await?)
    }

    /// Asks as the operator. A bridge without an admin credential tells everybody on its machine the same.
    async fn get(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        let request = reqwest::Client::new().get(format!("{}{path}", self.http));
        request.bearer_auth(ADMIN).send().await
    }

    /// Waits until an answer satisfies the condition.
    pub async fn until(
        &self,
        path: &str,
        limit: Duration,
        wanted: impl Fn(bool, &Value) -> bool,
    ) -> anyhow::Result<Value> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let answer = self.ask(path).await;
            if let Ok((good, body)) = &answer
                && wanted(*good, body)
            {
                return Ok(body.clone());
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "{path} did not answer as expected, last answer: {answer:?}"
            );
            tokio::time::sleep(crate::STEP).await;
        }
    }

    /// The metrics.
    pub async fn metrics(&self) -> anyhow::Result<Value> {
        Ok(self.ask("/internal/v1/spacetime/sync/metrics").await?.1)
    }

    /// Revokes a session as an admin.
    pub async fn revoke(&self, session: &str) -> anyhow::Result<()> {
        let body = json!({ "session_ids": [session], "reason": "a probe" });
        let request = reqwest::Client::new().post(format!("{}{REVOKE_PATH}", self.http));
        request
            .bearer_auth(ADMIN)
            .json(&body)
            .send()
            .await?
            .error_for_status()?;
        Ok(())
    }

    /// Sends SIGTERM as soon as the bridge handles it, and returns the exit code.
    pub async fn stop(&self) -> anyhow::Result<i32> {
        let listens = until(START, || {
            self.process.handles(Signal::TERM) || !self.process.is_running()
        });
        anyhow::ensure!(listens.await, "the bridge did not start within {START:?}");
        self.process.signal(Signal::TERM);
        let ended = self.process.ended(STOP).await.context("the bridge did not stop")?;
        ended.code().context("the bridge was killed")
    }
}
