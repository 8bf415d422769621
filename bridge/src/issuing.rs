//! The issuer as a neighbour of the lane: it gets the authority to ask, and learns of every new link.

use std::sync::Arc;

use spacetime_sync_authority::Authority;
use spacetime_sync_issuer::Issuer;
use spacetime_sync_issuer::history::Histories;

use crate::run::Neighbour;

/// The issuer and its histories.
pub struct Issuing {
    /// Who issues tokens.
    pub issuer: Arc<Issuer>,
    /// Who reads the log for clients.
    pub histories: Arc<Histories>,
    /// Most connections to the authority for tokens.
    pub pool_size: usize,
}

impl Neighbour for Issuing {
    fn connected(&self, authority: &Authority) -> Vec<Authority> {
        // Connections of its own, so that no token waits for the lane, and the lane for no token.
        let desk = authority.beside(self.pool_size);
        self.issuer.attach(desk.clone());
        self.histories.attach(authority);
        vec![desk]
    }

    fn relinked(&self) {
        self.issuer.relinked();
    }
}
