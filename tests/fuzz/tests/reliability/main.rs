//! The corpus in the tree, and a short run of every target.

mod reliability {
    mod fuzz;
}
