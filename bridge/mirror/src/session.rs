//! The mirror's session at SpacetimeDB: what it advertises from there, and what it puts there. SpacetimeDB may be away for as
//! long as it likes: this task waits for it, and nothing waits for this task.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, stream};
use nostr::{Filter, JsonUtil as _, Kind, PublicKey, Timestamp};
use spacetime_sync_authority::{
    AuthorityError, Entry, Kept, MirrorPolicy, MirrorSource, Reflected, TrustedKey, shown_relay,
};
use spacetime_sync_client::{
    CallError, Capabilities, Capability, CapabilityKey, CheckpointStore, ClientConfig, CommitError, Credential,
    Effects, Event, HandlerError, History, HttpTokens, Outbox, OutboxOutcome, RefusalCode, StoreError, SyncClient,
    TokenError, Watched,
};
use spacetime_sync_proto::{Label, Position, StreamId, error_text};
use spacetime_sync_transport::{Transport, secret_file};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::adoption::{Adoption, Waiting};
use crate::announcement::{self, Announced};
use crate::reflection::{Call, Room, Rows, Seen, Step, Told, lost, steps, told};
use crate::relay::Relay;
use crate::run::{Mirror, share};
use crate::settings::SessionConfig;
use crate::things::{AD_KIND, Advertised, Slot, advertisement};

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
/// How long it may take to ask a relay what it has heard, and to publish that.
const HEARING: Duration = Duration::from_secs(20);
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
                    unasked: BTreeSet::new(),
                    relays: BTreeMap::new(),
                    outbox: client.outbox(),
                    rows: Rows::new(),
                    missed_after: String::new(),
                    adopted_after: String::new(),
                    began: Instant::now(),
                    room: Room::default(),
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
    /// When relays were last asked what they have heard, and which are to be asked yet.
    heard_at: Option<Instant>,
    unasked: BTreeSet<String>,
    relays: BTreeMap<String, Relay>,
    outbox: watch::Receiver<Watched<Outbox>>,
    /// What SpacetimeDB's outbox says, as of the last change.
    rows: Rows,
    /// Up to where it was looked for what a wipe has taken, and for what others have put there.
    missed_after: String,
    adopted_after: String,
    began: Instant,
    room: Room,
}

impl Life<'_> {
    async fn work(&mut self) {
        loop {
            if let Err(error) = self.advertise().await {
                tracing::warn!(error = %error_text(&error), "the authority did not take advertisements");
            }
            if let Err(error) = self.reflect().await {
                tracing::warn!(error = %error_text(&error), "the authority did not say what SpacetimeDB is to show");
            }
            if let Err(error) = self.hear().await {
                tracing::warn!(error = %error_text(&error), "the authority did not say whom to trust");
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
            let authority = &self.mirror.authority;
            let journaled = authority.journal(&MirrorSource::Capabilities, Kept::Publish(policy), None, entries);
            let fresh = journaled.await?.unwrap_or_default();
            self.mirror
                .status
                .change(|status| status.counters.advertised += fresh as u64);
        }
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

    /// Publishes here what trusted keys announce on the relays of the policy, as often as we advertise. It asks one relay, so that
    /// what is to be advertised and shown does not wait for all of them.
    async fn hear(&mut self) -> Result<(), AuthorityError> {
        let every = Duration::from_secs(self.mirror.config.refresh_seconds);
        if self.unasked.is_empty() && self.heard_at.is_none_or(|at| at.elapsed() >= every) {
            let policies = self.policies.borrow();
            let of_ads = policies
                .iter()
                .filter(|policy| policy.source == MirrorSource::Capabilities);
            self.unasked = of_ads.flat_map(|policy| policy.relays.iter().cloned()).collect();
            let unasked = &self.unasked;
            self.relays.retain(|relay, _| unasked.contains(relay));
            if !self.unasked.is_empty() {
                self.heard_at = Some(Instant::now());
            }
        }
        if self.unasked.is_empty() || !self.client.capabilities().borrow().is_live() {
            return Ok(());
        }
        let trusted = self.mirror.authority.trusted_keys().await?;
        let own = self.mirror.key.public();
        let keys = trusted.iter().filter(|key| key.nostr_key != own);
        let keys: Vec<PublicKey> = keys
            .filter_map(|key| PublicKey::from_hex(&key.nostr_key).ok())
            .collect();
        let Some(url) = self.unasked.pop_first() else {
            return Ok(());
        };
        if keys.is_empty() {
            return Ok(());
        }
        let bounds = self.mirror.config.bounds();
        let relay = match self.relays.remove(&url) {
            Some(relay) => Some(relay),
            None => Relay::new(&url, bounds).ok(),
        };
        let Some(mut relay) = relay else { return Ok(()) };
        let since = now_s().saturating_sub(announcement::LONGEST_S);
        let filter = Filter::new()
            .authors(keys)
            .kind(Kind::from_u16(AD_KIND))
            .since(Timestamp::from_secs(since))
            .limit(ANNOUNCEMENTS);
        let asked = tokio::time::timeout(HEARING, async {
            match relay.fetch(filter).await {
                Ok(events) => self.take_in(&url, &events, &trusted, &own).await,
                Err(how) => tracing::debug!(relay = shown_relay(&url), how, "a relay does not say what it has heard"),
            }
        });
        if asked.await.is_ok() {
            self.relays.insert(url, relay);
        } else {
            // Whatever this connection still brings, belongs to what was given up.
            tracing::debug!(
                relay = shown_relay(&url),
                "a relay takes too long to say what it has heard"
            );
            relay.close().await;
        }
        Ok(())
    }

    async fn take_in(&self, relay: &str, events: &[nostr::Event], trusted: &[TrustedKey], own: &str) {
        for event in events.iter().take(ANNOUNCEMENTS) {
            match announcement::read(&event.as_json(), trusted, own, now_s()) {
                Ok(announced) => self.publish(announced).await,
                Err(unheard) => {
                    self.mirror.status.change(|status| status.counters.unheard += 1);
                    tracing::debug!(%unheard, relay = shown_relay(relay), "an announcement has no effect");
                }
            }
        }
    }

    /// Shows in SpacetimeDB's outbox what the authority's says, and takes from there what others have put in.
    async fn reflect(&mut self) -> Result<(), AuthorityError> {
        if !self.look() {
            return Ok(());
        }
        self.miss().await?;
        let waiting = self.adopt().await?;
        self.show(&waiting).await
    }

    /// Takes over what has changed. Returns whether a change would be seen.
    fn look(&mut self) -> bool {
        let changed = self.outbox.has_changed().unwrap_or(false);
        let seen = self.outbox.borrow_and_update();
        if changed || self.rows.len() != seen.rows.len() {
            let row = |(name, row): (&String, &spacetime_sync_client::SeenOutboxEvent)| {
                let seen = Seen {
                    transport: row.transport.clone(),
                    status: row.status,
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
            names.last().map(|name| name.as_str().to_owned()).unwrap_or_default()
        };
        Ok(())
    }

    /// Takes in what others have put there, some names at a time. Returns the entries that these are.
    async fn adopt(&mut self) -> Result<Vec<Label>, AuthorityError> {
        let authority = &self.mirror.authority;
        let waiting = Waiting::after(&self.rows, &self.adopted_after, AT_ONCE);
        let names = waiting.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let known: BTreeSet<String> = if names.is_empty() {
            BTreeSet::new()
        } else {
            authority.outbox_has(&names).await?.into_iter().collect()
        };
        // It was over there, and forgotten; somebody has put it in again, or SpacetimeDB was restored to an earlier time.
        let entries = waiting.entries();
        let again: Vec<&str> = entries.iter().map(Label::as_str).collect();
        if !again.is_empty() {
            authority.outbox_wait_again(&again).await?;
        }
        for name in waiting.refused(&known) {
            self.refuse(name).await;
        }
        let policies = self.policies.borrow().clone();
        let share = share(self.mirror.config.pending, policies.len());
        for Adoption { entry, kept, why } in waiting.adoptions(&known, &policies, &self.mirror.key.public(), now_s()) {
            if let Some(error) = why {
                tracing::warn!(%error, event_id = %entry.event_id, "what somebody enqueued cannot be published");
            }
            if let Kept::Publish(policy) = kept
                && authority.outbox_pending(&policy.policy_id, share).await? >= share
            {
                continue;
            }
            authority.journal(&MirrorSource::Enqueued, kept, None, &[entry]).await?;
        }
        self.adopted_after = waiting.next;
        Ok(entries)
    }

    /// Says of what nobody can publish that it is not published: it has a name of the mirror's, and the authority does not know it,
    /// or a name that is too long. It takes room from the rest.
    async fn refuse(&self, name: &str) {
        tracing::warn!(
            name,
            "what stands in SpacetimeDB's outbox under this name is not published"
        );
        let outcome = OutboxOutcome {
            event_id: name.to_owned(),
            published_as: None,
        };
        if let Err(error) = self.client.mark_event(outcome, CALL).await {
            tracing::debug!(%error, name, "SpacetimeDB's outbox was not told of it");
        }
    }

    /// Says there what is to be published and what became of it: of what waits there first, which makes room for the rest, however
    /// many older entries have none. Then of what is over.
    async fn show(&mut self, waiting: &[Label]) -> Result<(), AuthorityError> {
        let authority = &self.mirror.authority;
        let waiting: Vec<&str> = waiting.iter().map(Label::as_str).collect();
        for are_over in [None, Some(true), Some(false)] {
            let unreflected = match are_over {
                None if waiting.is_empty() => continue,
                None => authority.outbox_unreflected_of(&waiting).await?,
                Some(are_over) => authority.outbox_unreflected(are_over, AT_ONCE).await?,
            };
            let steps = self.room.allow(steps(&unreflected, &self.rows), self.began.elapsed());
            let mut telling = stream::iter(steps).map(|step| self.tell(step)).buffer_unordered(CALLS);
            let mut shows: Vec<(Label, Reflected)> = Vec::new();
            let mut was_full = false;
            while let Some((event_id, told)) = telling.next().await {
                match told {
                    Told::Shows(says) => shows.push((event_id, says)),
                    // What is under way beside it may be cut off: it is said again.
                    Told::Full => {
                        was_full = true;
                        break;
                    }
                    Told::Nothing => {}
                }
            }
            drop(telling);
            if was_full {
                self.room.was_full(self.began.elapsed());
                self.mirror.status.change(|status| status.counters.no_room += 1);
            }
            for says in [Reflected::Pending, Reflected::Dropped, Reflected::Sent] {
                let names = shows.iter().filter(|(_, shows)| *shows == says);
                let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
                if !names.is_empty() {
                    authority.outbox_reflect(&names, says).await?;
                }
            }
        }
        Ok(())
    }

    /// Carries a step out.
    async fn tell(&self, step: Step) -> (Label, Told) {
        let (event_id, says) = (step.event_id(), step.says());
        if let Step::Refute { .. } = step {
            tracing::error!(%event_id, "another thing stands in SpacetimeDB's outbox under the name of an entry");
        }
        let said = match step.call() {
            Some(Call::Enqueue(event)) => self.client.enqueue_event(event, CALL).await,
            Some(Call::Mark(outcome)) => self.client.mark_event(outcome, CALL).await,
            None => Ok(()),
        };
        let told = told(says, &said);
        if let Err(error) = &said {
            let is_contradicted = match error {
                CallError::Refused(refusal) => refusal.code == RefusalCode::OutboxConflict,
                error => matches!(error, CallError::Invalid(_)),
            };
            let error = error_text(error);
            if is_contradicted {
                tracing::error!(error, %event_id, "SpacetimeDB's outbox contradicts the authority's");
            } else {
                tracing::debug!(error, %event_id, "SpacetimeDB's outbox was not told of an entry");
            }
        }
        (event_id.clone(), told)
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
                tracing::warn!(error = %error_text(&error), provider = key.provider_id, "a capability is not published");
            }
        }
    }
}

pub(crate) fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
