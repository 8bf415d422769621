//! A hostile client; see `spacetime_sync_tests::hostile`, which starts this.

use clap::Parser as _;
use spacetime_sync_tests::hostile::{Args, Client};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    Client::new(Args::parse()).await?.run().await
}
