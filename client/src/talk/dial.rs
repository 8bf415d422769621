//! All steps up to a connection that serves: a token, the connection, the contract and, if SpacetimeDB closes the
//! connection instead, its reason.

use std::time::Instant;

use spacetime_sync_proto::{DatabasePin, StreamId};
use tokio::time::timeout;

use super::connect::{ConnectFailure, connect};
use super::link::{Greeting, Link};
use super::pin;
use super::reason::{Reason, ask_reason};
use crate::config::ClientConfig;
use crate::credential::{Credential, TokenError, WantedToken};
use crate::session::status::{Disconnect, StopReason};
use crate::session::{DialFailure, Inbound, Issued, agree};

/// The result of an attempt.
pub(crate) struct DialAnswer {
    /// The token it used, if a provider issued it.
    pub(crate) token: Option<Issued>,
    /// A connection to a module that this release works with, and what else its first messages brought.
    pub(crate) result: Result<(Link, Vec<Inbound>), DialFailure>,
}

/// Attempts a connection, with the given token or a new one for these streams, which counts as asked for at `asked_at`. Dropping the
/// future gives up the attempt.
pub(crate) async fn dial(
    config: &ClientConfig,
    held: Option<Issued>,
    streams: &[StreamId],
    asked_at: Instant,
) -> DialAnswer {
    let (text, token) = match (&config.credential, held) {
        (Credential::Anonymous, _) => (None, None),
        (Credential::Fixed(token), _) => (Some(token.clone()), None),
        (Credential::Provider(_), Some(held)) => (Some(held.token.token.clone()), Some(held)),
        (Credential::Provider(provider), None) => {
            let wanted = WantedToken::new(config.version(), streams, config.scopes());
            let within = config.limits.token_timeout;
            let answer = timeout(within, provider.token(wanted)).await;
            let late = || {
                Err(TokenError::unavailable(format!(
                    "the provider did not answer within {within:?}"
                )))
            };
            let unusable = || TokenError::unavailable("the provider's token is invalid or has ended");
            let token = answer.unwrap_or_else(|_| late());
            match token.and_then(|token| token.usable().ok_or_else(unusable)) {
                Ok(token) => (Some(token.token.clone()), Some(Issued { token, asked_at })),
                Err(error) => {
                    let result = Err(DialFailure::NoToken(error));
                    return DialAnswer { token: None, result };
                }
            }
        }
    };
    let pin = token.as_ref().and_then(|issued| issued.token.pin.as_deref());
    let result = open(config, pin.or(config.pin.as_ref()), text).await;
    DialAnswer { token, result }
}

async fn open(
    config: &ClientConfig,
    pin: Option<&DatabasePin>,
    token: Option<String>,
) -> Result<(Link, Vec<Inbound>), DialFailure> {
    let within = config.limits.connect_timeout;
    let database = pin.map_or(config.database.as_str(), |pin| pin.database_identity.as_str());
    let serving = async {
        let right = match pin {
            Some(pin) => pin::check(config, pin, token.as_deref()).await,
            None => Ok(()),
        };
        let connected = match right {
            Ok(()) => connect(config, database, token.clone()).await,
            Err(failure) => Err(failure),
        };
        let link = match connected {
            Ok(mut link) => {
                link.know_identity(token.as_deref());
                link
            }
            Err(ConnectFailure::Unauthorized) => return Err(Closed::Told(DialFailure::Unauthorized)),
            Err(ConnectFailure::Forbidden) => return Err(Closed::Untold(DialFailure::Unauthorized)),
            Err(ConnectFailure::Later(reason)) => return Err(Closed::Told(DialFailure::Later(reason))),
        };
        let rest = until_serving(&link).await?;
        Ok((link, rest))
    };
    let closed = match timeout(within, serving).await {
        Ok(Ok(serving)) => return Ok(serving),
        Ok(Err(closed)) => closed,
        Err(_) => return Err(DialFailure::Later(Disconnect::ConnectTimeout(within))),
    };
    match closed {
        Closed::Told(failure) => Err(failure),
        Closed::Untold(failure) => Err(match ask_reason(config, database, token.as_deref()).await {
            Some(Reason::Refused(refusal)) => DialFailure::Refused(refusal),
            Some(Reason::Incompatible(incompatible)) => DialFailure::Stop(StopReason::Incompatible(incompatible)),
            None => failure,
        }),
    }
}

/// Why a connection does not serve.
enum Closed {
    Told(DialFailure),
    /// SpacetimeDB may give a better reason over HTTP.
    Untold(DialFailure),
}

/// Waits for the contract, and collects what comes with it.
async fn until_serving(link: &Link) -> Result<Vec<Inbound>, Closed> {
    let stop = |reason| Err(Closed::Told(DialFailure::Stop(reason)));
    link.watch_contract();
    let mut rest = Vec::new();
    let mut serving = false;
    loop {
        let message = link.next().await;
        for inbound in message.map_err(|reason| Closed::Untold(DialFailure::Later(reason)))? {
            match inbound {
                Inbound::Contract(found) => {
                    if let Err(reason) = agree(found.clone()) {
                        return stop(reason);
                    }
                    serving = true;
                    rest.push(Inbound::Contract(found));
                }
                Inbound::NoModule { detail } => return stop(StopReason::NoModule { detail }),
                other => rest.push(other),
            }
        }
        for greeting in link.greetings() {
            match greeting {
                Greeting::Identified(identity) => link.watch_grants(identity),
                Greeting::ContractSeen if !serving => {
                    let detail = "its table sync_contract says no version".to_owned();
                    return stop(StopReason::NoModule { detail });
                }
                Greeting::ContractSeen => {}
            }
        }
        if serving {
            return Ok(rest);
        }
    }
}
