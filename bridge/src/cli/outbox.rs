//! `spacetime-sync outbox`: what the mirror is to publish, has published, and has parked. Each act goes on record.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use spacetime_sync_authority::{Authority, OutboxState, Server};

use super::{operator, say};

/// How many entries one act is about at the most.
const AT_ONCE: usize = 1_000;

#[derive(Subcommand)]
pub(crate) enum OutboxCommand {
    /// List entries, the oldest first, and how each is at its relays.
    List(ListArgs),
    /// Publish parked entries again, from their first attempt.
    Retry(ActArgs),
    /// Give entries up for good. What relays have of them stays there.
    Drop(ActArgs),
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
    }
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
