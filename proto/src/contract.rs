//! Which versions of the contract a module, a bridge or a client speaks, and which of them two of these speak with each
//! other. The module writes into `sync_contract` what it speaks, and every bridge and client reads it when it connects.
//! Two neighbouring releases work together (docs/compatibility.md); whoever has no version in common learns which of the
//! two is too old, and never sees what looks like an empty database.

use std::fmt;

/// Name and version of the protocol.
pub const PROTOCOL: &str = "spacetime.sync.v1";
/// Version of tables, reducers, procedures and frames. Every change to them raises it.
pub const SCHEMA_VERSION: u32 = 12;
/// The oldest schema version that this release works with. The one before [`SCHEMA_VERSION`], unless that one worked with
/// no other than itself: the releases before 11.
pub const OLDEST_SCHEMA_VERSION: u32 = 11;
/// The first schema version whose module has the procedure `readable_streams`.
pub const READABLE_STREAMS_SINCE: u32 = 12;
/// sha256 of what the bindings are generated from: the module's public tables, its reducers, procedures and their
/// types. `scripts/bindings` prints it, and the test `lane::contract::module_and_bindings_agree` fails when it is out
/// of date. Nobody is refused by it.
pub const SCHEMA_HASH: &str = "sha256:745027b0d5996ec7615dae66b602c0f538c0e00a567e44dd48399e13e4d29eee";

/// What a module, a bridge or a client speaks: one protocol, and a range of schema versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// See [`PROTOCOL`].
    pub protocol: String,
    /// See [`OLDEST_SCHEMA_VERSION`].
    pub oldest: u32,
    /// See [`SCHEMA_VERSION`].
    pub newest: u32,
}

/// A row of the module's table `sync_contract`. Its columns never change, because releases of any age read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractRow {
    /// [`Self::NEWEST`] or [`Self::OLDEST`]. Rows of any other id are a newer release's, and mean nothing here.
    pub id: u8,
    /// See [`PROTOCOL`].
    pub protocol: String,
    /// The end of the range that the row stands for.
    pub schema_version: u32,
    /// See [`SCHEMA_HASH`]; empty in every row but that of the newest version.
    pub schema_hash: String,
}

impl ContractRow {
    /// The row of the schema version that the module was built with. Every module has it.
    pub const NEWEST: u8 = 0;
    /// The row of the oldest schema version that the module works with. Modules before version 11 have none.
    pub const OLDEST: u8 = 1;
}

impl Contract {
    /// What this release speaks.
    pub fn ours() -> Self {
        Self {
            protocol: PROTOCOL.to_owned(),
            oldest: OLDEST_SCHEMA_VERSION,
            newest: SCHEMA_VERSION,
        }
    }

    /// What this release's module writes into `sync_contract`.
    pub fn our_rows() -> [ContractRow; 2] {
        let row = |id, schema_version, schema_hash: &str| ContractRow {
            id,
            protocol: PROTOCOL.to_owned(),
            schema_version,
            schema_hash: schema_hash.to_owned(),
        };
        [
            row(ContractRow::NEWEST, SCHEMA_VERSION, SCHEMA_HASH),
            row(ContractRow::OLDEST, OLDEST_SCHEMA_VERSION, ""),
        ]
    }

    /// What a module speaks by its rows of `sync_contract`. `None` if the row of its newest version is missing. A module
    /// whose oldest version is missing, or past its newest, speaks its newest alone: such rows are a release's from before
    /// version 11, over which a later one may have left its own.
    pub fn of_rows(rows: impl IntoIterator<Item = ContractRow>) -> Option<Self> {
        let (mut newest, mut oldest) = (None, None);
        for row in rows {
            match row.id {
                ContractRow::NEWEST => newest = Some(row),
                ContractRow::OLDEST => oldest = Some(row.schema_version),
                _ => {}
            }
        }
        let newest = newest?;
        Some(Self {
            oldest: oldest.unwrap_or(newest.schema_version).min(newest.schema_version),
            newest: newest.schema_version,
            protocol: newest.protocol,
        })
    }

    /// The schema version that two parties speak with each other: the newest that both know. This is the one place where
    /// that is decided, for bridge, client, issuer and module alike.
    pub fn agree(&self, theirs: &Self) -> Result<u32, Mismatch> {
        if self.protocol != theirs.protocol {
            return Err(Mismatch::Protocol(older_protocol(&self.protocol, &theirs.protocol)));
        }
        if self.newest < theirs.oldest {
            return Err(Mismatch::Schema(Party::Ours));
        }
        if theirs.newest < self.oldest {
            return Err(Mismatch::Schema(Party::Theirs));
        }
        Ok(self.newest.min(theirs.newest))
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            oldest,
            newest,
        } = self;
        if oldest == newest {
            write!(f, "{protocol} schema {newest}")
        } else {
            write!(f, "{protocol} schema {oldest} to {newest}")
        }
    }
}

/// One of two parties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The one that decides.
    Ours,
    /// The other one.
    Theirs,
}

/// Why two parties cannot work together, and which of them a newer release would help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// They speak two protocols. `None` if neither protocol is a later version of the other.
    Protocol(Option<Party>),
    /// They have no schema version in common.
    Schema(Party),
}

impl Mismatch {
    /// The party that is too old.
    pub fn older(self) -> Option<Party> {
        match self {
            Self::Protocol(older) => older,
            Self::Schema(older) => Some(older),
        }
    }

    /// What to do, by the names of the two parties.
    pub fn remedy(self, ours: &str, theirs: &str) -> String {
        match self.older() {
            Some(Party::Ours) => format!("{ours} is too old: update it"),
            Some(Party::Theirs) => format!("{theirs} is too old: update it"),
            None => format!("{ours} and {theirs} are not of one project"),
        }
    }
}

/// Which of two protocols is the earlier version, if they have the same name.
fn older_protocol(ours: &str, theirs: &str) -> Option<Party> {
    let version = |protocol: &str| -> Option<(String, u32)> {
        let (name, version) = protocol.rsplit_once(".v")?;
        Some((name.to_owned(), version.parse().ok()?))
    };
    let ((our_name, ours), (their_name, theirs)) = (version(ours)?, version(theirs)?);
    if our_name != their_name {
        return None;
    }
    match ours.cmp(&theirs) {
        std::cmp::Ordering::Less => Some(Party::Ours),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Party::Theirs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(protocol: &str, oldest: u32, newest: u32) -> Contract {
        Contract {
            protocol: protocol.to_owned(),
            oldest,
            newest,
        }
    }

    #[test]
    fn two_parties_speak_the_newest_version_that_both_know() {
        use Mismatch::{Protocol, Schema};
        use Party::{Ours, Theirs};
        let other = "spacetime.sync.v2";
        for (ours, theirs, expected, what) in [
            ((PROTOCOL, 11, 11), (PROTOCOL, 11, 11), Ok(11), "one release"),
            ((PROTOCOL, 11, 12), (PROTOCOL, 11, 11), Ok(11), "the one before"),
            ((PROTOCOL, 11, 11), (PROTOCOL, 11, 12), Ok(11), "the next one"),
            (
                (PROTOCOL, 11, 12),
                (PROTOCOL, 12, 13),
                Ok(12),
                "the next one, which drops a version",
            ),
            (
                (PROTOCOL, 12, 13),
                (PROTOCOL, 11, 12),
                Ok(12),
                "the one before, which knows an older one",
            ),
            ((PROTOCOL, 11, 14), (PROTOCOL, 12, 13), Ok(13), "a wider range"),
            ((PROTOCOL, 12, 13), (PROTOCOL, 11, 14), Ok(13), "a narrower range"),
            (
                (PROTOCOL, 11, 11),
                (PROTOCOL, 12, 13),
                Err(Schema(Ours)),
                "two releases on",
            ),
            (
                (PROTOCOL, 12, 13),
                (PROTOCOL, 11, 11),
                Err(Schema(Theirs)),
                "two releases back",
            ),
            (
                (PROTOCOL, 11, 11),
                (PROTOCOL, 10, 10),
                Err(Schema(Theirs)),
                "the last release without ranges",
            ),
            (
                (PROTOCOL, 11, 11),
                (other, 11, 11),
                Err(Protocol(Some(Ours))),
                "a later protocol",
            ),
            (
                (other, 11, 11),
                (PROTOCOL, 11, 11),
                Err(Protocol(Some(Theirs))),
                "an earlier protocol",
            ),
            (
                (PROTOCOL, 11, 11),
                ("khala.sync.v9", 11, 11),
                Err(Protocol(None)),
                "another name",
            ),
            ((PROTOCOL, 11, 11), ("", 11, 11), Err(Protocol(None)), "no protocol"),
            (
                (PROTOCOL, 11, 11),
                ("spacetime.sync.v01", 1, 1),
                Err(Protocol(None)),
                "another way to write it",
            ),
            (
                (PROTOCOL, 11, 11),
                (other, 1, 2),
                Err(Protocol(Some(Ours))),
                "the protocol comes first",
            ),
        ] {
            let [ours, theirs] = [ours, theirs].map(|(protocol, oldest, newest)| speaks(protocol, oldest, newest));
            assert_eq!(ours.agree(&theirs), expected, "{what}: {ours} and {theirs}");
        }
    }

    #[test]
    fn both_parties_decide_the_same_whatever_their_ranges() {
        let ranges = || (1..=5).flat_map(|newest| (1..=newest).map(move |oldest| speaks(PROTOCOL, oldest, newest)));
        for (ours, theirs) in ranges().flat_map(|ours| ranges().map(move |theirs| (ours.clone(), theirs))) {
            let known = |party: &Contract, version: u32| (party.oldest..=party.newest).contains(&version);
            let common = (1..=5)
                .rev()
                .find(|version| known(&ours, *version) && known(&theirs, *version));
            let (here, there) = (ours.agree(&theirs), theirs.agree(&ours));
            assert_eq!(here.ok(), common, "{ours} and {theirs}");
            assert_eq!(there.ok(), common, "{theirs} and {ours}");
            let older = here.err().and_then(Mismatch::older);
            match there.err().and_then(Mismatch::older) {
                None => assert_eq!(older, None),
                Some(Party::Ours) => assert_eq!(older, Some(Party::Theirs)),
                Some(Party::Theirs) => assert_eq!(older, Some(Party::Ours)),
            }
        }
    }

    #[test]
    fn a_module_of_any_age_says_what_it_speaks() {
        let row = |id, schema_version| ContractRow {
            id,
            protocol: PROTOCOL.to_owned(),
            schema_version,
            schema_hash: String::new(),
        };
        for (rows, expected, what) in [
            (vec![row(0, 12), row(1, 11)], Some((11, 12)), "a range"),
            (vec![row(1, 11), row(0, 12)], Some((11, 12)), "in any order"),
            (vec![row(0, 10)], Some((10, 10)), "a module before ranges"),
            (
                vec![row(0, 10), row(1, 11)],
                Some((10, 10)),
                "the same, published over a later one",
            ),
            (
                vec![row(0, 12), row(1, 11), row(2, 7), row(255, 0)],
                Some((11, 12)),
                "rows of a newer release",
            ),
            (vec![row(1, 11)], None, "no newest version"),
            (vec![], None, "an empty table"),
        ] {
            let expected = expected.map(|(oldest, newest)| speaks(PROTOCOL, oldest, newest));
            assert_eq!(Contract::of_rows(rows), expected, "{what}");
        }
        assert_eq!(Contract::of_rows(Contract::our_rows()), Some(Contract::ours()));
    }

    #[test]
    fn a_release_works_with_the_one_before_it() {
        let ours = Contract::ours();
        assert!(ours.oldest <= ours.newest);
        // The first release that works with another one is 12.
        let expected = SCHEMA_VERSION.saturating_sub(1).max(11);
        assert!(ours.oldest <= expected, "{ours} leaves the release before it behind");
    }

    #[test]
    fn a_mismatch_says_who_is_too_old() {
        let says = |mismatch: Mismatch| mismatch.remedy("this client", "the module");
        assert_eq!(says(Mismatch::Schema(Party::Ours)), "this client is too old: update it");
        assert_eq!(
            says(Mismatch::Protocol(Some(Party::Theirs))),
            "the module is too old: update it"
        );
        assert_eq!(
            says(Mismatch::Protocol(None)),
            "this client and the module are not of one project"
        );
        assert_eq!(
            speaks(PROTOCOL, 11, 12).to_string(),
            "spacetime.sync.v1 schema 11 to 12"
        );
        assert_eq!(speaks(PROTOCOL, 11, 11).to_string(), "spacetime.sync.v1 schema 11");
    }
}
