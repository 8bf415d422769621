//! Who is here, who can do what, and who does what for whom: keys of Nostr, signals, capabilities and assignments, on the module
//! behind an issuer; and what becomes of them when SpacetimeDB loses its data.

mod assignments;
mod bounds;
mod capabilities;
mod clients;
mod devices;
mod journal;
mod mirror;
mod nostr;
mod outbox;
mod rights;
mod signals;
mod terminal;
mod visibility;
mod whole_lane;
mod work;

use serde_json::{Value, json};
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_stdb::admin::Credential;

use crate::access::guarded::Guarded;
use crate::lane::hostile::Said;

/// The scopes of a session that opens assignments.
const ASKS: &[&str] = &["sync.subscribe", "sync.assignment.open"];
/// The scopes of a session that provides.
const PROVIDES: &[&str] = &["sync.subscribe", "sync.provider"];

/// The scopes of a session that mirrors.
const MIRRORS: &[&str] = &["sync.subscribe", "sync.mirror"];

impl Guarded {
    /// A caller whose session has these scopes. It may see no stream.
    fn scoped(&self, user: &str, session: &str, scopes: &[&str]) -> Credential {
        let mut claims = self.issuer.claims(user, session, &[]);
        claims["oa_sync_scopes"] = json!(scopes);
        self.with(&claims)
    }

    /// A caller whose session provides under this name. It has published a capability.
    async fn provider(&self, user: &str, session: &str, provider: &str) -> Credential {
        let who = self.scoped(user, session, PROVIDES);
        self.publish(&who, provider, "gpu", 1, "{}", 3_600).await.done();
        who
    }

    async fn publish(
        &self,
        who: &Credential,
        provider: &str,
        capability: &str,
        version: u64,
        document: &str,
        seconds: u64,
    ) -> Said {
        let arguments = json!([provider, capability, version, 21, "eu", document, seconds]);
        self.module
            .call(Some(who), "publish_provider_capability", &arguments)
            .await
    }

    async fn open(&self, who: &Credential, request: &str, provider: &str, document: &str, seconds: u64) -> Said {
        let arguments = json!([request, provider, document, seconds]);
        self.module.call(Some(who), "open_compute_assignment", &arguments).await
    }

    /// Asks for a change whose name is made of the version and the status.
    async fn update(&self, who: &Credential, request: &str, version: u64, status: &str, provider: &str) -> Said {
        let update = format!("{version}-{status}");
        self.change(who, request, &update, version, status, [provider, ""])
            .await
    }

    async fn change(
        &self,
        who: &Credential,
        request: &str,
        update: &str,
        version: u64,
        status: &str,
        [provider, document]: [&str; 2],
    ) -> Said {
        let arguments = json!([request, update, version, status, provider, document]);
        self.module
            .call(Some(who), "update_compute_assignment", &arguments)
            .await
    }

    /// The assignments that a caller sees, each once: name, version, status, provider.
    async fn assignments(&self, who: &Credential) -> Vec<(String, u64, String, String)> {
        let statement = "SELECT request_id, version, status, provider_id FROM compute_assignment";
        let rows = self.module.sql(Some(who), statement).await.unwrap();
        let mut seen: Vec<_> = rows
            .iter()
            .map(|row| (text(&row[0]), row[1].as_u64().unwrap(), text(&row[2]), text(&row[3])))
            .collect();
        seen.sort();
        seen.dedup();
        seen
    }

    /// The changes of an assignment that a caller sees, each once: version, status, provider, who made it.
    async fn history(&self, who: &Credential, request: &str) -> Vec<(u64, String, String, String)> {
        let statement = format!(
            "SELECT version, status, provider_id, changed_by FROM compute_assignment_change WHERE request_id = '{request}'"
        );
        let rows = self.module.sql(Some(who), &statement).await.unwrap();
        let mut seen: Vec<_> = rows
            .iter()
            .map(|row| (row[0].as_u64().unwrap(), text(&row[1]), text(&row[2]), text(&row[3])))
            .collect();
        seen.sort();
        seen.dedup();
        seen
    }

    /// A column of a table's rows, as the owner sees them.
    async fn column(&self, statement: &str) -> Vec<Value> {
        let rows = self.module.sql(Some(&self.module.owner), statement).await.unwrap();
        rows.into_iter().map(|row| row[0].clone()).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// An assignment as [`Guarded::assignments`] shows it.
fn is(request: &str, version: u64, status: &str, provider: &str) -> (String, u64, String, String) {
    (request.to_owned(), version, status.to_owned(), provider.to_owned())
}

/// A conflict whose text names all of these.
#[track_caller]
fn conflict(said: Said, names: &[&str]) {
    let refusal = said.refused(RefusalCode::AssignmentConflict);
    for name in names {
        assert!(refusal.message.contains(name), "{name}: {refusal}");
    }
}

/// A time in a row, in microseconds.
fn micros(value: &Value) -> i64 {
    let digits: String = value.to_string().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}
