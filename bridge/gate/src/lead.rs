//! The database that the gate leads to: the one that the bridge names. While SpacetimeDB has another one in its place, the gate
//! lets nobody through.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use spacetime_sync_doors::asker::asker;
use spacetime_sync_proto::DatabasePin;

use crate::serve::{Gate, No, bytes_of, not_found, reach};

/// What the bridge has said last.
#[derive(Debug, Default)]
pub(crate) struct Lead {
    said: Mutex<Said>,
    /// Whether SpacetimeDB was seen to have another one.
    strays: AtomicBool,
}

#[derive(Debug, Default)]
struct Said {
    /// `None`: whichever database has the name.
    pin: Option<DatabasePin>,
    /// When the bridge was asked.
    as_of: Option<Instant>,
}

impl Lead {
    fn pin(&self) -> Option<DatabasePin> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).pin.clone()
    }
}

impl Gate {
    /// The database that the gate leads to, as the bridge has said when it was asked at `as_of`.
    pub fn leads_to(&self, pin: Option<DatabasePin>, as_of: Instant) {
        let mut said = self.lead.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.as_of.is_some_and(|newer| newer > as_of) {
            return;
        }
        said.as_of = Some(as_of);
        if said.pin == pin {
            return;
        }
        match (&said.pin, &pin) {
            (Some(before), Some(pin)) => {
                tracing::warn!("the bridge names another database: before {before}, now {pin}")
            }
            (Some(before), None) => tracing::warn!("the bridge names no database any more: before {before}"),
            (None, _) => {}
        }
        self.lead.strays.store(false, Ordering::Relaxed);
        said.pin = pin;
    }

    /// How SpacetimeDB knows the database that a client names: by its identity, if the bridge has said which one it is.
    /// `None` if the client wants another one.
    pub(crate) async fn address(&self, name: &str) -> Result<Option<String>, No> {
        let Some(pin) = self.lead.pin() else {
            return Ok((name == self.config.database).then(|| name.to_owned()));
        };
        if name != self.config.database && name != pin.database_identity.as_str() {
            return Ok(None);
        }
        let url = format!("{}/v1/database/{}", self.config.spacetimedb_uri, pin.database_identity);
        let answer = reach(self, self.server.get(url)).await?;
        let found = match answer.status() {
            StatusCode::OK => {
                let said = bytes_of(answer)
                    .await
                    .and_then(|body| serde_json::from_slice(&body).ok());
                let found = said.as_ref().and_then(DatabasePin::from_answer);
                // An answer that breaks off, or is another server's, says nothing about the database.
                Some(found.ok_or(No::Unreached)?)
            }
            StatusCode::NOT_FOUND => None,
            _ => return Err(No::Unreached),
        };
        if found.as_ref() == Some(&pin) {
            self.lead.strays.store(false, Ordering::Relaxed);
            return Ok(Some(pin.database_identity.to_string()));
        }
        if !self.lead.strays.swap(true, Ordering::Relaxed) {
            let found = found.map_or_else(|| "none of that identity".to_owned(), |found| found.to_string());
            tracing::error!(
                "database {:?} is not the one that the bridge names: expected {pin}, found {found}. Nobody is let through",
                self.config.database
            );
        }
        Err(No::Strayed)
    }
}

/// Which database this is, and whose. The gate compares that with SpacetimeDB itself, for every connection; so it answers with
/// what it knows, and SpacetimeDB hears nothing.
pub(crate) async fn about(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let asker = asker(&headers, peer.ip(), gate.config.proxy());
    match gate.caller(&headers, &asker.origin).await {
        Ok(_) => match gate.lead.pin().filter(|pin| name == pin.database_identity.as_str()) {
            Some(pin) => axum::Json(pin.to_answer()).into_response(),
            None => not_found(),
        },
        Err(no) => gate.answer(&no),
    }
}
