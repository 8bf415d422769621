//! What somebody who means harm, and stands on the way, cannot do.

mod database;
mod doors;
mod gate;
mod postgres;
mod reports;
mod reverse_proxy;
mod row_limit;
mod seals;
mod transport;
mod withholding;
