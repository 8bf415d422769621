//! The database that the gate leads to: the one that the bridge names. While SpacetimeDB has another one in its place, the gate
//! lets nobody through.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use spacetime_sync_proto::DatabasePin;

use crate::request::asker;
use crate::serve::{Gate, No, bytes_of, not_found, reach};

/// What the bridge has said last.
#[derive(Debug, Default)]
pub(crate) struct Lead {
    /// `None`: whichever database has the name.
    pin: Mutex<Option<DatabasePin>>,
    /// Whether SpacetimeDB was seen to have another one.
    strays: AtomicBool,
}

impl Lead {
    fn pin(&self) -> Option<DatabasePin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Gate {
    /// The database that the gate leads to from now on.
    pub fn leads_to(&self, pin: Option<DatabasePin>) {
        let mut held = self.lead.pin.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != pin {
            self.lead.strays.store(false, Ordering::Relaxed);
            *held = pin;
        }
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
            StatusCode::OK => serde_json::from_slice(&bytes_of(answer).await).ok(),
            StatusCode::NOT_FOUND => None,
            _ => return Err(No::Unreached),
        };
        let found = found.as_ref().and_then(DatabasePin::from_answer);
        if found.as_ref() == Some(&pin) {
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
    let address = asker(&headers, peer.ip(), gate.config.behind_proxy);
    match gate.caller(&headers, address).await {
        Ok(_) => match gate.lead.pin().filter(|pin| name == pin.database_identity.as_str()) {
            Some(pin) => axum::Json(pin.to_answer()).into_response(),
            None => not_found(),
        },
        Err(no) => gate.answer(&no),
    }
}
