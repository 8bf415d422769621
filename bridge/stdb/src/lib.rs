//! SpacetimeDB, as the bridge meets it: the live link ([`link`]) and the plain HTTP side ([`admin`]).

pub mod admin;
mod handshake;
pub mod identity;
pub mod link;
pub mod settings;
pub mod tokens;
pub mod upkeep;

mod nodelay;

use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{ChainHash, Refusal};
use spacetimedb_sdk::__codegen::__sats::u256;

/// Why something did not work with SpacetimeDB.
#[derive(Debug, thiserror::Error)]
pub enum StdbError {
    /// The server cannot be reached, or broke off.
    #[error("spacetimedb at {uri} is not available: {message}")]
    Unavailable {
        /// The server.
        uri: String,
        /// What the transport says.
        message: String,
    },
    /// It took longer than it may.
    #[error("spacetimedb at {uri} did not answer {what} in time")]
    TimedOut {
        /// The server.
        uri: String,
        /// What was asked.
        what: &'static str,
    },
    /// The bridge signs its own tokens, and no key signs.
    #[error("no signing key of the bridge is good at the moment; make one with: spacetime-sync keys add --dir DIR")]
    NoSigner,
    /// The server does not take the token.
    #[error(
        "spacetimedb at {uri} does not accept the token: {message}; is it a token of this server, and not expired?"
    )]
    Unauthorized {
        /// The server.
        uri: String,
        /// What it says.
        message: String,
    },
    /// The token is good, but not of who may do this.
    #[error(
        "spacetimedb at {uri} does not let this identity do that to database {database:?}: {message}; use the token of \
         the identity that published it"
    )]
    Forbidden {
        /// The server.
        uri: String,
        /// The name.
        database: String,
        /// What it says.
        message: String,
    },
    /// The token is good, but the module does not let its identity in.
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
        /// The name.
        database: String,
    },
    /// The database runs another module.
    #[error("database {database:?} does not run the module of the lane ({message}); run: spacetime-sync publish")]
    ForeignModule {
        /// The name.
        database: String,
        /// What gave it away.
        message: String,
    },
    /// The database runs our module with another contract.
    #[error(
        "database {database:?} speaks {found}, this build speaks {expected}; publish the module of this build, or run the build of that module"
    )]
    ContractMismatch {
        /// The name.
        database: String,
        /// What the module says.
        found: Box<Contract>,
        /// What this build was made with.
        expected: Box<Contract>,
    },
    /// The new module would disconnect clients.
    #[error(
        "nothing was published: the new module would disconnect every client of database {database:?}; if that is \
         what you want, allow it with --break-clients\n{plan}"
    )]
    BreaksClients {
        /// The name.
        database: String,
        /// What would change, as the server says it.
        plan: String,
    },
    /// There is no way from the module that runs to the new one.
    #[error(
        "nothing was published: database {database:?} cannot be taken over by the new module; make the change a \
         compatible one, or delete what the database holds with --delete-data, and the bridge publishes it again\n{reason}"
    )]
    NeedsDeletion {
        /// The name.
        database: String,
        /// What stands in the way, as the server says it.
        reason: String,
    },
    /// The module refused.
    #[error("the module refused: {0}")]
    Refused(Refusal),
    /// The server answered with something unexpected.
    #[error("spacetimedb at {uri} answered {what} with {message}")]
    Unexpected {
        /// The server.
        uri: String,
        /// What was asked.
        what: &'static str,
        /// What came.
        message: String,
    },
}

impl StdbError {
    /// What to do about it. Only what a person must mend is fatal.
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
            | Self::ForeignModule { .. }
            | Self::ContractMismatch { .. } => RefusalClass::Fatal,
        }
    }
}

/// A column of 256 bits as the chain hash it holds.
pub(crate) fn chain_from_column(column: u256) -> ChainHash {
    ChainHash::from_bytes(column.to_be_bytes())
}

/// A chain hash as a column of 256 bits.
pub(crate) fn chain_to_column(chain: &ChainHash) -> u256 {
    u256::from_be_bytes(*chain.as_bytes())
}
