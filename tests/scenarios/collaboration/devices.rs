//! One user on three devices, each a process with a store and a network of its own. One of them is away for a while, one is
//! killed, connections break. In the end all three show the same, and everything was done once.
//!
//! A seed determines the random choices. Each scenario prints it, and `SYNC_SEED` repeats it. The exact moments also depend on
//! the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::device::{Change, Device, Opening, Publication, Wish};
use spacetime_sync_tests::lane::{Bridge, Lane, stream, wait_for};
use spacetime_sync_tests::load::{Load, Pace};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene::ready;

use super::clients::SOON;

/// How soon everything must have come together without help.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long until a node that is not heard is offline, and told to the others.
const SILENT: Duration = Duration::from_secs(60);
const NAMES: [&str; 3] = ["desktop", "laptop", "phone"];
const PROVIDER: &str = "maker-1";
/// What is done to the devices in the random scenario.
const STEPS: usize = 60;

struct Stage {
    devices: [Device; 3],
    load: Option<Load>,
    committed: u64,
    streams: Vec<StreamId>,
    random: StdRng,
    _bridge: Bridge,
    lane: Lane,
}

impl Stage {
    /// Three devices that are live, and writers to two streams.
    async fn set() -> Self {
        let seed = match std::env::var("SYNC_SEED") {
            Ok(seed) => seed.parse().expect("SYNC_SEED is a number"),
            Err(_) => rand::rng().random(),
        };
        eprintln!("SYNC_SEED={seed}");
        let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
        let bridge = lane.bridge().unwrap();
        lane.sql("insert into runtime.sync_scope_policy values ('user:7', 'sync.provider')")
            .await
            .unwrap();
        ready(&bridge, SOON).await.unwrap();
        let streams: Vec<StreamId> = (1..=2).map(stream).collect();
        let targets = [lane.server.addr().unwrap(), bridge.addr().unwrap()];
        let device = async |name: &str| {
            let session = lane.device("7", name, &streams).await.unwrap();
            let mut device = Device::new(session, name, targets).await.unwrap();
            device.start().unwrap();
            device
        };
        let [desktop, laptop, phone] = NAMES;
        let devices = [device(desktop).await, device(laptop).await, device(phone).await];
        let mut stage = Self {
            lane,
            _bridge: bridge,
            streams,
            random: StdRng::seed_from_u64(seed),
            devices,
            load: None,
            committed: 0,
        };
        let provides = Publication {
            provider: PROVIDER.to_owned(),
        };
        stage.calls(0, Wish::Publish(provides)).await;
        stage.load = Some(Load::start(
            &stage.lane.authority,
            &stage.streams,
            Pace::Gentle,
            &mut stage.random,
        ));
        for device in &stage.devices {
            device
                .sees(SOON, "the others", |shown| {
                    shown["assignments_are_live"] == true && nodes(shown) == all_online()
                })
                .await;
        }
        stage
    }

    /// Makes a call that is to be done, and waits for that.
    async fn calls(&mut self, device: usize, wish: Wish) {
        let device = &mut self.devices[device];
        let number = device.ask(wish).unwrap();
        assert_eq!(device.answered(number, SOON).await, "done");
    }

    /// Waits until a device sees an assignment at a version.
    async fn sees(&self, device: usize, request: &str, version: u64) {
        let what = format!("{request} at version {version}");
        self.devices[device]
            .sees(SOON, &what, |shown| {
                let all = shown["assignments"].as_array();
                all.is_some_and(|all| all.iter().any(|row| row[0] == request && row[1] == version))
            })
            .await;
    }

    /// Waits until all three show the same nodes and assignments, which are the module's, and have the authority's events.
    async fn settles(&mut self) {
        let load = self.load.take().expect("writers");
        self.committed += load.stop().await.unwrap();
        assert!(self.lane.published(RECOVERY).await);
        for device in &self.devices {
            device.follower.until_applied(self.committed, RECOVERY).await.unwrap();
            let verdict = device.follower.compare(&self.lane.authority).await.unwrap();
            assert!(verdict.is_equal() && verdict.applied == self.committed, "{verdict:?}");
        }
        let held = self.held().await;
        for device in &self.devices {
            device
                .sees(RECOVERY, "what there is", |shown| {
                    device.is_live() && nodes(shown) == all_online() && rows(shown) == held
                })
                .await;
        }
        let [one, two, three] = self
            .devices
            .each_ref()
            .map(|device| device.shown()["assignments"].clone());
        assert_eq!(one, two);
        assert_eq!(two, three);
    }

    /// The assignments that the module has: version, state and provider by name.
    async fn held(&self) -> BTreeMap<String, (u64, String, String)> {
        let query = "SELECT request_id, version, status, provider_id FROM compute_assignment";
        let rows = self.lane.rows(query, true).await.unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let row = |row: &Value| (text(&row[0]), (row[1].as_u64().unwrap(), text(&row[2]), text(&row[3])));
        rows.iter().map(row).collect()
    }

    /// Every call has an answer, what was done is in the history once, and what was refused is not.
    async fn each_call_was_done_once_or_refused(&self) -> [usize; 2] {
        let query = "SELECT request_id, update_id, version FROM assignment_update";
        let updates = self.lane.rows(query, true).await.unwrap();
        let held = self.held().await;
        let [mut done, mut refused] = [0, 0];
        let mut changes: BTreeMap<&str, u64> = BTreeMap::new();
        let mut opened = 0;
        for (wish, answer) in self.devices.iter().flat_map(Device::calls) {
            let answer = answer.unwrap_or_else(|| panic!("{wish:?} has no answer"));
            let is_done = answer == "done";
            assert!(is_done || !answer["refused"].is_null(), "{wish:?}: {answer}");
            [done, refused] = [done + usize::from(is_done), refused + usize::from(!is_done)];
            match wish {
                Wish::Publish(_) => assert!(is_done, "{answer}"),
                Wish::Open(opening) => {
                    assert!(is_done && held.contains_key(&opening.request), "{wish:?}: {answer}");
                    opened += 1;
                }
                Wish::Change(change) => {
                    let made = updates
                        .iter()
                        .filter(|row| row[0] == change.request && row[1] == change.update);
                    assert_eq!(made.count(), usize::from(is_done), "{wish:?}: {answer}");
                    if is_done {
                        *changes.entry(&change.request).or_default() += 1;
                    } else {
                        assert_eq!(answer["refused"], "assignment_conflict", "{wish:?}: {answer}");
                    }
                }
            }
        }
        assert_eq!(held.len(), opened);
        for (request, (version, ..)) in &held {
            let made = changes.get(request.as_str()).copied().unwrap_or_default();
            assert_eq!(
                *version,
                1 + made,
                "{request}: each change that was done makes one version"
            );
        }
        [done, refused]
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The nodes that a device shows.
fn nodes(shown: &Value) -> BTreeSet<String> {
    list(&shown["nodes"]).iter().map(Value::to_string).collect()
}

/// The nodes of all three, as [`nodes`] has them.
fn all_online() -> BTreeSet<String> {
    let node = |name| json!([format!("session-{name}"), name, "online", null]).to_string();
    NAMES.map(node).into()
}

/// The assignments that a device shows, as [`Stage::held`] has them.
fn rows(shown: &Value) -> BTreeMap<String, (u64, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = list(&shown["assignments"]).iter();
    rows.map(|row| {
        (
            text(&row[0]),
            (row[1].as_u64().unwrap_or_default(), text(&row[2]), text(&row[3])),
        )
    })
    .collect()
}

fn open(request: &str) -> Wish {
    Wish::Open(Opening {
        request: request.to_owned(),
    })
}

/// A change whose name is its author's, its state and its version.
fn change(by: &str, request: &str, version: u64, to: &str) -> Wish {
    Wish::Change(Change {
        request: request.to_owned(),
        update: format!("{by}-{to}-{version}"),
        version,
        to: to.to_owned(),
        provider: (to == "accepted").then(|| PROVIDER.to_owned()),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_away_finds_what_the_others_did_and_its_own_calls_are_done_once() {
    let mut stage = Stage::set().await;
    let [desktop, laptop, phone] = [0, 1, 2];
    for request in ["r1", "r2", "r3"] {
        stage.calls(desktop, open(request)).await;
        stage.sees(phone, request, 1).await;
    }
    // The module does what the phone asks for, and the phone does not hear of that.
    stage.devices[phone].goes_deaf();
    let unheard = stage.devices[phone].ask(open("r4")).unwrap();
    wait_for(SOON, "the module has done it", async || {
        stage.held().await.contains_key("r4")
    })
    .await;
    stage.devices[phone].leaves().await;
    stage.devices[phone]
        .sees(SOON, "that it sees nothing", |shown| {
            shown["assignments_are_live"] == false && shown["nodes_are_live"] == false
        })
        .await;
    // The others take what it sees as open, and it asks for changes to what it sees.
    let asked = [
        change("phone", "r1", 1, "accepted"),
        change("phone", "r2", 1, "cancelled"),
        open("r6"),
    ];
    let [late, alone, opened] = asked.map(|wish| stage.devices[phone].ask(wish).unwrap());
    for (version, to) in [(1, "accepted"), (2, "running"), (3, "succeeded")] {
        stage.calls(laptop, change("laptop", "r1", version, to)).await;
    }
    stage.calls(desktop, open("r5")).await;
    // The laptop is killed in the middle of a call, and asks again when it is back.
    let killed = stage.devices[laptop]
        .ask(change("laptop", "r5", 1, "accepted"))
        .unwrap();
    stage.devices[laptop].kill();
    stage.devices[laptop].start().unwrap();
    assert_eq!(stage.devices[laptop].answered(killed, RECOVERY).await, "done");
    for device in [desktop, laptop] {
        stage.sees(device, "r5", 2).await;
        stage.devices[device]
            .sees(SILENT, "that the phone is silent", |shown| {
                let gone = json!(["session-phone", "phone", "offline", "ttl_expired"]);
                list(&shown["nodes"]).contains(&gone)
            })
            .await;
    }
    for number in [unheard, late, alone, opened] {
        assert_eq!(stage.devices[phone].answer(number), None, "it is away");
    }

    stage.devices[phone].returns().await;
    let refused = stage.devices[phone].answered(late, RECOVERY).await;
    assert_eq!(refused["refused"], "assignment_conflict", "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("succeeded") && message.contains(PROVIDER), "{message}");
    for number in [unheard, alone, opened] {
        assert_eq!(stage.devices[phone].answered(number, RECOVERY).await, "done");
    }
    stage.settles().await;
    let held = stage.held().await;
    assert_eq!((held["r1"].0, held["r1"].1.as_str()), (4, "succeeded"));
    assert_eq!((held["r2"].0, held["r2"].1.as_str()), (2, "cancelled"));
    assert_eq!((held["r3"].0, held["r3"].1.as_str()), (1, "open"));
    stage.each_call_was_done_once_or_refused().await;
    for device in &mut stage.devices {
        device.stop(SOON).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_whose_connections_break_at_random_come_together() {
    let mut stage = Stage::set().await;
    let mut away: Option<usize> = None;
    let (mut cuts, mut kills, mut absences) = (0, 0, 0);
    for step in 0..STEPS {
        let at = stage.random.random_range(0..NAMES.len());
        let name = NAMES[at];
        match stage.random.random_range(0..10) {
            0 => {
                stage.devices[at].cut();
                cuts += 1;
            }
            1 => {
                stage.devices[at].kill();
                stage.devices[at].start().unwrap();
                kills += 1;
            }
            2 => match away.take() {
                Some(gone) => stage.devices[gone].returns().await,
                None => {
                    stage.devices[at].leaves().await;
                    away = Some(at);
                    absences += 1;
                }
            },
            3 | 4 => drop(stage.devices[at].ask(open(&format!("{name}-{step}"))).unwrap()),
            _ => {
                // Something that the device sees, which may be long past.
                let shown = stage.devices[at].shown();
                let rows = list(&shown["assignments"]);
                if rows.is_empty() {
                    continue;
                }
                let row = &rows[stage.random.random_range(0..rows.len())];
                let to = match row[2].as_str().unwrap() {
                    "open" => "accepted",
                    "accepted" => "running",
                    "running" => "succeeded",
                    _ => continue,
                };
                let (request, version) = (row[0].as_str().unwrap(), row[1].as_u64().unwrap());
                let author = format!("{name}-{step}");
                let wish = change(&author, request, version, to);
                stage.devices[at].ask(wish).unwrap();
            }
        }
        let pause = stage.random.random_range(30..400);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    if let Some(gone) = away {
        stage.devices[gone].returns().await;
    }
    for device in &stage.devices {
        for number in 0..device.calls().count() as u64 {
            device.answered(number, RECOVERY).await;
        }
    }
    stage.settles().await;
    let [done, refused] = stage.each_call_was_done_once_or_refused().await;
    eprintln!(
        "{done} calls done once, {refused} refused, {} events, through {cuts} cuts, {kills} kills and {absences} absences",
        stage.committed
    );
    assert!(done > 1, "nothing was done");
    for device in &mut stage.devices {
        device.stop(SOON).await.unwrap();
    }
}
