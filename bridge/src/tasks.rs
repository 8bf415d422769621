//! Tasks that the bridge cannot do without. If one panics, the whole process ends, and a supervisor starts it again. That is
//! simpler than a repair and loses nothing, because the bridge keeps no state.

use std::panic::resume_unwind;

use tokio::task::JoinError;

/// The result of a task, or `None` if it was cancelled. If the task panicked, the caller panics as well.
pub fn joined<T>(ended: Result<T, JoinError>) -> Option<T> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_)) => None,
    }
}
