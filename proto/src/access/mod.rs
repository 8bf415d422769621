//! Access rights in the form in which processes exchange them: scopes, streams and patterns, the claims of a token, the
//! request for one and its answer, and which client builds are served.
//!
//! The bridge issues tokens, the module enforces them, the client asks for them. All three use these types.

mod claims;
mod compatibility;
mod issuer;
mod network;
mod pattern;
mod scope;
mod token;
mod topic;

pub use claims::{AUDIENCE, CLAIMS_VERSION, SERVICE_NAME, SERVICE_SUBJECT, SyncClaims, TOKEN_TYP, UnusableName};
pub use compatibility::{ClientVersion, Compatibility, Incompatible, headers};
pub use issuer::check_issuer_url;
pub use network::network;
pub use pattern::{InvalidPattern, StreamPattern};
pub use scope::{Scope, UnknownScope};
pub use token::{
    RETIRED_ROUTES, REVOKE_PATH, REVOKED_PATH, TOKEN_PATH, TTL_SECONDS, TokenRefusal, TokenRequest, TokenResponse,
};
pub use topic::Topic;
