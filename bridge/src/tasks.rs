//! Tasks that the bridge cannot do without. The bridge keeps no state, so it does not repair a task that died: the process
//! ends as after any panic, and a supervisor starts it again.

use std::panic::resume_unwind;

use tokio::task::JoinError;

/// The result of a task; `None` if it was cancelled. A panic of the task goes on in the caller.
pub fn joined<T>(ended: Result<T, JoinError>) -> Option<T> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_)) => None,
    }
}
