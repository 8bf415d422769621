//! Asks the bridge which sessions were revoked lately, and which database is the right one, again and again.
//!
//! The answer is always the whole list: of every session whose tokens could still be valid. So nothing is lost when the
//! gate or the bridge starts anew, and it does not matter in which order revocations were committed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Deserialize;
use spacetime_sync_proto::access::REVOKED_PATH;
use spacetime_sync_proto::{DatabasePin, Label, Secret, error_text};
use spacetime_sync_transport::Transport;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::serve::Gate;

/// How long one question may take. A bridge that is slow still says who was revoked; how old that is counts from the
/// question.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// When the next question follows one that is not answered. So a lost answer does not cost the second in which a
/// revocation must be known.
const PATIENCE: Duration = Duration::from_millis(500);
/// The most questions at a time.
const QUESTIONS: usize = 10;
/// Largest list: some hundred thousand sessions.
const LIST_BYTES: usize = 16 * 1024 * 1024;

#[derive(Deserialize)]
struct Told {
    revoked: HashSet<Label>,
    pin: Option<DatabasePin>,
}

/// Asks for as long as the process runs.
pub async fn watch(gate: &Gate, transport: &Transport, url: &str, token: &Secret, every: Duration) {
    let http = transport.http(url).timeout(ASK_LIMIT).build();
    // The options are constants, so this fails only where no client can be made at all.
    let http = http.expect("a client whose options are constants");
    let url = format!("{url}{REVOKED_PATH}");
    let mut questions = JoinSet::new();
    let (mut next, mut failing) = (Instant::now(), false);
    loop {
        tokio::select! {
            biased;
            Some(answered) = questions.join_next() => {
                // A question neither panics nor is cancelled.
                let Ok((asked_at, answer)) = answered else {
                    continue;
                };
                next = Instant::now() + every;
                match answer {
                    Ok(Told { revoked, pin }) => {
                        if failing {
                            tracing::info!("the bridge says again which sessions were revoked");
                        }
                        failing = false;
                        // First, because this may be the answer that opens the gate.
                        gate.leads_to(pin, asked_at);
                        gate.revoked(revoked, asked_at);
                    }
                    Err(why) => {
                        // One line for each outage.
                        if !failing {
                            tracing::warn!(why, "the bridge does not say which sessions were revoked");
                        }
                        failing = true;
                    }
                }
            }
            () = sleep_until(next.into()), if questions.len() < QUESTIONS => {
                let (http, url, token) = (http.clone(), url.clone(), token.clone());
                // The age of the list counts from the question, because what is revoked afterwards may not be in the
                // answer.
                let asked_at = Instant::now();
                questions.spawn(async move { (asked_at, ask(&http, &url, &token).await) });
                next = asked_at + PATIENCE.max(every);
            }
        }
    }
}

async fn ask(http: &reqwest::Client, url: &str, token: &Secret) -> Result<Told, String> {
    let text = |error: reqwest::Error| error_text(&error.without_url());
    let sent = http.get(url).bearer_auth(token.expose()).send().await;
    let mut response = sent.map_err(text)?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(text)? {
        if body.len() + chunk.len() > LIST_BYTES {
            return Err(format!("its answer has more than {LIST_BYTES} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|_| "its answer is not a list of sessions".to_owned())
}
