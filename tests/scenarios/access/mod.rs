//! Who may see and do what: tokens, the sessions that they open, and how sessions end.

mod admission;
mod compatibility;
mod documents;
pub(crate) mod guarded;
mod history;
mod keys;
mod presence;
mod revocation;
mod rights;
mod scopes;
mod sessions;
mod tokens;
mod whole_lane;

use spacetime_sync_tests::issuing::Desk;
use spacetime_sync_tests::postgres::Cluster;

/// A desk on the cluster that all tests share.
async fn desk() -> Desk {
    Desk::new(Cluster::shared().await).await.unwrap()
}
