//! The mirror's session at SpacetimeDB: what it advertises from there, and what it puts there. SpacetimeDB may be away for as
//! long as it likes: this task waits for it, and nothing waits for this task.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, stream};
use nostr::{Filter, JsonUtil as _, Kind, PublicKey, Timestamp};
use spacetime_sync_authority::{AuthorityError, Entry, Kept, MirrorPolicy, MirrorSource, Reflected, TrustedKey};
use spacetime_sync_client::{
    CallError, Capabilities, Capability, CapabilityKey, CheckpointStore, ClientConfig, CommitError, Credential,
    Effects, Event, HandlerError, History, HttpTokens, Outbox, OutboxEvent, OutboxOutcome, RefusalCode, StoreError,
    SyncClient, TokenError, Watched,
};
use spacetime_sync_proto::{Label, Position, StreamId};
use spacetime_sync_transport::{Transport, secret_file};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::announcement::{self, Announced};
use crate::reflection::{Rows, Seen, Step, TRANSPORT, lost, named, steps, to_publish};
use crate::relay::Relay;
use crate::run::{Mirror, chain};
use crate::settings::SessionConfig;
use crate::things::{AD_KIND, Advertised, Slot, adopted, advertisement, unreadable};

/// How often the task looks for something to do.
const LOOK: Duration = Duration::from_millis(250);
/// How long to wait before a client that has ended is started again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a call of the client may take.
const CALL: Duration = Duration::from_secs(5);
/// The most providers that are advertised.
const PROVIDERS: usize = 1_000;
/// The most entries that are written at once.
const AT_ONCE: usize = 256;
/// How many calls wait for their answers at once.
const CALLS: usize = 16;
/// The most announcements that are read of one relay at once.
const ANNOUNCEMENTS: usize = 256;

/// Keeps nothing: what the mirror needs of its stream is that there is one.
#[derive(Debug)]
struct Nowhere;

impl CheckpointStore for Nowhere {
    type Transaction<'t> = ();

    fn bind(&mut self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn load(&mut self, _: &StreamId) -> Result<Option<Position>, StoreError> {
        Ok(None)
    }

    fn commit(
        &mut self,
        _: &StreamId,
        _: &Position,
        _: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        effects(&mut ()).map_err(CommitError::Handler)
    }

    fn start_over(
        &mut self,
        _: &StreamId,
        _: &Position,
        _: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        effects(&mut ()).map_err(CommitError::Handler)
    }
}

/// Works for as long as the mirror leads.
pub(crate) async fn attend(mirror: Arc<Mirror>, session: SessionConfig, policies: watch::Receiver<Vec<MirrorPolicy>>) {
    loop {
        match start(&session) {
            Ok(client) => {
                let mut life = Life {
                    mirror: &mirror,
                    client: &client,
                    policies: policies.clone(),
                    slot: None,
                    heard_at: None,
                    relays: BTreeMap::new(),
                    outbox: client.outbox(),
                    rows: Rows::new(),
                    missed_after: String::new(),
                    adopted_after: String::new(),
                };
                tokio::select! {
                    status = client.stopped() => {
                        tracing::warn!(phase = ?status.phase, "the mirror's session has ended; it begins another one");
                    }
                    () = life.work() => {}
                }
            }
            Err(error) => tracing::error!(%error, "the mirror has no session at SpacetimeDB"),
        }
        sleep(AGAIN).await;
    }
}

fn start(session: &SessionConfig) -> Result<SyncClient, Box<dyn std::error::Error + Send + Sync>> {
    let transport = Transport::default().allow_plaintext(session.allow_plaintext);
    let file = session.session_file.clone();
    let tokens = HttpTokens::over(transport.clone(), session.bridge_url.as_str(), move || {
        let credential = credential(&file);
        async move { credential }
    })?;
    let mut config = ClientConfig::new(
        session.uri.as_str(),
        session.database.as_str(),
        vec![session.stream.clone()],
    );
    config.transport = transport;
    config.credential = Credential::provider(tokens);
    config.surface = "mirror".to_owned();
    config.history = History::Off;
    config.provides = true;
    config.mirrors = true;
    let ignore = |_: &mut (), _: &StreamId, _: &[Event]| Ok::<(), HandlerError>(());
    Ok(SyncClient::start(config, Nowhere, ignore)?)
}

/// The session credential. It may be replaced while the mirror runs.
fn credential(file: &Path) -> Result<String, TokenError> {
    let secret = secret_file::read(file).map_err(TokenError::unavailable)?;
    Ok(secret.expose().trim().to_owned())
}

struct Life<'a> {
    mirror: &'a Mirror,
    client: &'a SyncClient,
    policies: watch::Receiver<Vec<MirrorPolicy>>,
    /// The slot that is advertised.
    slot: Option<Slot>,
    /// When relays were last asked what they have heard.
    heard_at: Option<Instant>,
    relays: BTreeMap<String, Relay>,
    outbox: watch::Receiver<Watched<Outbox>>,
    /// What SpacetimeDB's outbox says, as of the last change.
    rows: Rows,
    /// Up to where it was looked for what a wipe has taken, and for what others have put there.
    missed_after: String,
    adopted_after: String,
}

impl Life<'_> {
    async fn work(&mut self) {
        loop {
            if let Err(error) = self.advertise().await {
                tracing::warn!(error = %chain(&error), "the authority did not take advertisements");
            }
            if let Err(error) = self.reflect().await {
                tracing::warn!(error = %chain(&error), "the authority did not say what SpacetimeDB is to show");
            }
            if let Err(error) = self.hear().await {
                tracing::warn!(error = %chain(&error), "the authority did not say whom to trust");
            }
            sleep(LOOK).await;
        }
    }

    /// Writes an advertisement of each provider, once in a slot.
    async fn advertise(&mut self) -> Result<(), AuthorityError> {
        let policies = self.policies.borrow().clone();
        let of_ads = |policy: &&MirrorPolicy| policy.source == MirrorSource::Capabilities;
        let Some(policy) = policies.iter().find(of_ads) else {
            return Ok(());
        };
        let slot = Slot::of(now_s(), self.mirror.config.refresh_seconds);
        if self.slot == Some(slot) {
            return Ok(());
        }
        let capabilities = {
            let seen = self.client.capabilities();
            let seen = seen.borrow();
            if !seen.is_live() {
                return Ok(());
            }
            seen.rows.clone()
        };
        let trusted = self.mirror.authority.trusted_keys().await?;
        let entries = self.advertisements(policy, &capabilities, &trusted, slot);
        for entries in entries.chunks(AT_ONCE) {
            self.mirror
                .authority
                .journal(&MirrorSource::Capabilities, Kept::Publish(policy), None, entries)
                .await?;
        }
        self.mirror
            .status
            .change(|status| status.counters.advertised += entries.len() as u64);
        self.slot = Some(slot);
        Ok(())
    }

    fn advertisements(
        &self,
        policy: &MirrorPolicy,
        capabilities: &Capabilities,
        trusted: &[TrustedKey],
        slot: Slot,
    ) -> Vec<Entry> {
        let mut providers: BTreeMap<&str, Vec<Advertised>> = BTreeMap::new();
        for (key, seen) in capabilities {
            // What came from relays is not told to them again, or two mirrors would pass it to and fro.
            if trusted
                .iter()
                .any(|trusted| key.provider_id.starts_with(&trusted.provider_prefix))
            {
                continue;
            }
            let advertised = Advertised {
                capability: key.capability.clone(),
                document: seen.document.clone(),
                price_hint_sats: seen.price_hint_sats,
                region: seen.region.clone(),
                version: seen.version,
            };
            providers.entry(&key.provider_id).or_default().push(advertised);
        }
        let author = self.mirror.key.public();
        let entry =
            |(provider, can): (&str, Vec<Advertised>)| match advertisement(policy, provider, &can, slot, &author) {
                Ok(entry) => Some(entry),
                Err(error) => {
                    tracing::warn!(%error, provider, "a provider cannot be advertised");
                    None
                }
            };
        providers.into_iter().take(PROVIDERS).filter_map(entry).collect()
    }

    /// Publishes here what trusted keys announce on the relays of the policy, as often as we advertise.
    async fn hear(&mut self) -> Result<(), AuthorityError> {
        let every = Duration::from_secs(self.mirror.config.refresh_seconds);
        if self.heard_at.is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let trusted = self.mirror.authority.trusted_keys().await?;
        let own = self.mirror.key.public();
        let keys = trusted.iter().filter(|key| key.nostr_key != own);
        let keys: Vec<PublicKey> = keys
            .filter_map(|key| PublicKey::from_hex(&key.nostr_key).ok())
            .collect();
        if keys.is_empty() || !self.client.capabilities().borrow().is_live() {
            return Ok(());
        }
        self.heard_at = Some(Instant::now());
        let policies = self.policies.borrow().clone();
        let relays = policies
            .iter()
            .filter(|policy| policy.source == MirrorSource::Capabilities)
            .flat_map(|policy| policy.relays.iter().cloned());
        for relay in relays {
            let since = now_s().saturating_sub(announcement::LONGEST_S);
            let filter = Filter::new()
                .authors(keys.iter().copied())
                .kind(Kind::from_u16(AD_KIND))
                .since(Timestamp::from_secs(since))
                .limit(ANNOUNCEMENTS);
            let events = match self.relay(&relay) {
                Some(relay) => relay.fetch(filter).await,
                None => continue,
            };
            match events {
                Ok(events) => {
                    for event in events.iter().take(ANNOUNCEMENTS) {
                        match announcement::read(&event.as_json(), &trusted, &own, now_s()) {
                            Ok(announced) => self.publish(announced).await,
                            Err(unheard) => {
                                self.mirror.status.change(|status| status.counters.unheard += 1);
                                tracing::debug!(%unheard, relay, "an announcement has no effect");
                            }
                        }
                    }
                }
                Err(how) => tracing::debug!(relay, how, "a relay does not say what it has heard"),
            }
        }
        Ok(())
    }

    /// Shows in SpacetimeDB's outbox what the authority's says, and takes from there what others have put in.
    async fn reflect(&mut self) -> Result<(), AuthorityError> {
        if !self.look() {
            return Ok(());
        }
        self.miss().await?;
        self.adopt().await?;
        self.show().await
    }

    /// Takes over what has changed. Returns whether a change would be seen.
    fn look(&mut self) -> bool {
        let changed = self.outbox.has_changed().unwrap_or(false);
        let seen = self.outbox.borrow_and_update();
        if changed || self.rows.len() != seen.rows.len() {
            let row = |(name, row): (&String, &spacetime_sync_client::SeenOutboxEvent)| {
                let seen = Seen {
                    transport: row.transport.clone(),
                    payload: row.payload.clone(),
                };
                (name.clone(), seen)
            };
            self.rows = seen.rows.iter().map(row).collect();
        }
        seen.is_live()
    }

    /// Notices what SpacetimeDB has lost, some names at a time.
    async fn miss(&mut self) -> Result<(), AuthorityError> {
        let authority = &self.mirror.authority;
        let names = authority.outbox_reflected(&self.missed_after, AT_ONCE).await?;
        let lost = lost(&names, &self.rows);
        if !lost.is_empty() {
            authority.outbox_reflect(&lost, Reflected::Nothing).await?;
        }
        self.missed_after = if names.len() < AT_ONCE {
            String::new()
        } else {
            names.last().cloned().unwrap_or_default()
        };
        Ok(())
    }

    /// Takes in what others have put there, some names at a time.
    async fn adopt(&mut self) -> Result<(), AuthorityError> {
        let (authority, most) = (&self.mirror.authority, self.mirror.config.pending);
        let found = to_publish(&self.rows, &self.adopted_after, AT_ONCE);
        let next = if found.len() < AT_ONCE {
            String::new()
        } else {
            found.last().map_or_else(String::new, |(name, _)| (*name).to_owned())
        };
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        if !names.is_empty() {
            let known = authority.outbox_has(&names).await?;
            let policies = self.policies.borrow().clone();
            let author = self.mirror.key.public();
            for (name, payload) in found
                .iter()
                .filter(|(name, _)| !known.iter().any(|known| known.as_str() == *name))
            {
                if authority.outbox_pending(most).await? >= most {
                    return Ok(());
                }
                // The module takes no other names.
                let Ok(event_id) = Label::new(name) else { continue };
                let read = adopted(&event_id, payload, &author);
                let policy = read.as_ref().ok();
                let policy = policy.and_then(|entry| named(&policies, &entry.schema, entry.nostr_kind));
                let (entry, kept) = match (read, policy) {
                    (Ok(entry), Some(policy)) => (entry, Kept::Publish(policy)),
                    (Ok(entry), None) => (entry, Kept::Park("no_policy")),
                    (Err(error), _) => {
                        tracing::warn!(%error, name, "what somebody enqueued cannot be published");
                        match unreadable(&event_id, &author) {
                            Ok(entry) => (entry, Kept::Park("unreadable")),
                            Err(_) => continue,
                        }
                    }
                };
                authority.journal(&MirrorSource::Enqueued, kept, None, &[entry]).await?;
            }
        }
        self.adopted_after = next;
        Ok(())
    }

    /// Says there what is to be published and what became of it: of what is over first, which makes room for the rest.
    async fn show(&mut self) -> Result<(), AuthorityError> {
        let authority = &self.mirror.authority;
        for are_over in [true, false] {
            let unreflected = authority.outbox_unreflected(are_over, AT_ONCE).await?;
            let told: Vec<Option<(String, Reflected)>> = stream::iter(steps(&unreflected, &self.rows))
                .map(|step| self.tell(step))
                .buffer_unordered(CALLS)
                .collect()
                .await;
            for says in [Reflected::Pending, Reflected::Sent] {
                let told = told.iter().flatten().filter(|(_, told)| *told == says);
                let names: Vec<&str> = told.map(|(name, _)| name.as_str()).collect();
                if !names.is_empty() {
                    authority.outbox_reflect(&names, says).await?;
                }
            }
        }
        Ok(())
    }

    /// Carries a step out. Returns what SpacetimeDB is known to show then.
    async fn tell(&self, step: Step) -> Option<(String, Reflected)> {
        let (event_id, said, says) = match step {
            Step::Known { event_id, says } => return Some((event_id, says)),
            Step::Enqueue { event_id, payload } => {
                let event = OutboxEvent {
                    event_id: event_id.clone(),
                    transport: TRANSPORT.to_owned(),
                    payload,
                };
                (
                    event_id,
                    self.client.enqueue_event(event, CALL).await,
                    Reflected::Pending,
                )
            }
            Step::Mark { event_id, published_as } => {
                let outcome = OutboxOutcome {
                    event_id: event_id.clone(),
                    published_as,
                };
                (event_id, self.client.mark_event(outcome, CALL).await, Reflected::Sent)
            }
        };
        match said {
            Ok(()) => Some((event_id, says)),
            // There is room again when something was sent.
            Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::OutboxFull => None,
            Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::OutboxConflict => {
                tracing::error!(%refusal, event_id, "SpacetimeDB's outbox contradicts the authority's");
                Some((event_id, Reflected::Sent))
            }
            Err(CallError::Invalid(why)) => {
                tracing::error!(why, event_id, "SpacetimeDB's outbox cannot show an entry");
                Some((event_id, Reflected::Sent))
            }
            Err(error) => {
                tracing::debug!(%error, event_id, "SpacetimeDB's outbox was not told of an entry");
                None
            }
        }
    }

    fn relay(&mut self, url: &str) -> Option<&mut Relay> {
        if !self.relays.contains_key(url) {
            let relay = Relay::new(url, self.mirror.config.bounds()).ok()?;
            self.relays.insert(url.to_owned(), relay);
        }
        self.relays.get_mut(url)
    }

    async fn publish(&self, announced: Vec<Announced>) {
        for one in announced {
            let key = CapabilityKey {
                provider_id: one.provider_id.clone(),
                capability: one.capability.clone(),
            };
            let is_known = {
                let seen = self.client.capabilities();
                let seen = seen.borrow();
                seen.rows.get(&key).is_some_and(|seen| seen.version >= one.version)
            };
            if is_known {
                continue;
            }
            let capability = Capability {
                provider_id: one.provider_id,
                capability: one.capability,
                version: one.version,
                price_hint_sats: one.price_hint_sats,
                region: one.region,
                document: one.document,
                stands_for: one.stands_for,
            };
            let published = self.client.publish_capability(capability, CALL).await;
            self.mirror.status.change(|status| match &published {
                Ok(()) => status.counters.heard += 1,
                Err(_) => status.counters.unheard += 1,
            });
            if let Err(error) = published {
                tracing::warn!(error = %chain(&error), provider = key.provider_id, "a capability is not published");
            }
        }
    }
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
