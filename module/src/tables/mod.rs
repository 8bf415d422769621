//! What the module holds, and who sees it.
//!
//! Rows of fixed size and rows with bytes are in separate tables: every frame rewrites a head, and that must cost the
//! same however many streams there are (docs/adr/0002).

mod assignment;
mod capability;
mod checkpoint;
mod contract;
mod epoch;
mod event;
mod grant;
mod head;
mod journal;
mod outbox;
mod presence;
mod quota;
mod retention;
mod session;
mod signal;
mod stream;
mod sweep;
mod trust;

pub use assignment::*;
pub use capability::*;
pub use checkpoint::*;
pub use contract::*;
pub use epoch::*;
pub use event::*;
pub use grant::*;
pub use head::*;
pub use journal::*;
pub use outbox::*;
pub use presence::*;
pub use quota::*;
pub use retention::*;
pub use session::*;
pub use signal::*;
pub use stream::*;
pub use sweep::*;
pub use trust::*;
