//! The migrations are embedded in the binary: a new file among them is a reason to build it anew.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
