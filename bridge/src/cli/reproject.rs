//! `spacetime-sync reproject`: compares the documents of a table with its rows, beside whoever writes to it, and brings in what
//! differs. One that was stopped goes on where it was.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use spacetime_sync_authority::{Authority, AuthorityError, Reprojection, ReprojectionPhase, Server};
use spacetime_sync_proto::refusal::RefusalClass;

use super::{say, tell};

/// How often a page is tried again that Postgres could not do, and after which pause.
const ATTEMPTS: u32 = 10;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often it says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct ReprojectArgs {
    /// The projection, as `runtime.sync_attach` has named it: `schema.table`.
    projection: String,
    /// postgres://user:password@host:port/database of the authority, as a role with the duty runtime that may read the table.
    #[arg(long, env = "SPACETIME_SYNC__AUTHORITY__URL", hide_env_values = true)]
    authority_url: String,
    /// Let the connection to an authority on another machine do without sslmode=verify-full.
    #[arg(long, env = "SPACETIME_SYNC__AUTHORITY__ALLOW_PLAINTEXT")]
    authority_allow_plaintext: bool,
    /// How many rows and documents are looked at in a second, at the most.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    per_second: u32,
    /// How many are looked at in one transaction. It holds the locks of their streams, so their writers wait for it.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    page: u32,
    /// Begin at the first row, even if an earlier run was stopped on the way.
    #[arg(long)]
    anew: bool,
}

pub(crate) async fn execute(args: ReprojectArgs) -> anyhow::Result<()> {
    let server = Server::at(&args.authority_url).allow_plaintext(args.authority_allow_plaintext);
    // The duty runtime does not read which migrations there are.
    let authority = Authority::unconnected(server, 1).context("--authority-url")?;
    let projection = &args.projection;
    let before = authority.reprojection(projection).await?;
    let mut again = args.anew || before.is_none_or(|before| before.phase == ReprojectionPhase::Done);
    let rows = authority.projected_rows(projection).await?;
    if !again {
        tell(format_args!("{projection}: goes on where an earlier run was stopped"));
    }
    let mut looked_at = before.filter(|_| !again).map_or(0, |before| before.looked_at);
    let mut said_at = Instant::now();
    loop {
        let began = Instant::now();
        let at = page(&authority, projection, args.page, again).await?;
        again = false;
        let looked = at.looked_at.saturating_sub(looked_at);
        looked_at = at.looked_at;
        if at.phase == ReprojectionPhase::Done {
            authority.close().await;
            return say(format_args!(
                "{projection}: looked at {} rows and documents, {} events",
                at.looked_at, at.applied
            ));
        }
        if said_at.elapsed() >= SAY_EVERY {
            said_at = Instant::now();
            tell(progress(projection, &at, rows));
        }
        tokio::time::sleep(pause(looked, args.per_second, began.elapsed())).await;
    }
}

async fn page(authority: &Authority, projection: &str, most: u32, again: bool) -> Result<Reprojection, AuthorityError> {
    let mut attempt = 1;
    loop {
        match authority.reproject(projection, most, again).await {
            Err(error) if error.class() == RefusalClass::Retry && attempt < ATTEMPTS => {
                tell(format_args!("{projection}: {error}; tries again"));
                attempt += 1;
                tokio::time::sleep(RETRY_AFTER).await;
            }
            result => return result,
        }
    }
}

/// How long to wait after a page, so that no more is looked at in a second than that.
fn pause(looked: u64, per_second: u32, took: Duration) -> Duration {
    let share = Duration::from_secs_f64(looked as f64 / f64::from(per_second.max(1)));
    share.saturating_sub(took)
}

fn progress(projection: &str, at: &Reprojection, rows: Option<u64>) -> String {
    let (what, of) = match at.phase {
        ReprojectionPhase::Rows => ("rows", rows.map(|rows| format!(" of about {rows}")).unwrap_or_default()),
        ReprojectionPhase::Documents | ReprojectionPhase::Done => ("rows and documents", String::new()),
    };
    format!(
        "{projection}: looked at {}{of} {what}, {} events",
        at.looked_at, at.applied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_followed_by_a_pause_that_keeps_to_the_rate() {
        let ms = Duration::from_millis;
        assert_eq!(pause(500, 5_000, ms(20)), ms(80));
        assert_eq!(pause(500, 5_000, ms(200)), ms(0));
        assert_eq!(pause(0, 1, ms(0)), ms(0));
        assert_eq!(pause(1, 1, ms(0)), ms(1_000));
    }

    #[test]
    fn progress_names_the_rows_that_are_left() {
        let at = |phase| Reprojection {
            phase,
            looked_at: 1_500,
            applied: 3,
        };
        assert_eq!(
            progress("public.orders", &at(ReprojectionPhase::Rows), Some(10_000)),
            "public.orders: looked at 1500 of about 10000 rows, 3 events"
        );
        assert_eq!(
            progress("public.orders", &at(ReprojectionPhase::Documents), Some(10_000)),
            "public.orders: looked at 1500 rows and documents, 3 events"
        );
    }
}
