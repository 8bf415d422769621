//! The way from the authority to the clients.

mod authority;
mod contract;
pub(crate) mod faults;
pub(crate) mod hostile;
mod official;
mod publish;
