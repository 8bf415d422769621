//! Ids for what is under way. An answer finds its question by the id, and the lane ignores a late answer.

/// One life of the link to SpacetimeDB. The lane ignores everything that carries the id of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u64);

/// One call of `append_sync_events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub(crate) u64);

/// One question to the authority or to the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// Creates ids. None comes twice in the life of a process.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    links: u64,
    requests: u64,
}

impl Ids {
    pub(crate) fn link(&mut self) -> LinkId {
        self.links += 1;
        LinkId(self.links)
    }

    pub(crate) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }
}
