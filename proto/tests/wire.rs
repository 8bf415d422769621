//! The messages in `src/wire.rs` are committed, so that no build waits for the compiler of `proto/sync.proto`. This
//! test runs that compiler (written in Rust: no `protoc` is needed) and compares.

use std::path::Path;

/// The environment variable that makes the test write the file instead of comparing it.
const WRITE: &str = "SYNC_WRITE_WIRE";

#[test]
fn the_committed_messages_are_those_of_the_proto_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile([root.join("proto/sync.proto")], [root.join("proto")])
        .unwrap_or_else(|error| panic!("proto/sync.proto does not compile: {error}"));
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"));
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(folder.path())
        .compile_fds(files)
        .unwrap_or_else(|error| panic!("no messages were generated: {error}"));
    let read =
        |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let generated = read(&folder.path().join("spacetime.sync.v1.rs"));
    let committed = root.join("src/wire.rs");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&committed, &generated).unwrap_or_else(|error| panic!("{}: {error}", committed.display()));
    }
    assert!(
        generated == read(&committed),
        "src/wire.rs is not what proto/sync.proto gives; write it again with: \
         {WRITE}=1 cargo test -p spacetime-sync-proto --test wire"
    );
}
