//! What somebody who means harm, and stands on the way, cannot do.

mod row_limit;
