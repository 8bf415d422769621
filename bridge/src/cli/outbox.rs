//! `spacetime-sync outbox`: what the mirror is to publish, has published, and has parked. Each act goes on record.

use std::collections::BTreeSet;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use spacetime_sync_authority::{Authority, OutboxState, Server, one_relay, shown_relay};

use super::{operator, say};

/// How many entries one act is about at the most.
const AT_ONCE: usize = 1_000;
/// How often it is asked what waits for a relay that is given up. A policy that names it brings more all the while.
const ROUNDS: usize = 1_000;

#[derive(Subcommand)]
pub(crate) enum OutboxCommand {
    /// List entries, the oldest first, and how each is at its relays.
    List(ListArgs),
    /// Publish parked entries again, from their first attempt.
    Retry(ActArgs),
    /// Give entries up for good. What relays have of them stays there.
    Drop(ActArgs),
    /// Give up what waits for a relay that will never come back. Entries do not count it any more; those that have no other
    /// relay are dropped. A mirror reads its policies every two seconds: for so long after the last policy that names the relay,
    /// entries may still come to wait for it.
    GiveUp(GiveUpArgs),
}

#[derive(Args)]
pub(crate) struct WhereArgs {
    /// postgres://user:password@host:port/database of the authority, as a role with the duty mirror.
    #[arg(long, env = "SPACETIME_SYNC__AUTHORITY__URL", hide_env_values = true)]
    authority_url: String,
    /// Let the connection to an authority on another machine do without sslmode=verify-full.
    #[arg(long, env = "SPACETIME_SYNC__AUTHORITY__ALLOW_PLAINTEXT")]
    authority_allow_plaintext: bool,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    at: WhereArgs,
    /// Entries that wait for a person. This is the default.
    #[arg(long, conflicts_with_all = ["pending", "sent"])]
    parked: bool,
    /// Entries that are to be published.
    #[arg(long, conflicts_with = "sent")]
    pending: bool,
    /// Entries that are published.
    #[arg(long)]
    sent: bool,
    /// At most so many.
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

#[derive(Args)]
pub(crate) struct ActArgs {
    #[command(flatten)]
    at: WhereArgs,
    /// The entries, by their names in the list.
    #[arg(required_unless_present = "all_parked", conflicts_with = "all_parked")]
    event_ids: Vec<String>,
    /// All that are parked, at most 1,000 at once.
    #[arg(long)]
    all_parked: bool,
}

#[derive(Args)]
pub(crate) struct GiveUpArgs {
    #[command(flatten)]
    at: WhereArgs,
    /// The relay, by its address, or as the list shows it.
    relay: String,
}

pub(crate) async fn execute(command: OutboxCommand) -> anyhow::Result<()> {
    match command {
        OutboxCommand::List(args) => list(args).await,
        OutboxCommand::Retry(args) => {
            let (authority, ids) = args.entries(true).await?;
            let done = authority.outbox_retry(&ids, &operator()).await?;
            told("is published again", &ids, &done)
        }
        OutboxCommand::Drop(args) => {
            let (authority, ids) = args.entries(false).await?;
            let done = authority.outbox_drop(&ids, &operator()).await?;
            told("is dropped", &ids, &done)
        }
        OutboxCommand::GiveUp(args) => give_up(args).await,
    }
}

async fn give_up(args: GiveUpArgs) -> anyhow::Result<()> {
    let authority = args.at.connect().await?;
    let waiting = authority.outbox_waiting_relays().await?;
    let addresses = meant(&args.relay, &waiting)?;
    let (mut given_up, shown) = (0, shown_relay(&addresses[0]));
    let mut left = addresses.clone();
    for _ in 0..ROUNDS {
        for address in &left {
            given_up += authority.outbox_give_up(address, AT_ONCE, &operator()).await?;
        }
        // An act that found fewer than it may says nothing of the rest: some were settled while it waited for them.
        let waiting = authority.outbox_waiting_relays().await?;
        left.retain(|address| waiting.contains(address));
        if left.is_empty() {
            break;
        }
    }
    say(format_args!("{given_up} entries do not wait for {shown} any more"))?;
    let (policies, _) = authority.mirror_policies().await?;
    let is_meant = |relay: &String| addresses.iter().any(|address| one_relay(address) == *relay);
    for policy in policies.iter().filter(|policy| policy.relays.iter().any(is_meant)) {
        let name = &policy.policy_id;
        say(format_args!(
            "policy {name} still names it: what is new waits for it again"
        ))?;
    }
    anyhow::ensure!(
        left.is_empty(),
        "expected that nothing waits for {shown} any more, found that something does: take it out of the policies, and give it up again"
    );
    Ok(())
}

/// The addresses that are meant, as deliveries have them: those of the one relay that has this address, or is shown like this.
fn meant(said: &str, waiting: &[String]) -> anyhow::Result<Vec<String>> {
    let (one, shown) = (one_relay(said), shown_relay(said));
    let of = |is_meant: &dyn Fn(&String) -> bool| -> Vec<String> {
        waiting.iter().filter(|address| is_meant(address)).cloned().collect()
    };
    let mut found = of(&|address| one_relay(address) == one);
    if found.is_empty() {
        found = of(&|address| [said, shown.as_str()].contains(&shown_relay(address).as_str()));
        let different: BTreeSet<String> = found.iter().map(|address| one_relay(address)).collect();
        anyhow::ensure!(
            different.len() < 2,
            "expected the address of one relay, found {} that are shown as {shown}: write the whole address of one",
            different.len()
        );
    }
    anyhow::ensure!(
        !found.is_empty(),
        "expected a relay that something waits for, found {shown}: see spacetime-sync outbox list --pending"
    );
    Ok(found)
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let state = match (args.pending, args.sent) {
        (true, _) => OutboxState::Pending,
        (_, true) => OutboxState::Sent,
        (false, false) => OutboxState::Parked,
    };
    let authority = args.at.connect().await?;
    for row in authority.outbox_list(state, args.limit).await? {
        let why = row.failure.as_deref().unwrap_or("-");
        say(format_args!(
            "{} {} {} {}s {why}",
            row.event_id, row.status, row.schema, row.age_s
        ))?;
        for relay in row.relays {
            say(format_args!("  {relay}"))?;
        }
    }
    Ok(())
}

/// Says what was done, and fails if something was not.
fn told(what: &str, asked: &[String], done: &[String]) -> anyhow::Result<()> {
    for event_id in done {
        say(format_args!("{event_id} {what}"))?;
    }
    let missing: Vec<&str> = asked
        .iter()
        .filter(|id| !done.contains(id))
        .map(String::as_str)
        .collect();
    anyhow::ensure!(
        missing.is_empty(),
        "expected entries that are parked, found none under these names: {}; see spacetime-sync outbox list",
        missing.join(" ")
    );
    Ok(())
}

impl WhereArgs {
    async fn connect(&self) -> anyhow::Result<Authority> {
        let server = Server::at(&self.authority_url).allow_plaintext(self.authority_allow_plaintext);
        Authority::connect(server, 1).await.context("--authority-url")
    }
}

impl ActArgs {
    /// The entries that are meant; `to_publish`: those alone that have relays.
    async fn entries(self, to_publish: bool) -> anyhow::Result<(Authority, Vec<String>)> {
        let authority = self.at.connect().await?;
        if !self.all_parked {
            return Ok((authority, self.event_ids));
        }
        let rows = authority.outbox_list(OutboxState::Parked, AT_ONCE).await?;
        // What no policy names was never to be published, so it has no relay to try again.
        let meant = rows.into_iter().filter(|row| !to_publish || !row.relays.is_empty());
        Ok((authority, meant.map(|row| row.event_id).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_meant_by_its_address_or_as_it_is_shown_if_one_is_shown_so() {
        let waiting = [
            "wss://a",
            "wss://a/",
            "wss://me:x@b",
            "wss://you:y@b",
            "wss://c/?token=z",
        ]
        .map(str::to_owned);
        let found = |said: &str| meant(said, &waiting).map_err(|error| error.to_string());
        let of = |addresses: &[&str]| Ok(addresses.iter().map(|address| (*address).to_owned()).collect());
        // Entries of an older build may have another form of the same address.
        assert_eq!(found("WSS://A/"), of(&["wss://a", "wss://a/"]));
        assert_eq!(found("wss://you:y@b/"), of(&["wss://you:y@b"]));
        assert_eq!(found("wss://c/?…"), of(&["wss://c/?token=z"]));
        for (said, expected) in [("wss://…@b", "found 2"), ("wss://d:secret@d", "found wss://…@d")] {
            let refused = found(said).unwrap_err();
            assert!(refused.contains(expected) && !refused.contains("secret"), "{refused}");
        }
    }
}
