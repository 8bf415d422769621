//! Keys of Nostr: how a session binds one to a node, and what it cannot do.

use std::time::{Duration, Instant};

use k256::schnorr::SigningKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use spacetime_sync_issuer::keys::now;
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::limit::{NOSTR_CHALLENGES, PRESENCE_NODES};
use spacetime_sync_stdb::admin::Credential;
use spacetime_sync_tests::clock::Clock;
use spacetime_sync_tests::lane::wait_for;

use super::text;
use crate::access::guarded::Guarded;
use crate::lane::hostile::Said;

const DOMAIN: &str = "openagents:nostr-presence-bind:v1";

/// Somebody who has a key of Nostr.
pub(super) struct Holder(SigningKey);

impl Holder {
    pub(super) fn new(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]).unwrap())
    }

    pub(super) fn key(&self) -> String {
        hex::encode(self.0.verifying_key().to_bytes())
    }

    /// Signs as the contract says, written out here.
    fn sign(&self, node: &str, challenge: &str) -> String {
        self.sign_text(&format!("{DOMAIN}:{node}:{challenge}"))
    }

    fn sign_text(&self, text: &str) -> String {
        self.sign_digest(&Sha256::digest(text).into())
    }

    pub(super) fn sign_digest(&self, digest: &[u8; 32]) -> String {
        hex::encode(self.0.sign_raw(digest, &[9; 32]).unwrap().to_bytes())
    }
}

impl Guarded {
    async fn announce(&self, who: &Credential, session: &str, node: &str, status: &str) {
        let arguments = json!([session, node, status, "eu", "desktop", []]);
        self.module.call(Some(who), "upsert_presence", &arguments).await.done();
    }

    async fn challenge(&self, who: &Credential, node: &str) -> Said {
        self.module.call(Some(who), "challenge_nostr_key", &json!([node])).await
    }

    async fn challenged(&self, who: &Credential, node: &str) -> String {
        text(&self.challenge(who, node).await.done())
    }

    async fn bind(&self, who: &Credential, node: &str, challenge: &str, [key, signature]: [&str; 2]) -> Said {
        let arguments = json!([node, challenge, key, signature]);
        self.module.call(Some(who), "bind_nostr_key", &arguments).await
    }

    /// Binds a key the straight way.
    async fn bound(&self, who: &Credential, node: &str, holder: &Holder) {
        let challenge = self.challenged(who, node).await;
        let signature = holder.sign(node, &challenge);
        let said = self.bind(who, node, &challenge, [&holder.key(), &signature]).await;
        said.done();
    }

    /// Session, node and key of every node with a key that a caller sees, without duplicates.
    async fn keys_seen(&self, who: &Credential) -> Vec<[String; 3]> {
        let statement = "SELECT session_id, node_id, nostr_pubkey FROM session_presence";
        let rows = self.module.sql(Some(who), statement).await.unwrap();
        let mut seen: Vec<_> = rows
            .iter()
            .map(|row| [0, 1, 2].map(|column| text(&row[column])))
            .filter(|row| !row[2].is_empty())
            .collect();
        seen.sort();
        seen.dedup();
        seen
    }

    /// Waits until the sweep has counted so many providers, as anybody sees it.
    async fn providers_become(&self, who: &Credential, expected: u64, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let statement = "SELECT providers_online FROM presence_count";
            let rows = self.module.sql(Some(who), statement).await.unwrap();
            let found = rows.first().map_or(0, |row| row[0].as_u64().unwrap());
            if found == expected {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{found} providers are online, not {expected}"
            );
        }
    }
}

const SOON: Duration = Duration::from_secs(10);

fn seen(rows: &[[&str; 3]]) -> Vec<[String; 3]> {
    rows.iter().map(|row| row.map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_signs_the_challenge_binds_the_key_and_is_counted_once() {
    let guarded = Guarded::start().await;
    let [desktop, laptop] = ["desktop", "laptop"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let stranger = guarded.session("8", "stranger", &["user:8:*"]);
    guarded.providers_become(&stranger, 0, SOON).await;
    for node in ["n1", "n2"] {
        guarded.announce(&desktop, "desktop", node, "online").await;
    }
    guarded.announce(&laptop, "laptop", "n1", "busy").await;
    let (one, two) = (Holder::new(1), Holder::new(2));
    let challenge = guarded.challenged(&desktop, "n1").await;
    let parts: Vec<&str> = challenge
        .strip_prefix(&format!("{DOMAIN}:n1:"))
        .unwrap()
        .split(':')
        .collect();
    let identity = guarded
        .column("SELECT identity FROM sync_session WHERE session_id = 'desktop'")
        .await[0]
        .to_string();
    assert!(
        identity.contains(parts[0]) && parts[0].len() == 64,
        "{identity} of {challenge}"
    );
    assert!(
        parts.len() == 2 && parts[1].parse::<u64>().is_ok_and(|ms| ms > 1_700_000_000_000),
        "{challenge}"
    );

    guarded.bound(&desktop, "n1", &one).await;
    let of_one = [["desktop", "n1", &one.key()]];
    assert_eq!(guarded.keys_seen(&laptop).await, seen(&of_one));
    assert_eq!(
        guarded.keys_seen(&stranger).await,
        seen(&[]),
        "who does not see the node does not see its key"
    );
    guarded.providers_become(&stranger, 1, SOON).await;
    // A heartbeat keeps it.
    guarded.announce(&desktop, "desktop", "n1", "away").await;
    assert_eq!(guarded.keys_seen(&laptop).await, seen(&of_one));
    guarded.bound(&desktop, "n2", &two).await;
    guarded.providers_become(&stranger, 2, SOON).await;
    guarded.announce(&desktop, "desktop", "n1", "offline").await;
    guarded.providers_become(&stranger, 1, SOON).await;
    guarded.announce(&desktop, "desktop", "n1", "online").await;
    guarded.providers_become(&stranger, 2, SOON).await;

    // A key is bound to one node, and a node has one key.
    guarded.bound(&laptop, "n1", &one).await;
    let moved = [["desktop", "n2", &two.key()], ["laptop", "n1", &one.key()]];
    assert_eq!(guarded.keys_seen(&desktop).await, seen(&moved));
    guarded.bound(&laptop, "n1", &two).await;
    assert_eq!(guarded.keys_seen(&desktop).await, seen(&[["laptop", "n1", &two.key()]]));
    guarded.providers_become(&stranger, 1, SOON).await;
    guarded.bound(&laptop, "n1", &two).await;
    assert_eq!(
        guarded.keys_seen(&desktop).await,
        seen(&[["laptop", "n1", &two.key()]]),
        "bound anew"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_is_good_once_for_its_own_session_and_node_and_in_its_domain() {
    let guarded = Guarded::start().await;
    let [own, beside] = ["own", "beside"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let thief = guarded.session("8", "thief", &["user:8:*"]);
    for (who, session) in [(&own, "own"), (&beside, "beside"), (&thief, "thief")] {
        for node in ["n1", "n2"] {
            guarded.announce(who, session, node, "online").await;
        }
    }
    let (holder, other) = (Holder::new(1), Holder::new(2));
    let key = holder.key();
    let refused = RefusalCode::ChallengeRefused;
    let none = guarded
        .bind(&own, "n1", "anything", [&key, &holder.sign("n1", "anything")])
        .await;
    none.refused(refused);

    // Another session, of the same user or not, cannot use it, whether or not it has a challenge itself. Nor can another node.
    let challenge = guarded.challenged(&own, "n1").await;
    let signature = holder.sign("n1", &challenge);
    for _ in 0..2 {
        for who in [&beside, &thief] {
            guarded
                .bind(who, "n1", &challenge, [&key, &signature])
                .await
                .refused(refused);
        }
        guarded
            .bind(&own, "n2", &challenge, [&key, &holder.sign("n2", &challenge)])
            .await
            .refused(refused);
        for (who, node) in [(&beside, "n1"), (&thief, "n1"), (&own, "n2")] {
            guarded.challenged(who, node).await;
        }
    }
    // None of that spent it. What does not verify, does: of the key and the signature, one is not what it should be.
    type Shown<'a> = (&'a str, &'a dyn Fn(&str) -> [String; 2]);
    let shown: [Shown<'_>; 7] = [
        ("another key", &|text| [other.key(), holder.sign("n1", text)]),
        ("another key's signature", &|text| [key.clone(), other.sign("n1", text)]),
        ("another domain", &|text| {
            [
                key.clone(),
                holder.sign_text(&format!("openagents:nostr-presence-bind:v2:n1:{text}")),
            ]
        }),
        ("no domain", &|text| [key.clone(), holder.sign_text(text)]),
        ("another node", &|text| [key.clone(), holder.sign("n2", text)]),
        ("forged", &|_| [key.clone(), "1b".repeat(64)]),
        ("no point", &|text| ["ff".repeat(32), holder.sign("n1", text)]),
    ];
    let good = guarded.bind(&own, "n1", &challenge, [&key, &signature]).await;
    good.done();
    for (what, show) in shown {
        let challenge = guarded.challenged(&own, "n1").await;
        let [wrong_key, wrong_signature] = show(&challenge);
        let said = guarded
            .bind(&own, "n1", &challenge, [&wrong_key, &wrong_signature])
            .await;
        said.refused(RefusalCode::SignatureRefused);
        let right = holder.sign("n1", &challenge);
        let late = guarded
            .bind(&own, "n1", &challenge, [&key, &right])
            .await
            .refused(refused);
        assert!(late.message.contains("used before"), "{what}: {late}");
    }
    // A newer challenge replaces an older one.
    let older = guarded.challenged(&own, "n1").await;
    let newer = guarded.challenged(&own, "n1").await;
    assert_ne!(older, newer);
    guarded
        .bind(&own, "n1", &older, [&key, &holder.sign("n1", &older)])
        .await
        .refused(refused);
    let proof = [key.as_str(), &holder.sign("n1", &newer)];
    guarded.bind(&own, "n1", &newer, proof).await.done();
    // A replay, also when the key has moved on since.
    guarded.bind(&own, "n1", &newer, proof).await.refused(refused);
    guarded.bound(&beside, "n1", &holder).await;
    guarded.bind(&own, "n1", &newer, proof).await.refused(refused);
    assert_eq!(guarded.keys_seen(&own).await, seen(&[["beside", "n1", &key]]));

    let invalid = RefusalCode::InvalidArgument;
    for (node, key, signature) in [
        ("n 1", key.clone(), signature.clone()),
        ("n1", key.to_uppercase(), signature.clone()),
        ("n1", format!("npub1{key}"), signature.clone()),
        ("n1", key.clone(), String::new()),
        ("nowhere", key.clone(), signature.clone()),
    ] {
        guarded
            .bind(&own, node, &newer, [&key, &signature])
            .await
            .refused(invalid);
    }
    for node in ["nowhere", "n 1", ""] {
        guarded.challenge(&own, node).await.refused(invalid);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_expires_and_a_clock_that_jumps_makes_none_good_again() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::make(folder.path(), "stdb").unwrap();
    let guarded = Guarded::with_clock(&clock).await;
    if !guarded.module.server.is_own() {
        eprintln!("skipped: the clock of this server is not ours");
        return;
    }
    let mut claims = guarded.issuer.claims("7", "own", &["user:7:*"]);
    claims["exp"] = json!(now() + 800);
    let own = guarded.with(&claims);
    let holder = Holder::new(1);
    let key = holder.key();
    let bind = async |challenge: &str| {
        let signature = holder.sign("n1", challenge);
        guarded.bind(&own, "n1", challenge, [&key, &signature]).await
    };
    guarded.announce(&own, "own", "n1", "online").await;
    let early = guarded.challenged(&own, "n1").await;
    clock.set(301).unwrap();
    bind(&early).await.refused(RefusalCode::ChallengeRefused);
    // The node was silent for as long, too.
    let status = "SELECT status FROM session_presence";
    wait_for(SOON, "the node is offline", async || {
        guarded.column(status).await == [json!("offline")]
    })
    .await;
    guarded.announce(&own, "own", "n1", "online").await;
    let late = guarded.challenged(&own, "n1").await;
    // The clock goes back. What was made later is still the newest, is good once, and what comes next is another one.
    clock.set(0).unwrap();
    bind(&early).await.refused(RefusalCode::ChallengeRefused);
    guarded.announce(&own, "own", "n1", "online").await;
    bind(&late).await.done();
    bind(&late).await.refused(RefusalCode::ChallengeRefused);
    let next = guarded.challenged(&own, "n1").await;
    assert!(next != late && next != early, "{next}");
    bind(&late).await.refused(RefusalCode::ChallengeRefused);
    bind(&next).await.done();
    for _ in 0..4 {
        // Each challenge passes a sweep, and nobody is kept out until the clock has caught up.
        guarded.announce(&own, "own", "n1", "busy").await;
        guarded.bound(&own, "n1", &holder).await;
    }
    assert_eq!(guarded.column(status).await, [json!("busy")]);
    assert_eq!(guarded.keys_seen(&own).await, seen(&[["own", "n1", &key]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_session_is_bounded_and_goes_with_its_nodes() {
    let guarded = Guarded::start().await;
    let [own, quiet] = ["own", "quiet"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let holder = Holder::new(1);
    guarded.announce(&own, "own", "n0", "online").await;
    guarded.bound(&own, "n0", &holder).await;
    guarded.announce(&own, "own", "n0", "offline").await;
    let bindings = "SELECT nostr_pubkey FROM nostr_binding";
    assert_eq!(guarded.column(bindings).await, [json!(holder.key())]);
    for nth in 1..=PRESENCE_NODES {
        guarded.announce(&own, "own", &format!("n{nth}"), "online").await;
    }
    assert_eq!(
        guarded.column(bindings).await,
        [] as [Value; 0],
        "the node was forgotten, and its key with it"
    );

    // As many challenges as a burst, of as many nodes as a session has; then they are refused, and others are not.
    let (mut made, mut refused) = (0, 0);
    for nth in 1..=PRESENCE_NODES {
        match guarded.challenge(&own, &format!("n{nth}")).await {
            Said::Done(_) => made += 1,
            said => {
                said.refused(RefusalCode::RateLimited);
                refused += 1;
            }
        }
    }
    let held = guarded.column("SELECT node_id FROM nostr_challenge").await;
    assert!(
        held.len() <= NOSTR_CHALLENGES && made < held.len(),
        "{made} made, {refused} refused, {held:?}"
    );
    assert!(refused > 0);
    guarded.announce(&quiet, "quiet", "n1", "online").await;
    guarded.bound(&quiet, "n1", &holder).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_and_its_counts_are_right_after_a_crash_and_amid_requests() {
    let mut guarded = Guarded::start().await;
    let [silent, alive] = ["silent", "alive"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let [one, two] = [Holder::new(1), Holder::new(2)];
    guarded.announce(&silent, "silent", "n1", "online").await;
    guarded.bound(&silent, "n1", &one).await;
    guarded.announce(&alive, "alive", "n1", "online").await;
    guarded.bound(&alive, "n1", &two).await;
    guarded.providers_become(&alive, 2, SOON).await;
    let beaten = Instant::now();
    if guarded.module.server.is_own() {
        guarded.module.server.kill();
        guarded.module.server.restart().await.unwrap();
    }
    let both = seen(&[["alive", "n1", &two.key()], ["silent", "n1", &one.key()]]);
    assert_eq!(guarded.keys_seen(&alive).await, both, "a crash ends no binding");
    // Each request of either session runs the lifecycle reducers. None counts as a heartbeat, and none ends a session's presence.
    let mut announced = beaten;
    wait_for(Duration::from_secs(45), "the silent node goes offline", async || {
        if announced.elapsed() > Duration::from_secs(5) {
            announced = Instant::now();
            guarded.announce(&alive, "alive", "n1", "online").await;
        }
        guarded
            .module
            .call(Some(&silent), "read_audience_key", &json!([""]))
            .await
            .done();
        let statement = "SELECT status, reason FROM session_presence WHERE session_id = 'silent'";
        let rows = guarded.module.sql(Some(&silent), statement).await.unwrap();
        let [status, reason] = [0, 1].map(|column| text(&rows[0][column]));
        assert_eq!(reason == "ttl_expired", status == "offline", "{status} {reason}");
        status == "offline"
    })
    .await;
    assert!(beaten.elapsed() > Duration::from_secs(28), "{:?}", beaten.elapsed());
    guarded.providers_become(&alive, 1, SOON).await;
    guarded.announce(&silent, "silent", "n1", "online").await;
    guarded.providers_become(&alive, 2, SOON).await;
    assert_eq!(guarded.keys_seen(&alive).await, both);
}
