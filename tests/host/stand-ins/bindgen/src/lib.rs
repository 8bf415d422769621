//! Stands in for the generator of bindings, which the `v8` crate's build script runs only when it builds V8 from source.

use std::io;
use std::path::Path;

/// Fails when it is asked to generate.
#[derive(Default)]
pub struct Builder(());

/// Bindings that were generated: none ever are.
pub enum Bindings {}

/// What the build script hands to [`Builder::parse_callbacks`].
pub struct CargoCallbacks(());

impl CargoCallbacks {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(())
    }
}

impl Builder {
    pub fn header(self, _: &str) -> Self {
        self
    }

    pub fn parse_callbacks(self, _: Box<CargoCallbacks>) -> Self {
        self
    }

    pub fn clang_args(self, _: impl IntoIterator<Item: AsRef<str>>) -> Self {
        self
    }

    pub fn generate_cstr(self, _: bool) -> Self {
        self
    }

    pub fn rustified_enum(self, _: &str) -> Self {
        self
    }

    pub fn bitfield_enum(self, _: &str) -> Self {
        self
    }

    pub fn allowlist_item(self, _: &str) -> Self {
        self
    }

    pub fn generate(self) -> io::Result<Bindings> {
        Err(io::Error::other(
            "tests/host/stand-ins/bindgen generates nothing: set RUSTY_V8_ARCHIVE, as scripts/host does",
        ))
    }
}

impl Bindings {
    pub fn write_to_file(&self, _: impl AsRef<Path>) -> io::Result<()> {
        match *self {}
    }
}
