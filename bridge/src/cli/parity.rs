//! `spacetime-sync parity`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use spacetime_sync_authority::LegacyTable;
use spacetime_sync_ops::parity::{ClientFile, Extent, Legacy, LegacyRound, LegacySource, Parity, Round, TopicRound};

use super::halted::halted_streams;
use super::{both_sides, load, say, tell};

/// The longest time to watch or to wait, in seconds: a year.
const LONGEST: u64 = 365 * 24 * 60 * 60;

#[derive(Args)]
pub(crate) struct ParityArgs {
    /// The configuration of the bridge, which says where authority and SpacetimeDB are. As with `run`, every key can come from
    /// the environment instead.
    #[arg(long)]
    config: Option<PathBuf>,
    /// How many events to compare one by one.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    sample: u64,
    /// Compare every event that SpacetimeDB holds.
    #[arg(long, conflicts_with = "sample")]
    whole: bool,
    /// Compare repeatedly for so many seconds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=LONGEST))]
    watch: Option<u64>,
    /// Seconds from one comparison to the next.
    #[arg(long, default_value_t = 30, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
    every: u64,
    /// The SQLite file of a client. May be given several times.
    #[arg(long = "client")]
    clients: Vec<PathBuf>,
    /// The table in which those clients keep their events, with the columns of the example `follow`.
    #[arg(long, requires = "clients")]
    client_table: Option<String>,
    /// A file with what a legacy lane emitted, one JSON object a line: topic, seq, payload_hash and, if known, kind. Compares it with
    /// the lane, as many events of it as of the sample, or the whole.
    #[arg(long, group = "legacy")]
    legacy_file: Option<PathBuf>,
    /// The same as a table in the authority's database, schema.table, with these columns.
    #[arg(long, group = "legacy")]
    legacy_table: Option<String>,
    /// Compare only topics of the legacy lane that begin so.
    #[arg(long, requires = "legacy", default_value = "")]
    legacy_topic: String,
    /// Choose the same events of the legacy lane as a run before, whose report names this seed.
    #[arg(long, requires = "legacy")]
    legacy_seed: Option<u64>,
    /// Print one line of JSON to stdout at the end.
    #[arg(long)]
    json: bool,
}

/// Compares, and fails if anything differs.
pub(crate) async fn compare(args: ParityArgs) -> anyhow::Result<()> {
    let config = load(args.config)?;
    let issuer = config.open_issuer()?;
    let (authority, link) = both_sides(&config, issuer.as_ref()).await?;
    let table = args.client_table.as_deref();
    let clients: Result<Vec<_>, _> = args.clients.iter().map(|path| ClientFile::new(path, table)).collect();
    let clients = clients?;
    let file = args.legacy_file.map(LegacySource::File);
    let source = file.or_else(|| Some(LegacySource::Table(LegacyTable::new(args.legacy_table.as_deref()?))));
    let seed = args.legacy_seed.unwrap_or_else(rand::random);
    let extent = if args.whole {
        Extent::Whole
    } else {
        Extent::Sample(args.sample)
    };
    let started = Instant::now();
    let mut rounds = Vec::new();
    loop {
        let begun = Instant::now();
        let legacy = source.clone().map(|source| Legacy {
            source,
            beginning: args.legacy_topic.clone(),
            seed: seed.wrapping_add(rounds.len() as u64),
        });
        let parity = Parity {
            authority: &authority,
            link: &link,
            clients: &clients,
            legacy: legacy.as_ref(),
        };
        let round = parity.round(extent).await.context("cannot complete the comparison")?;
        tell_of(&round, clients.len(), begun.elapsed());
        if let Some(legacy) = &round.legacy {
            tell_of_legacy(legacy);
        }
        if let Some(legacy) = rounds.last_mut().and_then(|before: &mut Round| before.legacy.as_mut()) {
            legacy.forget_details();
        }
        rounds.push(round);
        let next = begun + Duration::from_secs(args.every);
        if args
            .watch
            .is_none_or(|watch| next > started + Duration::from_secs(watch))
        {
            break;
        }
        tokio::time::sleep_until(next.into()).await;
    }
    let mismatches: u64 = rounds.iter().map(Round::all_mismatches).sum();
    let ratios = rounds.iter().flat_map(|round| {
        let legacy = round.legacy.iter();
        let legacy = legacy.flat_map(|legacy| [legacy.mismatch_ratio, legacy.invalid_ratio]);
        [round.mismatch_ratio()].into_iter().chain(legacy)
    });
    let worst = ratios.fold(0.0, f64::max);
    let halted = halted_streams(&config).await;
    for stream in halted.iter().flatten() {
        tell(format_args!("  {}: {stream}", stream.stream_id));
    }
    if args.json {
        // Null if the bridge did not say it.
        let halted = halted.as_ref().ok();
        say(json!({ "mismatches": mismatches, "worst_ratio": worst, "halted": halted, "rounds": rounds }))?;
    }
    let halted = halted?;
    anyhow::ensure!(
        mismatches == 0 && halted.is_empty(),
        "{mismatches} mismatches and {} halted streams: the parties differ",
        halted.len()
    );
    Ok(())
}

fn tell_of(round: &Round, clients: usize, took: Duration) {
    tell(format_args!(
        "{} streams, {} positions and {} events compared in {took:.1?} between authority, SpacetimeDB and {clients} clients: \
         {} mismatches ({:.4}); {} only after another look, {} below the window; behind by {} (SpacetimeDB) and {} (clients) \
         events",
        round.streams,
        round.positions,
        round.events,
        round.mismatches.len(),
        round.mismatch_ratio(),
        round.settled_by_another_look,
        round.events_below_window,
        round.spacetimedb_behind,
        round.clients_behind,
    ));
    for mismatch in round.mismatches.iter().take(20) {
        tell(format_args!("  {mismatch}"));
    }
}

fn tell_of_legacy(legacy: &LegacyRound) {
    let sum = |count: fn(&TopicRound) -> u64| legacy.topics.iter().map(count).sum::<u64>();
    tell(format_args!(
        "legacy lane: {} of {} entries in {} topics compared (seed {}): {} mismatches ({:.4}); {} repeated, {} contradictory, {} \
         invalid ({:.4}){}",
        legacy.compared,
        legacy.entries,
        legacy.topic_count,
        legacy.seed,
        legacy.mismatches,
        legacy.mismatch_ratio,
        legacy.repeated,
        legacy.contradictory,
        legacy.invalid,
        legacy.invalid_ratio,
        if legacy.unfinished_line {
            ", and a line that is not finished"
        } else {
            ""
        },
    ));
    tell(format_args!(
        "  not compared: {} purged, {} before the legacy lane, {} past its end, {} deletions only in the lane, {} events without a \
         seq of their topic; {} topics only in the lane: {}",
        sum(|topic| topic.purged),
        sum(|topic| topic.before_the_legacy_lane),
        sum(|topic| topic.legacy_lane_behind),
        sum(|topic| topic.deletions_only_in_the_lane),
        sum(|topic| topic.without_topic_seq),
        legacy.topics_only_in_the_lane,
        legacy.topics_only_in_the_lane_examples.join(", "),
    ));
    for topic in legacy.topics.iter().filter(|topic| topic.mismatches > 0).take(20) {
        tell(format_args!(
            "  {}: {} of {} compared; {} missing in the lane, {} in the legacy lane; hash of {} differs, kind of {}, order of {}{}",
            topic.topic,
            topic.compared,
            topic.entries,
            topic.missing_in_the_lane,
            topic.missing_in_the_legacy_lane,
            topic.hash_differs,
            topic.kind_differs,
            topic.order_differs,
            topic
                .no_stream
                .iter()
                .map(|why| format!("; no stream: {why}"))
                .collect::<String>(),
        ));
    }
    for difference in legacy.differences.iter().take(20) {
        let what = &difference.what;
        tell(format_args!(
            "  legacy: {} at seq {}: {what}",
            difference.topic, difference.seq
        ));
    }
    for example in &legacy.invalid_examples {
        tell(format_args!("  legacy: {example}"));
    }
}
