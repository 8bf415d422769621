//! Drill: SpacetimeDB loses everything, again and again, while several clients open, take and finish assignments.
//!
//! What the authority kept before a wipe must be there again before anybody can change it, at least at the version that was
//! kept. What was told to a client and is lost nevertheless must have been told in the last moments before the wipe; the drill
//! measures how long before. Nobody else may be told that the same assignment is theirs, unless it was lost in that way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use spacetime_sync_client::rusqlite::Transaction;
use spacetime_sync_client::{
    AssignmentState, CallError, Capability, ChangeAssignment, ClientConfig, Credential, Event, HandlerError,
    HttpTokens, OpenAssignment, SqliteStore, StreamId, SyncClient, TokenError,
};
use spacetime_sync_stdb::admin::Breaking;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::stage::{Setting, Stage};
use crate::{Record, Scale, stale};
use spacetime_sync_tests::issuing::BUILD;

const REQUESTERS: usize = 2;
const PROVIDERS: usize = 3;
/// The time between two assignments of a requester, and how many it opens at most: all that the module holds of one.
const PACE: Duration = Duration::from_millis(200);
const OPENED: usize = 60;
/// How long a client repeats a call.
const WITHIN: Duration = Duration::from_secs(20);
/// Within this time every call must have an outcome.
const OUTCOME: Duration = Duration::from_secs(40);
/// How soon the module must accept changes again, and the authority keep everything.
const SOON: Duration = Duration::from_secs(30);
/// Only what was told so shortly before a wipe may be lost.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// What a client was told: that an assignment has this version, by its own call.
#[derive(Debug, Clone)]
struct Told {
    request: String,
    version: u64,
    /// Who has it. Empty if it was opened.
    provider: String,
    at: Instant,
}

#[derive(Debug, Default)]
struct Heard {
    told: Vec<Told>,
    refused: u64,
    /// Calls of which the client says that it does not know whether they were made.
    uncertain: u64,
    /// Calls without any outcome.
    silent: u64,
}

#[derive(Debug, Clone, Default)]
struct Tally(Arc<Mutex<Heard>>);

impl Tally {
    fn with<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the outcome of a call, and notes it. Returns whether it was made.
    async fn hears(&self, call: impl Future<Output = Result<(), CallError>>, told: Told) -> bool {
        let outcome = tokio::time::timeout(OUTCOME, call).await;
        self.with(|heard| match outcome {
            Ok(Ok(())) => {
                heard.told.push(Told {
                    at: Instant::now(),
                    ..told
                });
                true
            }
            Ok(Err(CallError::Refused(_))) => {
                heard.refused += 1;
                false
            }
            Ok(Err(_)) => {
                heard.uncertain += 1;
                false
            }
            Err(_) => {
                heard.silent += 1;
                false
            }
        })
    }
}

pub(super) fn with_tokens() -> Setting {
    stale::with_history()
}

pub(super) async fn assignments(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    let (tally, mut tasks) = (Tally::default(), JoinSet::new());
    let (stop, stopped) = watch::channel(false);
    stage.lane.allow("everyone", &["runtime.run.*"]).await?;
    for nth in 0..PROVIDERS {
        let user = format!("maker-{nth}");
        let policy = format!("insert into runtime.sync_scope_policy values ('user:{user}', 'sync.provider')");
        stage.lane.sql(&policy).await?;
        let client = client(stage, &user)?;
        client
            .publish_capability(gpu(nth), WITHIN)
            .await
            .context("no capability is published")?;
        tasks.spawn(provide(client, nth, tally.clone(), stopped.clone()));
    }
    for nth in 0..REQUESTERS {
        let client = client(stage, &format!("asker-{nth}"))?;
        tasks.spawn(request(client, nth, tally.clone(), stopped.clone()));
    }
    let mut wipes = Vec::new();
    let (mut came_back, mut reopened) = (0, Duration::ZERO);
    for _ in 0..scale.faults.max(2) {
        stage.pause().await;
        let (kept, begun) = (kept(stage).await?, Instant::now());
        stage.lane.publish(Breaking::DeleteData).await?;
        let ended = Instant::now();
        wipes.push((begun, ended));
        record.fault("spacetimedb wiped under live assignments");
        until("the module accepts changes", async || {
            Ok(stage.lane.accepts_changes().await)
        })
        .await?;
        reopened = reopened.max(ended.elapsed());
        came_back += kept.len();
        is_there(stage, &kept).await?;
        stage.recovers(record, ended).await?;
    }
    stop.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    until("the authority keeps everything", async || {
        let waiting = stage.lane.rows("SELECT mark FROM journal_mark", false).await?;
        Ok(waiting.is_empty())
    })
    .await?;
    judge(stage, &tally, &wipes, record).await?;
    record.figure("assignments_brought_back", came_back);
    record.figure("changes_refused_for_ms", reopened.as_millis() as u64);
    Ok(())
}

fn gpu(nth: usize) -> Capability {
    Capability {
        provider_id: format!("p{nth}"),
        capability: "gpu".to_owned(),
        version: 1,
        price_hint_sats: 21,
        region: String::new(),
        document: "{}".to_owned(),
        stands_for: Duration::from_secs(3_600),
    }
}

/// A client of this user, in this process.
fn client(stage: &Stage, user: &str) -> anyhow::Result<SyncClient> {
    let credential = stage.lane.keys()?.session(user, &format!("session-of-{user}"));
    let tokens = HttpTokens::new(stage.bridge.url(), move || {
        let credential = credential.clone();
        async move { Ok::<_, TokenError>(credential) }
    })?;
    let mut config = ClientConfig::new(
        stage.lane.server.uri(),
        &stage.lane.name,
        vec![stage.streams[0].clone()],
    );
    config.credential = Credential::provider(tokens);
    config.client_build_id = BUILD.to_owned();
    (config.assigns, config.provides) = (true, true);
    let store = SqliteStore::open(stage.lane.path(&format!("{user}.sqlite")))?;
    let handler = |_: &mut Transaction<'_>, _: &StreamId, _: &[Event]| Ok::<(), HandlerError>(());
    Ok(SyncClient::start(config, store, handler)?)
}

/// Opens one assignment after another.
async fn request(client: SyncClient, nth: usize, tally: Tally, mut stop: watch::Receiver<bool>) {
    for number in 0..OPENED {
        let request = format!("r{nth}-{number}");
        let opening = OpenAssignment {
            request_id: request.clone(),
            provider_id: None,
            document: format!(r#"{{"job":{number}}}"#),
            deadline: Duration::from_secs(3_600),
        };
        let told = Told {
            request,
            version: 1,
            provider: String::new(),
            at: Instant::now(),
        };
        tally.hears(client.open_assignment(opening, WITHIN), told).await;
        if tokio::time::timeout(PACE, stop.wait_for(|stop| *stop)).await.is_ok() {
            break;
        }
    }
    client.stop().await;
}

/// Takes every assignment that it sees open, and leaves each in another state.
async fn provide(client: SyncClient, nth: usize, tally: Tally, mut stop: watch::Receiver<bool>) {
    let provider = format!("p{nth}");
    let mut seen = client.assignments();
    loop {
        let open: Vec<(String, u64)> = {
            let seen = seen.borrow_and_update();
            let open = seen.rows.iter().filter(|(_, row)| row.state == AssignmentState::Open);
            open.map(|(request, row)| (request.clone(), row.version)).collect()
        };
        for (request, version) in open {
            let steps = [
                AssignmentState::Accepted,
                AssignmentState::Running,
                AssignmentState::Succeeded,
            ];
            // How far it gets depends on its name.
            let most = 1 + request.bytes().map(usize::from).sum::<usize>() % steps.len();
            for (step, to) in steps.into_iter().take(most).enumerate() {
                let expected_version = version + step as u64;
                let change = ChangeAssignment {
                    request_id: request.clone(),
                    update_id: format!("{provider}-{expected_version}-{to}"),
                    expected_version,
                    to,
                    provider_id: Some(provider.clone()),
                    document: None,
                };
                let told = Told {
                    request: request.clone(),
                    version: expected_version + 1,
                    provider: provider.clone(),
                    at: Instant::now(),
                };
                if !tally.hears(client.change_assignment(change, WITHIN), told).await {
                    break;
                }
            }
        }
        tokio::select! {
            stopped = stop.wait_for(|stop| *stop) => {
                drop(stopped);
                break;
            }
            changed = seen.changed() => if changed.is_err() { break },
        }
    }
    client.stop().await;
}

/// An assignment: its version, its status, and who has it.
type Assignment = (u64, String, String);

/// The assignments that the authority keeps.
async fn kept(stage: &Stage) -> anyhow::Result<BTreeMap<String, Assignment>> {
    let (mut all, mut after) = (BTreeMap::new(), 0);
    loop {
        let page = stage.lane.authority.kept_journal(after).await?;
        let Some(last) = page.last() else { return Ok(all) };
        after = last.mark;
        for entry in page {
            let document: Value = serde_json::from_str(&entry.document)?;
            let (Some(request), assignment) = (entry.key.strip_prefix("assignment/"), &document["assignment"]) else {
                continue;
            };
            if let Some(version) = assignment["version"].as_u64() {
                let text = |field: &str| assignment[field].as_str().unwrap_or_default().to_owned();
                all.insert(request.to_owned(), (version, text("status"), text("provider_id")));
            }
        }
    }
}

/// The assignments that the module holds.
async fn held(stage: &Stage) -> anyhow::Result<BTreeMap<String, Assignment>> {
    let query = "SELECT request_id, version, status, provider_id FROM compute_assignment";
    let rows = stage.lane.rows(query, false).await?;
    let row = |row: &Value| {
        let text = |at: usize| row[at].as_str().unwrap_or_default().to_owned();
        (text(0), (row[1].as_u64().unwrap_or_default(), text(2), text(3)))
    };
    Ok(rows.iter().map(row).collect())
}

/// Everything that was kept is there, and nothing is older than it was kept.
async fn is_there(stage: &Stage, kept: &BTreeMap<String, Assignment>) -> anyhow::Result<()> {
    let held = held(stage).await?;
    for (request, was) in kept {
        let is = held
            .get(request)
            .with_context(|| format!("{request} was kept as {was:?}, and is lost"))?;
        anyhow::ensure!(
            is.0 > was.0 || is == was,
            "{request} was kept as {was:?}, and has come back as {is:?}"
        );
        let has_changed_hands = !was.2.is_empty() && is.2 != was.2;
        anyhow::ensure!(!has_changed_hands, "{request} was with {}, and is with {}", was.2, is.2);
    }
    Ok(())
}

/// Compares what clients were told with what is there in the end.
async fn judge(stage: &Stage, tally: &Tally, wipes: &[(Instant, Instant)], record: &mut Record) -> anyhow::Result<()> {
    let query = "SELECT request_id, version, provider_id FROM compute_assignment_change";
    let rows = stage.lane.rows(query, false).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let history: BTreeMap<(String, u64), String> = rows
        .iter()
        .map(|row| ((text(&row[0]), row[1].as_u64().unwrap_or_default()), text(&row[2])))
        .collect();
    let heard = tally.with(std::mem::take);
    anyhow::ensure!(heard.silent == 0, "{} calls had no outcome", heard.silent);
    let (mut lost, mut longest) = (0_u64, Duration::ZERO);
    for told in &heard.told {
        let is = history.get(&(told.request.clone(), told.version));
        if is == Some(&told.provider) {
            continue;
        }
        let wipe = wipes.iter().find(|(_, ended)| *ended >= told.at);
        let (begun, _) = wipe.with_context(|| format!("{told:?} was told after the last wipe, and is {is:?}"))?;
        let before = begun.saturating_duration_since(told.at);
        anyhow::ensure!(
            before < LAST_MOMENTS,
            "{told:?} was told {before:?} before SpacetimeDB was wiped, and is {is:?}"
        );
        (lost, longest) = (lost + 1, longest.max(before));
    }
    let taken = heard.told.iter().filter(|told| !told.provider.is_empty()).count();
    anyhow::ensure!(taken > 0, "nobody took an assignment");
    record.figure("changes_told", heard.told.len());
    record.figure("changes_refused", heard.refused);
    record.figure("changes_uncertain", heard.uncertain);
    record.figure("changes_lost_in_the_last_moments", lost);
    record.figure("longest_before_the_wipe_ms", longest.as_millis() as u64);
    Ok(())
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + SOON;
    while !condition().await? {
        anyhow::ensure!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        tokio::time::sleep(spacetime_sync_tests::STEP).await;
    }
    Ok(())
}
