//! What an operator does after a restore: `verify` finds where the logs of authority and SpacetimeDB differ, `rewind`
//! makes SpacetimeDB forget what the authority does not have, `republish` has the bridge fill windows again.
//!
//! The authority is right by definition. Nothing here writes an event on either side; the bridge publishes again what
//! SpacetimeDB forgets. All of it is safe while a bridge runs: the module refuses frames that do not follow, and a new
//! epoch makes the bridge compare every stream again.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::{ChainHash, Position, RefusalCode, Sealer, Seq, StreamId, StreamProgress};

use crate::unpublished::{BrokenTail, Tail, broken_tail};
use spacetime_sync_authority::{Act, Actor, Authority, AuthorityError};
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::Link;
use spacetime_sync_stdb::upkeep::HeldStream;

pub use common::Common;

/// Streams asked for at once.
const STREAMS: usize = 1_000;
/// How often to try to rewind a stream while a bridge keeps appending to it, and the pause between two tries.
const REWINDS: u32 = 50;
const BETWEEN_REWINDS: Duration = Duration::from_millis(100);

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// SpacetimeDB failed.
    #[error(transparent)]
    Stdb(#[from] StdbError),
    /// Neither side has the stream.
    #[error("neither the authority nor SpacetimeDB has stream {0}")]
    NoStream(StreamId),
    /// Something else keeps writing to the stream.
    #[error(
        "somebody wrote to stream {0} in SpacetimeDB during each of {REWINDS} attempts to rewind it; stop the writer, \
         which may be the bridge, and run this again"
    )]
    Busy(StreamId),
}

/// Both sides, and the streams to look at.
pub struct Sides {
    /// The authority.
    pub authority: Authority,
    /// SpacetimeDB.
    pub link: Link,
    /// Seals the position where a rewound log ends.
    pub sealer: Arc<dyn Sealer>,
    /// Only these streams; all streams if it is empty.
    pub streams: Vec<StreamId>,
    /// Who changes something, for the audit log.
    pub operator: Actor,
}

/// What is wrong with a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// SpacetimeDB holds events that the authority does not have, or other events in their place.
    Parted {
        /// The last position up to which both logs are equal, if SpacetimeDB still holds it.
        common_seq: Option<Seq>,
        /// Where SpacetimeDB's log ends.
        held_head: Seq,
        /// Where the authority's ends.
        head: Seq,
    },
    /// What SpacetimeDB holds is not a log.
    Broken {
        /// What is wrong with it.
        what: String,
    },
    /// SpacetimeDB holds less than the authority has recorded as published.
    Behind {
        /// Where SpacetimeDB's log ends.
        held_head: Seq,
        /// The published seq that the authority has recorded.
        published: Seq,
    },
    /// The authority holds committed events that cannot be published.
    Unpublishable(BrokenTail),
    /// The bridge says that it has halted the stream.
    Halted(HaltedStream),
}

/// A stream that the bridge has halted, as `/healthz` reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltedStream {
    /// The stream.
    pub stream_id: StreamId,
    /// The reason, for programs.
    pub code: String,
    /// The reason, for people.
    pub reason: String,
}

impl fmt::Display for HaltedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, reason, .. } = self;
        write!(
            f,
            "the bridge has halted it and publishes no more of its events: {reason}; docs/recovery.md says what to do \
             about {code}"
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parted {
                common_seq: Some(common),
                held_head,
                head,
            } => write!(
                f,
                "the same up to seq {common}; then SpacetimeDB, which goes to {held_head}, has other events than the \
                 authority, which goes to {head}"
            ),
            Self::Parted {
                common_seq: None,
                held_head,
                head,
            } => write!(
                f,
                "nothing that SpacetimeDB holds, up to seq {held_head}, is in the authority's log, which goes to {head}"
            ),
            Self::Broken { what } => write!(f, "what SpacetimeDB holds is not a log: {what}"),
            Self::Behind { held_head, published } => write!(
                f,
                "SpacetimeDB holds events up to seq {held_head}, but {published} is recorded as published: the bridge fills \
                 it when it next connects"
            ),
            Self::Unpublishable(BrokenTail { after, what }) => write!(
                f,
                "events after seq {after} are committed but cannot be published: {what}; docs/recovery.md says what to do \
                 about broken_log"
            ),
            Self::Halted(halted) => halted.fmt(f),
        }
    }
}

/// What was found and done for a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The stream.
    pub stream_id: StreamId,
    /// How many of its events were compared.
    pub compared: u64,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
    /// Where SpacetimeDB's log ends now, or would end without `--dry-run`.
    pub rewound_to: Option<Seq>,
}

/// A stream on both sides.
struct Pair {
    stream_id: StreamId,
    /// `None` if the authority does not have the stream.
    position: Option<StreamProgress>,
    /// `None` if SpacetimeDB does not have the stream.
    held: Option<HeldStream>,
}

impl Sides {
    /// Compares both sides. `deep` reads every event that SpacetimeDB holds; otherwise only the ends are compared.
    pub async fn verify(&self, deep: bool) -> Result<Vec<Report>, RepairError> {
        let mut reports = Vec::new();
        for pair in self.pairs().await? {
            reports.push(self.compare(&pair, deep).await?);
        }
        Ok(reports)
    }

    /// Makes SpacetimeDB forget what is not in the authority's log, and begins a new epoch. Reports every stream, and
    /// where its log ends afterwards if that moved or would move.
    pub async fn rewind(&self, dry_run: bool) -> Result<Vec<Report>, RepairError> {
        let mut reports = Vec::new();
        for pair in self.pairs().await? {
            let mut report = self.compare(&pair, false).await?;
            let parted = report.findings.iter().find_map(|finding| match finding {
                Finding::Parted { common_seq, .. } => Some(*common_seq),
                Finding::Broken { .. } | Finding::Behind { .. } | Finding::Unpublishable(_) | Finding::Halted(_) => {
                    None
                }
            });
            if let Some(common) = parted {
                let (to, chain) = match common {
                    Some(seq) => (seq, self.authority.chain_at(&pair.stream_id, seq).await?),
                    None => pair.window_floor(&self.authority).await?,
                };
                // The authority has just purged this position. The next run sees the new floor.
                let Some(chain) = chain else { continue };
                report.rewound_to = Some(to);
                if !dry_run {
                    self.end_at(&pair.stream_id, to, chain).await?;
                }
            }
            reports.push(report);
        }
        self.begin_epoch(dry_run).await?;
        Ok(reports)
    }

    /// Makes SpacetimeDB forget the streams and begin new windows, which the bridge then fills.
    pub async fn republish(&self, dry_run: bool) -> Result<Vec<Report>, RepairError> {
        let mut reports = Vec::new();
        for pair in self.pairs().await? {
            let (to, chain) = pair.window_floor(&self.authority).await?;
            let Some(chain) = chain else { continue };
            if !dry_run {
                self.end_at(&pair.stream_id, to, chain).await?;
            }
            reports.push(Report {
                stream_id: pair.stream_id,
                compared: 0,
                findings: Vec::new(),
                rewound_to: Some(to),
            });
        }
        self.begin_epoch(dry_run).await?;
        Ok(reports)
    }

    async fn end_at(&self, stream_id: &StreamId, to: Seq, chain: ChainHash) -> Result<(), RepairError> {
        let act = Act::RewindStream { stream_id, to };
        self.authority.record(act, &self.operator).await?;
        let at = Position { seq: to, chain };
        let seal = self.sealer.seal(stream_id, &at);
        for tries in 1.. {
            let held = self.link.heads(std::slice::from_ref(stream_id)).await?;
            let seen = held.first().copied().unwrap_or_else(|| Position::start(stream_id));
            let outcome = self.link.rewind(stream_id, seen, at, seal.as_ref()).await;
            if is_rewound(stream_id, outcome, tries)? {
                break;
            }
            tokio::time::sleep(BETWEEN_REWINDS).await;
        }
        self.authority.rewind_published(stream_id, to).await?;
        self.authority.advance_published(&[(stream_id.clone(), to)]).await?;
        Ok(())
    }

    async fn begin_epoch(&self, dry_run: bool) -> Result<(), RepairError> {
        if !dry_run {
            let beat = self.authority.begin_epoch(&self.operator).await?;
            self.link.mark_epoch(&beat, true).await?;
        }
        Ok(())
    }

    /// Every stream that either side has, or those that were asked for.
    async fn pairs(&self) -> Result<Vec<Pair>, RepairError> {
        let mut pairs = BTreeMap::new();
        let mut after = None;
        loop {
            let streams = self.link.streams(after.as_ref()).await?;
            let Some(last) = streams.last() else { break };
            after = Some(last.stream_id.clone());
            for held in streams {
                let pair = Pair::of(&mut pairs, &held.stream_id);
                pair.held = Some(held);
            }
        }
        let mut after = None;
        loop {
            let streams = self.authority.streams_after(after.as_ref(), STREAMS).await?;
            let Some(last) = streams.last() else { break };
            after = Some(last.stream_id.clone());
            for position in streams {
                let pair = Pair::of(&mut pairs, &position.stream_id);
                pair.position = Some(position);
            }
        }
        if self.streams.is_empty() {
            return Ok(pairs.into_values().collect());
        }
        let asked: BTreeSet<_> = self.streams.iter().collect();
        let found = |stream_id: &StreamId| pairs.remove(stream_id).ok_or(RepairError::NoStream(stream_id.clone()));
        asked.into_iter().map(found).collect()
    }

    async fn compare(&self, pair: &Pair, deep: bool) -> Result<Report, RepairError> {
        let mut report = Report {
            stream_id: pair.stream_id.clone(),
            compared: 0,
            findings: Vec::new(),
            rewound_to: None,
        };
        let held = match &pair.held {
            Some(held) => held.clone(),
            None => HeldStream {
                stream_id: pair.stream_id.clone(),
                oldest_seq: Seq::ZERO.next(),
                head: Position {
                    seq: Seq::ZERO,
                    chain: ChainHash::genesis(&pair.stream_id),
                },
            },
        };
        let common = Common::new(&self.authority, &self.link, &held);
        if deep {
            match common.walk().await? {
                Ok(compared) => report.compared = compared,
                Err(what) => report.findings.push(Finding::Broken { what }),
            }
        }
        if !common.agrees_at_head().await? {
            report.findings.push(Finding::Parted {
                common_seq: common.last().await?,
                held_head: held.head.seq,
                head: pair.position.as_ref().map_or(Seq::ZERO, |position| position.head_seq),
            });
        } else if let Some(position) = &pair.position
            && held.head.seq < position.published_seq
        {
            report.findings.push(Finding::Behind {
                held_head: held.head.seq,
                published: position.published_seq,
            });
        }
        if let Some(position) = &pair.position {
            let tail = if deep { Tail::Whole } else { Tail::NextPage };
            let broken = broken_tail(&self.authority, position, tail).await?;
            report.findings.extend(broken.map(Finding::Unpublishable));
        }
        Ok(report)
    }
}

/// Whether a rewind succeeded. If somebody else, such as a bridge, wrote to the stream first, the caller tries again,
/// up to a bound.
fn is_rewound(stream_id: &StreamId, outcome: Result<(), StdbError>, tries: u32) -> Result<bool, RepairError> {
    match outcome {
        Err(StdbError::Refused(refusal)) if refusal.code == RefusalCode::SeqGap => {
            if tries < REWINDS {
                Ok(false)
            } else {
                Err(RepairError::Busy(stream_id.clone()))
            }
        }
        outcome => Ok(outcome.map(|()| true)?),
    }
}

impl Pair {
    /// The pair of this stream, added if it is missing.
    fn of<'a>(pairs: &'a mut BTreeMap<StreamId, Self>, stream_id: &StreamId) -> &'a mut Self {
        pairs.entry(stream_id.clone()).or_insert_with(|| Self {
            stream_id: stream_id.clone(),
            position: None,
            held: None,
        })
    }

    /// Where the window of the stream begins when it is filled from nothing, and the chain hash there.
    async fn window_floor(&self, authority: &Authority) -> Result<(Seq, Option<ChainHash>), RepairError> {
        let extent = authority.extent(&self.stream_id).await?;
        let floor = extent.map_or(Seq::ZERO, |extent| extent.window_floor());
        Ok((floor, authority.chain_at(&self.stream_id, floor).await?))
    }
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::Refusal;

    use super::*;

    #[test]
    fn a_disturbed_rewind_is_tried_again_a_bounded_number_of_times() {
        let stream_id = StreamId::new("s").unwrap();
        let refused = |code| Err(StdbError::Refused(Refusal::new(code, "no")));
        let after = |outcome, tries| is_rewound(&stream_id, outcome, tries);
        assert!(matches!(after(Ok(()), REWINDS), Ok(true)));
        for tries in 1..REWINDS {
            assert!(
                matches!(after(refused(RefusalCode::SeqGap), tries), Ok(false)),
                "{tries}"
            );
        }
        assert!(matches!(
            after(refused(RefusalCode::SeqGap), REWINDS),
            Err(RepairError::Busy(_))
        ));
        let other = after(refused(RefusalCode::Unauthorized), 1);
        assert!(
            matches!(other, Err(RepairError::Stdb(StdbError::Refused(_)))),
            "{other:?}"
        );
    }
}
