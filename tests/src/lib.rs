//! The foundation of the lane's tests: real processes to run the lane with, and faults to break it with.

pub mod clock;
pub mod db_schema;
pub mod device;
pub mod disk;
pub mod figures;
pub mod follower;
pub mod gate;
pub mod hostile;
pub mod issuer;
pub mod issuing;
pub mod lane;
pub mod load;
pub mod mirror;
pub mod nginx;
pub mod port;
pub mod postgres;
pub mod power;
pub mod process;
pub mod proxy;
pub mod relays;
pub mod release;
pub mod scene;
pub mod schema;
pub mod server;
pub mod socket;
pub mod stub;
pub mod tool;
pub mod tty;
pub mod variant;
pub mod words;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

/// How often waiting code checks its condition.
pub const STEP: Duration = Duration::from_millis(10);

/// Writes a file that nobody else may read, as every file with a secret must be.
pub fn write_secret(path: &Path, secret: impl AsRef<[u8]>) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(secret.as_ref())
}

/// Waits until a condition holds, and returns whether it did.
pub async fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + limit;
    while !condition() {
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(STEP).await;
    }
    true
}
