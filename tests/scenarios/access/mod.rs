//! Who may see and do what.

mod compatibility;
mod keys;
mod revocation;
mod tokens;

use spacetime_sync_tests::issuing::Desk;
use spacetime_sync_tests::postgres::Cluster;

/// A desk on the cluster that all tests share.
async fn desk() -> Desk {
    Desk::new(Cluster::shared().await).await.unwrap()
}
