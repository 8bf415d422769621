//! See `scripts/bench`.

use spacetime_sync_tests::bench::bare::{self, Cut};
use spacetime_sync_tests::bench::Size;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    for (size, subs) in [(512, 0), (512, 1), (4096, 0), (512, 0)] {
        let size = Size::Bytes(size);
        let r = bare::run(size, Cut::BACKLOG, 100_000, 500_000, subs).await?;
        println!("{:>5} backlog {subs} sub: empty {:.0} full {:.0} flat {:.2} mb {}", size.name(), r.empty, r.full, r.flatness(), r.host_mb);
    }
    Ok(())
}
