//! `spacetime-sync keys`

use std::path::PathBuf;

use super::say;
use clap::Subcommand;
use spacetime_sync_issuer::keys::{KeyFolder, add_key, list_keys, moment_from_name, moment_text};

#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a new key. It starts to sign after 2 h 15 min, when every SpacetimeDB has seen it. The first key of a folder signs
    /// at once.
    Add {
        /// The folder: `issuer.keys_dir` or `seals.keys_dir` of the bridge.
        #[arg(long)]
        dir: PathBuf,
        /// Start to sign after so many seconds instead.
        #[arg(long)]
        in_seconds: Option<u64>,
    },
    /// Print the public halves of the keys of a folder as JSON, for clients whose tokens do not bring the keys of seals.
    Seals {
        /// The folder.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Show the keys of a folder, without their secrets.
    List {
        /// The folder.
        #[arg(long)]
        dir: PathBuf,
    },
}

pub(crate) fn execute(command: KeysCommand, now: u64) -> anyhow::Result<()> {
    match command {
        KeysCommand::Add { dir, in_seconds } => {
            let (name, kid) = add_key(&dir, in_seconds, now)?;
            let from = moment_from_name(&name).filter(|from| *from > now);
            let when = from.map_or("signs from now on".to_owned(), |from| {
                format!("is published from now on, and signs from {}", moment_text(from))
            });
            say(format_args!("{}: key {kid} {when}", dir.join(name).display()))?;
        }
        KeysCommand::Seals { dir } => {
            let keys = KeyFolder::open(&dir, now)?.ring().seal_keys();
            say(serde_json::to_string_pretty(&keys)?)?;
        }
        KeysCommand::List { dir } => {
            for listing in list_keys(&dir)? {
                match listing.key {
                    Ok((kid, from)) if from > now => say(format_args!("{} {kid} signs later", listing.name))?,
                    Ok((kid, _)) => say(format_args!("{} {kid}", listing.name))?,
                    Err(why) => say(format_args!("{} is not a valid key: {why}", listing.name))?,
                }
            }
        }
    }
    Ok(())
}
