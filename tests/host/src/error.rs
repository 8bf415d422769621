//! The failures of a request, and the HTTP status of each.
//!
//! Statuses and texts that clients look at are those of the official server.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use spacetimedb::Identity;
use spacetimedb::host::module_host::ClientConnectedError;
use spacetimedb::host::{ProcedureCallError, ReducerCallError};
use spacetimedb_client_api_messages::name::DatabaseName;

/// The status of a reducer that returned an error.
const REDUCER_FAILED: u16 = 530;

/// A failed request. `Display` is the body of the response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("`{0}` not found")]
    NoSuchName(DatabaseName),
    #[error("No such database.")]
    NoSuchDatabase,
    #[error("{0}")]
    NoSuchFunction(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("Expected request with `Content-Type: application/json`")]
    NotJson,
    #[error("{0}")]
    BadToken(String),
    #[error("Authorization required")]
    TokenRequired,
    #[error("{subject} is not authorized to perform action on database {database}: {action}")]
    NotTheOwner {
        subject: Identity,
        database: Identity,
        action: &'static str,
    },
    #[error("{0}")]
    Rejected(Box<str>),
    #[error("{0}")]
    ReducerFailed(Box<str>),
    #[error("Module energy budget exhausted.")]
    OutOfEnergy,
    #[error("{0}")]
    Unavailable(&'static str),
    /// An error of the engine, shown with all its causes.
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

impl Failure {
    pub(crate) fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::Internal(error.into())
    }

    pub(crate) fn bad_request(text: impl std::fmt::Display) -> Self {
        Self::BadRequest(text.to_string())
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchName(_) | Self::NoSuchDatabase | Self::NoSuchFunction(_) => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BadToken(_) | Self::TokenRequired => StatusCode::UNAUTHORIZED,
            Self::NotTheOwner { .. } | Self::Rejected(_) => StatusCode::FORBIDDEN,
            Self::ReducerFailed(_) => StatusCode::from_u16(REDUCER_FAILED).expect("530 lies between 100 and 999"),
            Self::OutOfEnergy => StatusCode::PAYMENT_REQUIRED,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if let Self::Internal(e) = &self {
            tracing::error!("internal error: {e:#}");
        }
        (self.status(), self.to_string()).into_response()
    }
}

impl From<ReducerCallError> for Failure {
    fn from(error: ReducerCallError) -> Self {
        match error {
            ReducerCallError::Args(_) | ReducerCallError::LifecycleReducer(_) => {
                Self::BadRequest(format!("{:#}", anyhow::Error::from(error)))
            }
            ReducerCallError::NoSuchModule(_)
            | ReducerCallError::NoSuchReducer
            | ReducerCallError::ScheduleReducerNotFound => Self::NoSuchFunction(error.to_string()),
            ReducerCallError::WorkerError(_) => Self::internal(error),
        }
    }
}

impl From<ProcedureCallError> for Failure {
    fn from(error: ProcedureCallError) -> Self {
        match error {
            ProcedureCallError::Args(_) => Self::BadRequest(format!("{:#}", anyhow::Error::from(error))),
            ProcedureCallError::NoSuchModule(_) | ProcedureCallError::NoSuchProcedure => {
                Self::NoSuchFunction(error.to_string())
            }
            ProcedureCallError::OutOfEnergy => Self::OutOfEnergy,
            ProcedureCallError::InternalError(_) => Self::internal(error),
        }
    }
}

impl From<ClientConnectedError> for Failure {
    fn from(error: ClientConnectedError) -> Self {
        match error {
            ClientConnectedError::Rejected(text) => Self::Rejected(text),
            ClientConnectedError::OutOfEnergy => Self::Unavailable("Insufficient energy balance"),
            ClientConnectedError::ReducerCall(_) => Self::NoSuchFunction(format!("{:#}", anyhow::Error::from(error))),
            ClientConnectedError::DBError(_) => Self::internal(error),
        }
    }
}
