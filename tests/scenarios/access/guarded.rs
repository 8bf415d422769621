//! The module behind an issuer whose tokens a test signs.

use serde_json::{Value, json};
use spacetime_sync_proto::Secret;
use spacetime_sync_stdb::admin::Credential;
use spacetime_sync_tests::clock::Clock;
use spacetime_sync_tests::issuer::Issuer;

use crate::lane::hostile::Module;

/// How often the module looks for expired sessions in these tests, in milliseconds.
pub(crate) const SWEEP_MS: u32 = 250;

/// The module, and an issuer that it trusts.
pub(crate) struct Guarded {
    pub(crate) module: Module,
    pub(crate) issuer: Issuer,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        Self::sweeping_every(SWEEP_MS).await
    }

    pub(crate) async fn sweeping_every(sweep_ms: u32) -> Self {
        Self::on(Module::start().await, sweep_ms).await
    }

    /// The module sees this clock.
    pub(crate) async fn with_clock(clock: &Clock) -> Self {
        Self::on(Module::start_with(&clock.environment()).await, SWEEP_MS).await
    }

    async fn on(module: Module, sweep_ms: u32) -> Self {
        let issuer = Issuer::start().await.unwrap();
        let trusted = json!([issuer.url, "openagents-sync", sweep_ms]);
        module.call(Some(&module.owner), "trust_issuer", &trusted).await.done();
        Self { module, issuer }
    }

    /// A caller whose token has these claims.
    pub(crate) fn with(&self, claims: &Value) -> Credential {
        bearer(self.issuer.sign(claims))
    }

    /// A caller whose session may see these streams.
    pub(crate) fn session(&self, user: &str, session: &str, streams: &[&str]) -> Credential {
        self.with(&self.issuer.claims(user, session, streams))
    }

    /// A caller of the session `short`, with a token of these times. The newest token that the module has seen
    /// determines the session's end.
    pub(crate) fn short(&self, signed: u64, ends: u64) -> Credential {
        let mut claims = self.issuer.claims("7", "short", &["user:7:*"]);
        for (claim, time) in [("iat", signed), ("nbf", signed), ("exp", ends)] {
            claims[claim] = json!(time);
        }
        self.with(&claims)
    }

    /// The number of grants, whether given by hand or by a session.
    pub(crate) async fn grants(&self) -> usize {
        let rows = self
            .module
            .sql(Some(&self.module.owner), "SELECT * FROM stream_grant")
            .await;
        rows.unwrap().len()
    }
}

/// A caller with this token. The server derives the identity.
pub(crate) fn bearer(token: String) -> Credential {
    Credential {
        identity: String::new(),
        token: Secret::from(token),
    }
}
