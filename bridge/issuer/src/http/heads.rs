//! `POST /api/sync/heads`: where streams end in the authority, for clients that may read them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::response::{IntoResponse as _, Json, Response};
use spacetime_sync_lane::Report;
use spacetime_sync_proto::heads::{Heads, HeadsRequest};
use spacetime_sync_proto::{RefusalCode, limit};

use super::Desk;
use super::reading::{reader, told, turn_of};
use crate::denial::Denial;
use crate::json::object;

/// Largest body: so many of the longest names, each in quotes and with a comma.
const BODY_BYTES: usize = (limit::HEADS + limit::REPORTED) * (limit::STREAM_ID_BYTES + 4) + 64;

pub(super) async fn heads(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let answer = async {
        let (reader, desk) = reader(desk.as_deref(), peer, &parts.headers).await?;
        let HeadsRequest { mut streams, reported } = read(body).await?;
        for stream_id in reported {
            if reader.may_read(&stream_id).is_ok() {
                let session_id = reader.session().session_id.clone();
                // If there is no room, the client reports it again.
                let _ = desk.reports.try_send(Report { stream_id, session_id });
            }
        }
        // A stream that the token does not cover is missing in the answer, as one that does not exist is.
        streams.retain(|stream_id| reader.may_read(stream_id).is_ok());
        let turn = turn_of(&desk.histories, &reader).await?;
        let heads = desk.histories.heads(&turn, &streams).await?;
        Ok(Json(Heads { heads }).into_response())
    };
    answer.await.unwrap_or_else(told)
}

fn invalid(message: String) -> Denial {
    Denial::new(RefusalCode::InvalidRequest, message)
}

async fn read(body: Body) -> Result<HeadsRequest, Denial> {
    let bytes = to_bytes(body, BODY_BYTES)
        .await
        .map_err(|_| invalid(format!("the body is missing or longer than {BODY_BYTES} bytes")))?;
    question(&bytes)
}

/// Reads a client's question.
pub fn question(body: &[u8]) -> Result<HeadsRequest, Denial> {
    let request: HeadsRequest = object(body).map_err(|error| {
        invalid(format!(
            "the body is not a request for heads (line {}, column {}): expected an object with streams, a list of names",
            error.line(),
            error.column()
        ))
    })?;
    for (named, most) in [(&request.streams, limit::HEADS), (&request.reported, limit::REPORTED)] {
        if named.len() > most {
            return Err(invalid(format!(
                "expected at most {most} streams, found {}",
                named.len()
            )));
        }
    }
    Ok(request)
}
