//! Somebody else with an account on the same SpacetimeDB, who knows everything that is public of a lane: its module, the
//! identity of its bridge, its issuer.

use spacetime_sync_proto::access::AUDIENCE;
use spacetime_sync_stdb::admin::{Admin, Breaking, Credential};
use spacetime_sync_stdb::identity;
use spacetime_sync_stdb::tokens::read_token;
use spacetime_sync_tests::lane::{Lane, module_wasm};

/// A stranger who owns a database where the lane's should be.
pub(super) struct Stranger {
    pub(super) owner: Credential,
    admin: Admin,
    url: String,
}

/// Deletes the lane's database, as its owner. What a stranger cannot do; but a lost disk does it as well.
pub(super) async fn lose(lane: &Lane) {
    let url = format!("{}/v1/database/{}", lane.server.uri(), lane.name);
    delete(&url, read_token(&lane.path("owner.token")).unwrap().expose()).await;
}

async fn delete(url: &str, token: &str) {
    let deleted = reqwest::Client::new().delete(url).bearer_auth(token).send().await;
    deleted.unwrap().error_for_status().unwrap();
}

impl Stranger {
    /// Publishes our module under a name or an identity, and configures it as the lane's owner would.
    pub(super) async fn takes(lane: &Lane, address: &str) -> Self {
        let owner = Admin::new_identity(lane.server.uri()).await.unwrap();
        let admin = Admin::new(lane.server.uri(), address, owner.token.clone());
        admin.publish(module_wasm().unwrap(), Breaking::Refuse).await.unwrap();
        let bridge = match lane.issuer() {
            Some(issuer) => {
                admin.trust_issuer(&issuer, AUDIENCE, 1_000).await.unwrap();
                identity::of_bridge(&issuer)
            }
            None => identity::of_token(&read_token(&lane.path("bridge.token")).unwrap()).unwrap(),
        };
        admin.configure(&bridge, &"f".repeat(32)).await.unwrap();
        let url = format!("{}/v1/database/{address}", lane.server.uri());
        Self { owner, admin, url }
    }

    /// How many rows of a table the stranger holds.
    pub(super) async fn holds(&self, table: &str) -> usize {
        let answer = reqwest::Client::new()
            .post(format!("{}/sql", self.url))
            .bearer_auth(self.owner.token.expose())
            .body(format!("SELECT * FROM {table}"))
            .send()
            .await
            .unwrap();
        let answer: serde_json::Value = answer.error_for_status().unwrap().json().await.unwrap();
        answer[0]["rows"].as_array().unwrap().len()
    }

    /// Gives the name and the identity free.
    pub(super) async fn leaves(self) {
        delete(&self.url, self.owner.token.expose()).await;
        drop(self.admin);
    }
}
