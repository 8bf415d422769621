//! Tasks that the bridge cannot do without. It keeps no state, so one of them that died is not mended but told: the
//! process ends as it would after any panic, and whoever supervises it starts it anew.

use std::panic::resume_unwind;

use tokio::task::JoinError;

/// What a task came to; none if it was cancelled. Its panic goes on in who asks.
pub fn joined<T>(ended: Result<T, JoinError>) -> Option<T> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_)) => None,
    }
}
