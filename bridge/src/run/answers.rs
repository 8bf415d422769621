//! Translates the answers of the authority and of SpacetimeDB into the lane's types.

use spacetime_sync_authority::AuthorityError;
use spacetime_sync_lane::{Failure, Record, Recorded, Standing};
use spacetime_sync_proto::{Refusal, RefusalCode, Seq, StreamId, error_text};
use spacetime_sync_stdb::StdbError;

pub(super) fn row(record: Record) -> (StreamId, Seq) {
    (record.stream_id, record.published)
}

pub(super) fn outcome(advanced: spacetime_sync_authority::Advanced) -> Recorded {
    Recorded {
        locked: advanced.locked,
        above_head: advanced.above_head,
    }
}

pub(super) fn standing(
    standing: Result<spacetime_sync_authority::Standing, AuthorityError>,
) -> Result<Standing, String> {
    standing
        .map(|standing| Standing {
            progress: standing.progress,
            chain: standing.chain,
        })
        .map_err(|error| error_text(&error))
}

pub(super) fn from_authority(error: &AuthorityError) -> Failure {
    Failure {
        class: error.class(),
        refusal: None,
        text: error_text(error),
    }
}

pub(super) fn from_stdb(error: StdbError) -> Failure {
    let (class, text) = (error.class(), error_text(&error));
    let refusal = match error {
        StdbError::Refused(refusal) => Some(refusal),
        StdbError::AnotherDatabase { .. } | StdbError::DatabaseGone { .. } => {
            Some(Refusal::new(RefusalCode::WrongDatabase, text.clone()))
        }
        _ => None,
    };
    Failure { class, refusal, text }
}
