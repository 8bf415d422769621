//! The list of databases: their names, owners and directories.
//!
//! It is one small JSON file. Each change writes a whole new file, syncs it and renames it, so that a crash leaves
//! either the old list or the new one. The engine's own log has everything else: rows, schemas and the running program.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use spacetimedb::Identity;
use spacetimedb::messages::control_db::{Database, HostType};
use spacetimedb_client_api_messages::name::DatabaseName;
use spacetimedb_lib::Hash;

/// One database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    pub(crate) owner: Identity,
    /// `None` if the database was published without a name. Requests then use its identity.
    pub(crate) name: Option<DatabaseName>,
    /// The directory of its log. A database that is cleared gets a new one.
    pub(crate) replica: u64,
    /// The program to set up an empty log with.
    pub(crate) initial_program: Hash,
}

impl Entry {
    /// The engine's view of this database.
    pub(crate) fn database(&self) -> Database {
        Database {
            id: self.replica,
            database_identity: self.identity,
            owner_identity: self.owner,
            host_type: HostType::Wasm,
            initial_program: self.initial_program,
            bootstrap_generation: 0,
        }
    }
}

/// How a request names a database.
#[derive(Clone, Debug)]
pub(crate) enum NameOrIdentity {
    Identity(Identity),
    Name(DatabaseName),
}

impl<'de> Deserialize<'de> for NameOrIdentity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match Identity::from_hex(&text) {
            Ok(identity) => Ok(Self::Identity(identity)),
            Err(_) => text.try_into().map(Self::Name).map_err(serde::de::Error::custom),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("cannot read {path}, the list of databases")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a list of databases")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("cannot write {path}, the list of databases")]
    Write { path: PathBuf, source: std::io::Error },
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    last_replica: u64,
    databases: Vec<Entry>,
}

/// The list of databases, in memory and on disk.
pub(crate) struct Registry {
    path: PathBuf,
    contents: Mutex<Contents>,
}

impl Registry {
    pub(crate) fn open(data_dir: &Path) -> Result<Self, RegistryError> {
        let path = data_dir.join("databases.json");
        let contents = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| RegistryError::Parse {
                path: path.clone(),
                source,
            })?,
            Err(e) if e.kind() == ErrorKind::NotFound => Contents::default(),
            Err(source) => return Err(RegistryError::Read { path, source }),
        };
        Ok(Self {
            path,
            contents: Mutex::new(contents),
        })
    }

    pub(crate) fn find(&self, wanted: &NameOrIdentity) -> Option<Entry> {
        let found = |entry: &&Entry| match wanted {
            NameOrIdentity::Identity(identity) => entry.identity == *identity,
            NameOrIdentity::Name(name) => entry.name.as_ref().is_some_and(|n| n.as_ref() == name.as_ref()),
        };
        self.contents().databases.iter().find(found).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Entry> {
        self.contents().databases.clone()
    }

    /// Adds a database in a directory that no database has used before.
    pub(crate) fn create(
        &self,
        name: Option<DatabaseName>,
        identity: Identity,
        owner: Identity,
        initial_program: Hash,
    ) -> Result<Entry, RegistryError> {
        self.change(|contents| {
            contents.last_replica += 1;
            let entry = Entry {
                identity,
                owner,
                name,
                replica: contents.last_replica,
                initial_program,
            };
            contents.databases.push(entry.clone());
            entry
        })
    }

    /// Moves a database to a new, empty directory, to be set up with `initial_program`.
    pub(crate) fn clear(&self, old: &Entry, initial_program: Hash) -> Result<Entry, RegistryError> {
        self.change(|contents| {
            contents.last_replica += 1;
            let entry = Entry {
                replica: contents.last_replica,
                initial_program,
                ..old.clone()
            };
            contents.databases.retain(|e| e.identity != old.identity);
            contents.databases.push(entry.clone());
            entry
        })
    }

    /// Restores an entry.
    pub(crate) fn restore(&self, old: &Entry) -> Result<(), RegistryError> {
        self.change(|contents| {
            contents.databases.retain(|e| e.identity != old.identity);
            contents.databases.push(old.clone());
        })
    }

    pub(crate) fn remove(&self, identity: Identity) -> Result<(), RegistryError> {
        self.change(|contents| contents.databases.retain(|e| e.identity != identity))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents
            .lock()
            .expect("a panic ends the process, so nobody sees a poisoned lock")
    }

    /// Writes the changed list to disk, and then adopts it in memory. A change that cannot be written has no effect.
    fn change<T>(&self, edit: impl FnOnce(&mut Contents) -> T) -> Result<T, RegistryError> {
        let mut contents = self.contents();
        let mut changed = contents.clone();
        let result = edit(&mut changed);
        self.write(&changed).map_err(|source| RegistryError::Write {
            path: self.path.clone(),
            source,
        })?;
        *contents = changed;
        Ok(result)
    }

    fn write(&self, contents: &Contents) -> std::io::Result<()> {
        let aside = self.path.with_extension("tmp");
        let mut file = File::create(&aside)?;
        file.write_all(&serde_json::to_vec_pretty(contents)?)?;
        file.sync_all()?;
        std::fs::rename(&aside, &self.path)?;
        let dir = self
            .path
            .parent()
            .expect("the path was made by joining a file name to a directory");
        File::open(dir)?.sync_all()
    }
}
