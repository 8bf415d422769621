//! Two clients of one user, as an application runs them: what they tell each other in passing, and a key of Nostr.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use spacetime_sync_client::{
    AccessToken, Audience, CallError, ClientConfig, Credential, Event, HandlerError, Heard, HeardSignal, HttpTokens,
    NostrChallenge, Phase, Presence, PresenceKey, Presences, RefusalCode, Says, Signal, Signals, SqliteStore, StreamId,
    Subject, SyncClient, TokenError, WantedToken, Watched,
};
use spacetime_sync_issuer::keys::now;
use spacetime_sync_tests::issuer::Issuer;
use spacetime_sync_tests::issuing::BUILD;
use spacetime_sync_tests::lane::{Bridge, Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene::ready;
use tokio::sync::watch;

use super::nostr::Holder;

pub(super) const SOON: Duration = Duration::from_secs(30);

/// Tokens of a session that may read a stream, signed by an issuer in this process. The client replaces them after `refresh`.
fn tokens(issuer: Arc<Issuer>, session: &'static str, refresh: Duration) -> Credential {
    Credential::provider(move |_: WantedToken| {
        let mut claims = issuer.claims("7", session, &["runtime.run.*"]);
        claims["exp"] = json!(now() + 300);
        let mut token = AccessToken::new(issuer.sign(&claims), Duration::from_secs(300));
        token.refresh_after = refresh;
        token.session_id = Some(session.to_owned());
        async move { Ok::<_, TokenError>(token) }
    })
}

/// A lane with one event, whose module trusts an issuer of this process.
pub(super) async fn lane_of(issuer: &Issuer) -> (Lane, Bridge) {
    let lane = Lane::start().await.unwrap();
    let trusted = json!([issuer.url, "openagents-sync", 500]);
    lane.owner().unwrap().call("trust_issuer", trusted).await.unwrap();
    let bridge = lane.bridge().unwrap();
    let mut writer = Writer::new(&lane.authority, &stream(1), "w", Payload::UpTo(300), 1);
    writer.append(1).await.unwrap();
    assert!(lane.published(SOON).await);
    (lane, bridge)
}

fn client(lane: &Lane, credential: Credential, name: &str) -> SyncClient {
    let mut config = ClientConfig::new(lane.server.uri(), &lane.name, vec![stream(1)]);
    config.credential = credential;
    config.seal_keys = lane.seal_keys().unwrap();
    run(lane, config, name)
}

/// For a session of user 7 with tokens of the bridge.
pub(super) fn with_tokens(lane: &Lane, bridge: &Bridge, uri: &str, session: &str) -> ClientConfig {
    let credential = lane.keys().unwrap().session("7", session);
    let tokens = HttpTokens::new(bridge.url(), move || {
        let credential = credential.clone();
        async move { Ok::<_, TokenError>(credential) }
    });
    let mut config = ClientConfig::new(uri, &lane.name, vec![stream(1)]);
    config.credential = Credential::provider(tokens.unwrap());
    config.client_build_id = BUILD.to_owned();
    config
}

pub(super) fn run(lane: &Lane, config: ClientConfig, name: &str) -> SyncClient {
    let store = SqliteStore::open(lane.path(name)).unwrap();
    let handler = |_: &mut rusqlite::Transaction<'_>, _: &StreamId, _: &[Event]| Ok::<(), HandlerError>(());
    SyncClient::start(config, store, handler).unwrap()
}

async fn connected(client: &SyncClient) {
    let mut status = client.status();
    let is_up = |status: &spacetime_sync_client::Status| {
        !matches!(
            status.phase,
            Phase::Idle | Phase::Connecting { .. } | Phase::Backoff { .. }
        )
    };
    tokio::time::timeout(SOON, status.wait_for(is_up))
        .await
        .unwrap()
        .unwrap();
}

/// The next thing that is heard, besides how nodes change.
async fn next(signals: &mut Signals) -> Heard {
    loop {
        let heard = tokio::time::timeout(SOON, signals.next()).await.unwrap();
        match heard.expect("the client runs") {
            Heard::Presence(_) => {}
            heard => return heard,
        }
    }
}

fn about(subject: Subject, says: Says) -> Signal {
    Signal {
        node_id: "n1".to_owned(),
        subject,
        says,
    }
}

fn typing(note: &str) -> Signal {
    let says = Says::Typing { note: note.to_owned() };
    about(Subject::User("notes".to_owned()), says)
}

fn is_from(heard: Heard, session: &str, sent: &Signal) {
    let Heard::Signal(HeardSignal {
        from, subject, says, ..
    }) = heard
    else {
        panic!("expected a signal, found {heard:?}");
    };
    let from = from.unwrap();
    assert_eq!((from.session_id.as_str(), from.node_id.as_str()), (session, "n1"));
    assert_eq!((subject, says), (sent.subject.clone(), sent.says.clone()));
}

/// Whom the module has let in may take a moment to be told that it serves.
async fn tells(client: &SyncClient, signal: Signal) {
    tokio::time::timeout(SOON, async {
        loop {
            match client.signal(signal.clone()).await {
                Err(CallError::NotConnected | CallError::Lost) => tokio::task::yield_now().await,
                said => return said.unwrap(),
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hear_each_other_and_say_when_they_did_not() {
    let issuer = Arc::new(Issuer::start().await.unwrap());
    let (mut lane, _bridge) = lane_of(&issuer).await;
    let start = |session| client(&lane, tokens(issuer.clone(), session, SOON * 100), session);
    let (desktop, laptop) = (start("desktop"), start("laptop"));
    let mut heard = laptop.signals(&[]).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Listening(Audience::OwnUser));
    tells(&desktop, typing("one")).await;
    is_from(next(&mut heard).await, "desktop", &typing("one"));
    // A second listener is told at once that the client listens. Both hear the same from then on.
    let mut second = laptop.signals(&[]).unwrap();
    for listener in [&mut heard, &mut second] {
        assert_eq!(next(listener).await, Heard::Listening(Audience::OwnUser));
    }
    let forbidden = StreamId::new("user:8:notes").unwrap();
    let mut third = laptop.signals(std::slice::from_ref(&forbidden)).unwrap();
    loop {
        match next(&mut third).await {
            Heard::Listening(Audience::OwnUser) => {}
            Heard::Refused { audience, refusal } => {
                assert_eq!(audience, Audience::Stream(forbidden));
                assert_eq!(refusal.code, RefusalCode::ForbiddenStream);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    if lane.server.is_own() {
        lane.server.kill();
        while next(&mut second).await != Heard::Interrupted(Audience::OwnUser) {}
        let refused = laptop.signal(typing("lost")).await.unwrap_err();
        assert!(
            matches!(refused, CallError::NotConnected | CallError::Lost),
            "{refused:?}"
        );
        lane.server.restart().await.unwrap();
        while next(&mut second).await != Heard::Listening(Audience::OwnUser) {}
        tells(&desktop, typing("two")).await;
        loop {
            match next(&mut second).await {
                Heard::Refused { .. } => {}
                heard => break is_from(heard, "desktop", &typing("two")),
            }
        }
    }
    let invalid = Signal {
        node_id: "n 1".to_owned(),
        ..typing("")
    };
    assert!(matches!(desktop.signal(invalid).await, Err(CallError::Invalid(_))));
    laptop.stop().await;
    while tokio::time::timeout(SOON, heard.next()).await.unwrap().is_some() {}
    desktop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_typing_and_conflicts_arrive_as_they_were_said_and_in_order() {
    let issuer = Arc::new(Issuer::start().await.unwrap());
    let (lane, _bridge) = lane_of(&issuer).await;
    let start = |session| client(&lane, tokens(issuer.clone(), session, SOON * 100), session);
    let (desktop, laptop) = (start("desktop"), start("laptop"));
    let mut heard = laptop.signals(&[]).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Listening(Audience::OwnUser));
    let note = |text: &str| text.to_owned();
    let said = [
        Says::Progress {
            done: 3,
            total: 10,
            note: note("halfway, nearly"),
        },
        Says::Conflict {
            note: note("both changed the title: „Ä“ and „Ö“"),
        },
        Says::Progress {
            done: 7,
            total: 0,
            note: note(""),
        },
        Says::Conflict { note: note("") },
        Says::Typing { note: note("a reply") },
    ];
    for says in said {
        for name in ["notes", ""] {
            let signal = about(Subject::User(name.to_owned()), says.clone());
            tells(&desktop, signal.clone()).await;
            is_from(next(&mut heard).await, "desktop", &signal);
        }
    }
    laptop.stop().await;
    desktop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_token_is_a_break_that_is_told() {
    let issuer = Arc::new(Issuer::start().await.unwrap());
    let (lane, _bridge) = lane_of(&issuer).await;
    let laptop = client(
        &lane,
        tokens(issuer.clone(), "laptop", Duration::from_secs(3)),
        "laptop",
    );
    let mut heard = laptop.signals(&[stream(1)]).unwrap();
    let both = [Audience::OwnUser, Audience::Stream(stream(1))];
    for _ in 0..2 {
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        while ended.len() < 2 {
            match next(&mut heard).await {
                Heard::Listening(audience) => begun.push(audience),
                Heard::Interrupted(audience) => ended.push(audience),
                other => panic!("{other:?}"),
            }
        }
        begun.sort();
        assert_eq!((begun.as_slice(), ended.as_slice()), (both.as_slice(), both.as_slice()));
    }
    laptop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_binds_its_key_and_other_devices_see_it() {
    let issuer = Arc::new(Issuer::start().await.unwrap());
    let (lane, _bridge) = lane_of(&issuer).await;
    let start = |session| client(&lane, tokens(issuer.clone(), session, SOON * 100), session);
    bind_and_see(start("desktop"), start("laptop")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_gate_with_tokens_of_the_bridge_it_is_the_same() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let bridge = lane.bridge().unwrap();
    lane.allow("everyone", &["runtime.run.*"]).await.unwrap();
    ready(&bridge, SOON).await.unwrap();
    let gate = lane.gate(&[]).unwrap();
    gate.until_ready(true).await.unwrap();
    let mut writer = Writer::new(&lane.authority, &stream(1), "w", Payload::UpTo(300), 1);
    writer.append(1).await.unwrap();
    assert!(lane.published(SOON).await);
    let start = |session| run(&lane, with_tokens(&lane, &bridge, &gate.uri(), session), session);
    bind_and_see(start("desktop"), start("laptop")).await;
    assert_eq!(gate.metric("breaches_total").await.unwrap(), 0);
}

async fn bind_and_see(desktop: SyncClient, laptop: SyncClient) {
    for client in [&desktop, &laptop] {
        connected(client).await;
    }
    let mut heard = laptop.signals(&[]).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Listening(Audience::OwnUser));
    let refused = desktop.nostr_challenge("n1").await.unwrap_err();
    assert!(
        matches!(&refused, CallError::Refused(refusal) if refusal.code == RefusalCode::InvalidArgument),
        "the node was not announced: {refused:?}"
    );
    let node = Presence {
        surface: "terminal".to_owned(),
        ..Presence::online("n1")
    };
    let _here = desktop.presence(node).unwrap();
    let is = PresenceKey {
        session_id: "desktop".to_owned(),
        node_id: "n1".to_owned(),
    };
    let mut presences = laptop.presences(&[]).unwrap();
    let sees = async |presences: &mut watch::Receiver<Watched<Presences>>, key: Option<&str>| {
        let shown = |all: &Watched<Presences>| {
            let node = all.rows.get(&is);
            let found = node.and_then(|node| node.nostr_key).map(|key| key.to_string());
            node.is_some_and(|node| node.surface == "terminal") && found.as_deref() == key
        };
        tokio::time::timeout(SOON, presences.wait_for(shown))
            .await
            .unwrap()
            .unwrap();
    };
    sees(&mut presences, None).await;
    let holder = Holder::new(5);
    let key = holder.key();
    let sign = |challenge: &NostrChallenge| holder.sign_digest(&challenge.to_sign()).parse().unwrap();
    let challenge = desktop.nostr_challenge("n1").await.unwrap();
    let signature = sign(&challenge);
    desktop
        .bind_nostr_key(challenge.clone(), key.parse().unwrap(), signature)
        .await
        .unwrap();
    sees(&mut presences, Some(&key)).await;
    let again = desktop
        .bind_nostr_key(challenge, key.parse().unwrap(), signature)
        .await
        .unwrap_err();
    assert!(
        matches!(&again, CallError::Refused(refusal) if refusal.code == RefusalCode::ChallengeRefused),
        "{again:?}"
    );
    // Everything that can be watched is, through a gate as without one.
    let mut providers = laptop.providers_online();
    let is_one = |seen: &Watched<u64>| seen.is_live() && seen.rows == 1;
    drop(
        tokio::time::timeout(SOON, providers.wait_for(is_one))
            .await
            .unwrap()
            .unwrap(),
    );
    let (mut capabilities, mut assignments) = (laptop.capabilities(), laptop.assignments());
    let live = async {
        (
            capabilities.wait_for(Watched::is_live).await.is_ok(),
            assignments.wait_for(Watched::is_live).await.is_ok(),
        )
    };
    assert_eq!(tokio::time::timeout(SOON, live).await.unwrap(), (true, true));
    // The change was told, too.
    let told = async {
        loop {
            if let Some(Heard::Presence(change)) = heard.next().await
                && change.nostr_key.is_some()
            {
                return change;
            }
        }
    };
    let change = tokio::time::timeout(SOON, told).await.unwrap();
    assert_eq!((&change.key, change.surface.as_str()), (&is, "terminal"));
    desktop.stop().await;
    laptop.stop().await;
}
