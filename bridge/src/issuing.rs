//! Connects the issuer to the lane's runner: the issuer gets the authority, and hears of every new link.

use std::sync::Arc;

use spacetime_sync_authority::Authority;
use spacetime_sync_issuer::Issuer;
use spacetime_sync_issuer::history::Histories;

use crate::run::Neighbour;

/// The issuer and its histories.
pub struct Issuing {
    /// Issues tokens.
    pub issuer: Arc<Issuer>,
    /// Reads the log for clients.
    pub histories: Arc<Histories>,
    /// The most connections to the authority for tokens.
    pub pool_size: usize,
}

impl Neighbour for Issuing {
    fn connected(&self, authority: &Authority) -> Vec<Authority> {
        // Connections of its own, so that tokens and the lane never wait for each other.
        let desk = authority.beside(self.pool_size);
        self.issuer.attach(desk.clone());
        self.histories.attach(authority);
        vec![desk]
    }

    fn relinked(&self) {
        self.issuer.relinked();
    }

    fn strayed(&self, strayed: bool) {
        self.issuer.set_strayed(strayed);
    }
}
