//! SpacetimeDB as the bridge uses it: the live link ([`link`]) and the HTTP API ([`admin`]).

pub mod admin;
pub mod grants;
mod handshake;
pub mod identity;
mod journal;
pub mod link;
pub mod settings;
pub mod tokens;
pub mod upkeep;

mod nodelay;
mod pin;

use spacetime_sync_proto::contract::{Contract, Mismatch};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{ChainHash, DatabasePin, Refusal};
use spacetimedb_sdk::__codegen::__sats::u256;

/// Why an operation on SpacetimeDB failed.
#[derive(Debug, thiserror::Error)]
pub enum StdbError {
    /// The server cannot be reached, or closed the connection.
    #[error("spacetimedb at {uri} is not available: {message}")]
    Unavailable {
        /// The server.
        uri: String,
        /// What the transport reports.
        message: String,
    },
    /// The server took longer than allowed.
    #[error("spacetimedb at {uri} did not answer {what} in time")]
    TimedOut {
        /// The server.
        uri: String,
        /// What was asked for.
        what: &'static str,
    },
    /// The bridge signs its own tokens, but none of its keys may sign at the moment.
    #[error("the bridge has no key that may sign at the moment; create one with: spacetime-sync keys add --dir DIR")]
    NoSigner,
    /// The server does not accept the token.
    #[error(
        "spacetimedb at {uri} does not accept the token: {message}; use a token of this server that has not expired"
    )]
    Unauthorized {
        /// The server.
        uri: String,
        /// What the server says.
        message: String,
    },
    /// The token is valid, but its identity may not do this.
    #[error(
        "spacetimedb at {uri} does not let this identity do that to database {database:?}: {message}; use the token of \
         the identity that published it"
    )]
    Forbidden {
        /// The server.
        uri: String,
        /// The name of the database.
        database: String,
        /// What the server says.
        message: String,
    },
    /// The token is valid, but the module refuses its identity.
    #[error("the module of database {database:?} does not let this identity in: {refusal}")]
    NotLetIn {
        /// The name.
        database: String,
        /// What the module says.
        refusal: Refusal,
    },
    /// There is no such database.
    #[error("spacetimedb at {uri} has no database {database:?}; run: spacetime-sync publish")]
    NoDatabase {
        /// The server.
        uri: String,
        /// The name of the database.
        database: String,
    },
    /// The name leads to another database than the pinned one, or the pinned one has another owner.
    #[error(
        "database {database:?} at {uri} is not the one that the configuration names: expected {expected}, found {found}. \
         Nothing is published there. If its owner has published it anew, put what `spacetime-sync publish` printed into \
         [spacetimedb]; if not, somebody else has taken its name"
    )]
    AnotherDatabase {
        /// The server.
        uri: String,
        /// The name.
        database: String,
        /// What the configuration names.
        expected: Box<DatabasePin>,
        /// What the server has.
        found: Box<DatabasePin>,
    },
    /// The server has neither the pinned database nor one of that name.
    #[error(
        "spacetimedb at {uri} has no database {database:?} any more: expected {expected}. Run: spacetime-sync publish, and \
         put what it prints into [spacetimedb]"
    )]
    DatabaseGone {
        /// The server.
        uri: String,
        /// The name.
        database: String,
        /// What the configuration names.
        expected: Box<DatabasePin>,
    },
    /// The database runs another module.
    #[error("database {database:?} does not run this project's module ({message}); run: spacetime-sync publish")]
    ForeignModule {
        /// The name of the database.
        database: String,
        /// How the difference was noticed.
        message: String,
    },
    /// The database runs our module, but of a release that does not work with this one.
    #[error(
        "the module of database {database:?} speaks {found}, this build {ours}: {}",
        mismatch.remedy("this build", "the module")
    )]
    ContractMismatch {
        /// The name of the database.
        database: String,
        /// What the module speaks.
        found: Box<Contract>,
        /// What this build speaks.
        ours: Box<Contract>,
        /// Which of the two is too old.
        mismatch: Mismatch,
    },
    /// The new module would disconnect clients.
    #[error(
        "nothing was published: the new module would disconnect every client of database {database:?}; if that is \
         what you want, allow it with --break-clients\n{plan}"
    )]
    BreaksClients {
        /// The name of the database.
        database: String,
        /// The changes, in the server's words.
        plan: String,
    },
    /// The server cannot migrate the data from the running module to the new one.
    #[error(
        "nothing was published: the data of database {database:?} cannot be migrated to the new module; make the change a \
         compatible one, or delete the data with --delete-data, and the bridge will publish it again\n{reason}"
    )]
    NeedsDeletion {
        /// The name of the database.
        database: String,
        /// The obstacle, in the server's words.
        reason: String,
    },
    /// The module refused the call.
    #[error("the module refused: {0}")]
    Refused(Refusal),
    /// The server gave an unexpected answer.
    #[error("spacetimedb at {uri} answered {what} with {message}")]
    Unexpected {
        /// The server.
        uri: String,
        /// What was asked for.
        what: &'static str,
        /// The answer.
        message: String,
    },
}

impl StdbError {
    /// What to do about the error. It is fatal only if a person must fix something.
    pub fn class(&self) -> RefusalClass {
        match self {
            Self::Unavailable { .. } | Self::TimedOut { .. } | Self::Unexpected { .. } | Self::NoSigner => {
                RefusalClass::Retry
            }
            Self::Refused(refusal) => refusal.code.class(),
            Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::NotLetIn { .. }
            | Self::BreaksClients { .. }
            | Self::NeedsDeletion { .. }
            | Self::NoDatabase { .. }
            | Self::AnotherDatabase { .. }
            | Self::DatabaseGone { .. }
            | Self::ForeignModule { .. }
            | Self::ContractMismatch { .. } => RefusalClass::Fatal,
        }
    }
}

/// Reads a chain hash from a 256-bit column.
pub(crate) fn chain_from_column(column: u256) -> ChainHash {
    ChainHash::from_bytes(column.to_be_bytes())
}

/// Writes a chain hash as a 256-bit column.
pub(crate) fn chain_to_column(chain: &ChainHash) -> u256 {
    u256::from_be_bytes(*chain.as_bytes())
}
