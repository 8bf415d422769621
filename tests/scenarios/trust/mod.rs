//! What somebody who means harm, and stands on the way, cannot do.

mod gate;
mod row_limit;
