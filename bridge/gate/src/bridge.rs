//! Asks the bridge which sessions were revoked lately, again and again.
//!
//! The answer is always the whole list: of every session whose tokens could still be valid. So nothing is lost when the
//! gate or the bridge starts anew, and it does not matter in which order revocations were committed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Deserialize;
use spacetime_sync_proto::access::REVOKED_PATH;
use spacetime_sync_proto::{Label, Secret, error_text};

use crate::serve::Gate;

/// How long one question may take. The next one follows at once, so a lost answer does not cost the second in which a
/// revocation must be known.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// Largest list: some hundred thousand sessions.
const LIST_BYTES: usize = 16 * 1024 * 1024;

#[derive(Deserialize)]
struct Revoked {
    revoked: HashSet<Label>,
}

/// Asks for as long as the process runs.
pub async fn watch(gate: &Gate, url: &str, token: &Secret, every: Duration) {
    let http = reqwest::Client::builder()
        .timeout(ASK_LIMIT)
        .redirect(reqwest::redirect::Policy::none())
        .build();
    // The options are constants, so this fails only where no client can be made at all.
    let http = http.expect("a client whose options are constants");
    let url = format!("{url}{REVOKED_PATH}");
    let mut failing = false;
    loop {
        // The age of the list counts from the question, because what is revoked afterwards may not be in the answer.
        let asked_at = Instant::now();
        match ask(&http, &url, token).await {
            Ok(revoked) => {
                if failing {
                    tracing::info!("the bridge says again which sessions were revoked");
                }
                failing = false;
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
        tokio::time::sleep(every).await;
    }
}

async fn ask(http: &reqwest::Client, url: &str, token: &Secret) -> Result<HashSet<Label>, String> {
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
    let list: Revoked = serde_json::from_slice(&body).map_err(|_| "its answer is not a list of sessions".to_owned())?;
    Ok(list.revoked)
}
