//! From the authority to the clients.

mod authority;
mod contract;
mod faults;
mod hostile;
mod publish;
