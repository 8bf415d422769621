//! The mirror, as real processes before real and odd relays.

mod isolation;
mod operating;
mod publishing;
mod relays;
mod session;
mod settling;

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_authority::{Authority, NewEvent};
use spacetime_sync_proto::{IdempotencyKey, Kind, StreamId};
use spacetime_sync_tests::mirror::{Mirror, Mirrors};
use spacetime_sync_tests::postgres::{Cluster, Database};
use spacetime_sync_tests::process::built;
use sqlx::{Connection as _, PgConnection};

const SOON: Duration = Duration::from_secs(30);
/// What no relay may ever see.
const SECRET: &str = "the payload that nobody hears";

/// A database, and mirrors of it.
struct Stage {
    database: Database,
    authority: Authority,
    mirrors: Mirrors,
}

impl Stage {
    async fn new() -> Self {
        let database = Cluster::shared().await.create_database().await.unwrap();
        let authority = Authority::connect(database.url(), 4).await.unwrap();
        let mirrors = Mirrors::of(&database).await.unwrap();
        Self {
            database,
            authority,
            mirrors,
        }
    }

    /// Has pointers to the events of a pattern published.
    async fn receipts(&self, pattern: &str, kinds: &[&str], relays: &[String], quorum: Option<i32>) {
        policy(&mut self.owner().await, pattern, kinds, relays, quorum).await;
    }

    async fn owner(&self) -> PgConnection {
        PgConnection::connect(self.database.url()).await.unwrap()
    }

    /// Appends events, the payload of each a secret.
    async fn append(&self, stream: &str, kind: &str, count: usize) {
        append(&self.authority, stream, kind, count).await;
    }

    /// Runs `spacetime-sync outbox`, and returns whether it succeeded and what it printed.
    fn outbox(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(built("spacetime-sync"))
            .arg("outbox")
            .args(arguments)
            .env("SPACETIME_SYNC__AUTHORITY__URL", self.mirrors.url())
            .env("USER", "ada")
            .env_remove("SUDO_USER")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    fn start(&self, set: &[(&str, &str)]) -> Mirror {
        self.mirrors.start(set).unwrap()
    }

    /// How many entries have a status.
    async fn count(&self, status: &str) -> usize {
        let mut owner = self.owner().await;
        let counted = sqlx::query_scalar::<_, i64>("select count(*) from runtime.sync_outbox where status = $1");
        let count = counted.bind(status).fetch_one(&mut owner).await.unwrap();
        usize::try_from(count).unwrap()
    }

    /// Waits until so many entries have a status.
    async fn until(&self, status: &str, count: usize) {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let found = self.count(status).await;
            if found == count {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{found} entries are {status}, not {count}: {:?}",
                self.failures().await
            );
            tokio::time::sleep(spacetime_sync_tests::STEP).await;
        }
    }

    /// Every failure of every delivery: relay, status, attempts, kind.
    async fn failures(&self) -> Vec<(String, String, i32, String)> {
        let mut owner = self.owner().await;
        let failures = sqlx::query_as(
            "select relay, status, attempts, coalesce(failure, '') from runtime.sync_outbox_deliveries
             order by relay, status, attempts limit 50",
        );
        failures.fetch_all(&mut owner).await.unwrap()
    }
}

/// Has pointers to the events of a pattern published, by whoever writes the policy.
async fn policy(writer: &mut PgConnection, pattern: &str, kinds: &[&str], relays: &[String], quorum: Option<i32>) {
    sqlx::query(
        "insert into runtime.sync_mirror_policy (policy_id, source, pattern, kinds, schema, nostr_kind, relays, quorum)
         values (md5($1), 'events', $1, $2, 'openagents.bridge.receipt_ptr.v1', 30078, $3, $4)",
    )
    .bind(pattern)
    .bind(kinds)
    .bind(relays)
    .bind(quorum)
    .execute(writer)
    .await
    .unwrap();
}

/// Appends events, the payload of each a secret.
async fn append(authority: &Authority, stream: &str, kind: &str, count: usize) {
    let stream = StreamId::new(stream).unwrap();
    let event = |_| NewEvent {
        idempotency_key: IdempotencyKey::new(&format!("{:032x}", rand::random::<u128>())).unwrap(),
        kind: Kind::new(kind).unwrap(),
        payload: Bytes::from_static(SECRET.as_bytes()),
    };
    let events: Vec<_> = (0..count).map(event).collect();
    authority.append_batch(&stream, &events).await.unwrap();
}
