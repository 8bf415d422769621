//! From the authority to the clients.

mod authority;
mod contract;
mod faults;
pub(crate) mod hostile;
mod publish;
