//! The messages of `proto/spacetime/sync/v1` are the contract. Those that are bytes on the wire are in `src/wire.rs`, which is
//! committed, so that no build waits for their compiler; this test runs that compiler (written in Rust: no `protoc` is needed)
//! and compares. Those that are JSON on the wire are types with names and numbers that check themselves; this test
//! compares their fields with those of the messages.

// A test reports a failure by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use spacetime_sync_proto::access::{
    ClientVersion, Incompatible, SyncClaims, TokenRefusal, TokenRequest, TokenResponse,
};
use spacetime_sync_proto::heads::{Heads, HeadsRequest, StreamHead};
use spacetime_sync_proto::seal::SealKey;
use spacetime_sync_proto::stale::StaleCode;
use spacetime_sync_proto::{DatabasePin, Refusal, RefusalCode, StaleCursor, StaleReason};

/// The environment variable that makes the test write the file instead of comparing it.
const WRITE: &str = "SYNC_WRITE_WIRE";
const PACKAGE: &str = "spacetime.sync.v1";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of the package, in the order of their names.
fn files() -> Vec<PathBuf> {
    let folder = root().join("proto").join(PACKAGE.replace('.', "/"));
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    files
}

/// The text of a file.
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_committed_messages_are_those_of_the_proto_files() {
    let files = protox::compile(files(), [root().join("proto")])
        .unwrap_or_else(|error| panic!("the proto files do not compile: {error}"));
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"));
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(folder.path())
        .compile_fds(files)
        .unwrap_or_else(|error| panic!("no messages were generated: {error}"));
    let generated = read(&folder.path().join(format!("{PACKAGE}.rs")));
    let committed = root().join("src/wire.rs");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&committed, &generated).unwrap_or_else(|error| panic!("{}: {error}", committed.display()));
    }
    assert!(
        generated == read(&committed),
        "src/wire.rs is not what the proto files give; write it again with: \
         {WRITE}=1 cargo test -p spacetime-sync-proto --test wire"
    );
}

#[test]
fn every_message_that_is_json_has_the_fields_of_its_type() {
    let set = protox::compile(files(), [root().join("proto")]).unwrap();
    let messages: Vec<_> = set.file.iter().flat_map(|file| &file.message_type).collect();
    for (name, fields) in [
        ("ClientVersion", names_of::<ClientVersion>()),
        ("DatabasePin", names_of::<DatabasePin>()),
        ("Heads", names_of::<Heads>()),
        ("HeadsRequest", names_of::<HeadsRequest>()),
        ("Incompatible", names_of::<Incompatible>()),
        ("Refusal", names_of::<Refusal>()),
        ("SealKey", names_of::<SealKey>()),
        ("StaleCursor", names_of::<StaleCursor>()),
        ("StreamHead", names_of::<StreamHead>()),
        ("SyncClaims", names_of::<SyncClaims>()),
        ("TokenRefusal", names_of::<TokenRefusal>()),
        ("TokenRequest", names_of::<TokenRequest>()),
        ("TokenResponse", names_of::<TokenResponse>()),
    ] {
        let message = messages.iter().find(|message| message.name() == name).expect(name);
        let found = message.field.iter().map(|field| field.name().to_owned());
        // In any order: a number that is given is never given again, while a type may have its fields where they belong.
        assert_eq!(
            found.collect::<BTreeSet<_>>(),
            fields,
            "{name}: the message (left) and the type"
        );
    }
}

#[test]
fn every_closed_set_has_the_values_of_its_type() {
    let set = protox::compile(files(), [root().join("proto")]).unwrap();
    let enums: Vec<_> = set.file.iter().flat_map(|file| &file.enum_type).collect();
    for (name, prefix, values) in [
        ("RefusalCode", "REFUSAL_CODE_", names_of::<RefusalCode>()),
        ("StaleCode", "STALE_CODE_", names_of::<StaleCode>()),
        ("StaleReason", "STALE_REASON_", names_of::<StaleReason>()),
    ] {
        let of = enums.iter().find(|of| of.name() == name).expect(name);
        // The JSON form: the name without the prefix, in lower case. The first one is never sent.
        let found = of
            .value
            .iter()
            .map(|value| value.name().strip_prefix(prefix).unwrap().to_lowercase());
        assert_eq!(
            found.skip(1).collect::<BTreeSet<_>>(),
            values,
            "{name}: the message (left) and the type"
        );
    }
    assert_eq!(enums.len(), 3, "a closed set that is compared with no type");
}

/// The names of a type's fields or variants, as they stand in JSON.
fn names_of<T: DeserializeOwned>() -> BTreeSet<String> {
    let mut names = Vec::new();
    let ended = T::deserialize(Names(&mut names)).err();
    assert!(ended.is_some() && !names.is_empty(), "a type without fields");
    names.into_iter().map(str::to_owned).collect()
}

/// Hears the names that a type asks for, and has nothing to give.
struct Names<'a>(&'a mut Vec<&'static str>);

impl Names<'_> {
    fn heard<T>(self, names: &'static [&'static str]) -> Result<T, Error> {
        self.0.extend(names);
        Err(serde::de::Error::custom("that is all"))
    }
}

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.heard(fields)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.heard(variants)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        self.heard(&[])
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}
