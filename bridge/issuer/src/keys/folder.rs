//! The folder that holds the signing keys, one in each file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use spacetime_sync_proto::{Position, Seal, Sealer, Secret, StreamId};
use spacetime_sync_transport::secret_file::{self, SecretFileError};

use super::{KEY_BYTES, KeyError, Ring, SIGNS_IN_SECONDS, SigningKey, moment_from_name, moment_text, now};

/// Most files that are read. The newest count.
const FILES: usize = 64;

/// The ring of the keys in a folder, or of a single key without a folder.
#[derive(Debug)]
pub struct KeyFolder {
    folder: Option<PathBuf>,
    ring: RwLock<Arc<Ring>>,
    last: Mutex<Last>,
}

impl Sealer for KeyFolder {
    fn seal(&self, stream_id: &StreamId, at: &Position) -> Option<Seal> {
        self.ring().signer(now())?.seal(stream_id, at)
    }

    fn check(&self, stream_id: &StreamId, at: &Position, seal: &Seal) -> Option<bool> {
        self.ring().check_seal(stream_id, at, seal)
    }

    fn is_ready(&self) -> bool {
        self.ring().signer(now()).is_some()
    }
}

/// What the last look at the folder found.
#[derive(Debug, Default)]
struct Last {
    keys: BTreeMap<String, Arc<SigningKey>>,
    /// What was wrong, so that it is logged once and not at every look.
    wrong: Vec<String>,
}

/// One file of a folder, for an operator.
#[derive(Debug)]
pub struct KeyListing {
    /// The file's name.
    pub name: String,
    /// The key's id and the moment from which it signs, or what is wrong with it.
    pub key: Result<(String, u64), String>,
}

impl KeyFolder {
    /// One key that always signs, without a folder.
    pub fn single(key: SigningKey) -> Self {
        Self {
            folder: None,
            ring: RwLock::new(Arc::new(Ring::new(vec![Arc::new(key)]))),
            last: Mutex::default(),
        }
    }

    /// Reads a folder, and refuses one in which no key signs now.
    pub fn open(folder: &Path, now: u64) -> Result<Self, KeyError> {
        let keys = Self {
            folder: Some(folder.to_owned()),
            ring: RwLock::default(),
            last: Mutex::default(),
        };
        keys.read(folder)?;
        // Whoever could read a key may have it, so nothing is signed before a person has looked. `read` only logs that: a
        // process that runs goes on with the keys that it has.
        for name in names(folder)? {
            if let Err(exposed @ KeyError::File(SecretFileError::Exposed { .. })) = load(&folder.join(&name), &name) {
                return Err(exposed);
            }
        }
        if keys.ring().signer(now).is_none() {
            return Err(KeyError::Empty {
                origin: folder.display().to_string(),
            });
        }
        Ok(keys)
    }

    /// The keys found at the last look.
    pub fn ring(&self) -> Arc<Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks again. Keys that cannot be read stay as they were.
    pub fn reload(&self) {
        let Some(folder) = &self.folder else { return };
        if let Err(error) = self.read(folder) {
            tracing::error!(
                error = spacetime_sync_proto::error_text(&error),
                "cannot read the signing keys again; the issuer keeps the keys that it has"
            );
        }
    }

    fn read(&self, folder: &Path) -> Result<(), KeyError> {
        let names = names(folder)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut keys, mut wrong) = (BTreeMap::new(), Vec::new());
        for name in names {
            match load(&folder.join(&name), &name) {
                Ok(key) => {
                    // An unchanged key stays the same value, so that a look does not rebuild everything.
                    let known = last.keys.get(&name).filter(|known| known.kid == key.kid);
                    let key = known.cloned().unwrap_or_else(|| Arc::new(key));
                    keys.insert(name, key);
                }
                Err(error) => {
                    // A file that is just being replaced does not take its key away.
                    if let Some(known) = last.keys.get(&name) {
                        keys.insert(name, known.clone());
                    }
                    wrong.push(spacetime_sync_proto::error_text(&error));
                }
            }
        }
        for message in wrong.iter().filter(|message| !last.wrong.contains(message)) {
            tracing::error!(message, "a signing key is not usable");
        }
        if !keys.is_empty() || last.keys.is_empty() {
            for (name, key) in &keys {
                if !last.keys.contains_key(name) {
                    tracing::info!(
                        kid = key.kid,
                        signs_from = moment_text(key.signs_from),
                        "found a signing key"
                    );
                }
            }
            let ring = Arc::new(Ring::new(keys.values().cloned().collect()));
            *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
            last.keys = keys;
        } else if !last.wrong.iter().any(|message| message.contains("empty now")) {
            wrong.push(format!(
                "{} is empty now; the issuer keeps the keys that it has",
                folder.display()
            ));
            tracing::error!(folder = %folder.display(), "the folder no longer holds a signing key; the issuer keeps the keys that it has");
        }
        last.wrong = wrong;
        Ok(())
    }
}

/// Creates a new key in a folder and returns its name and id. It signs after `signs_in` seconds; the first key of a
/// folder signs at once.
pub fn add_key(folder: &Path, signs_in: Option<u64>, now: u64) -> Result<(String, String), KeyError> {
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    let first = names(folder)?.is_empty();
    let delay = signs_in.unwrap_or(if first { 0 } else { SIGNS_IN_SECONDS });
    let name = format!("{}.pem", moment_text(now.saturating_add(delay)));
    let path = folder.join(&name);
    let pem = SigningKey::generate()?;
    let key = SigningKey::from_pem(&pem, 0, &name)?;
    // Writes the key under another name and then links it: a reader never meets half a key, and no key is replaced.
    let half = folder.join(format!(".{name}.{}", std::process::id()));
    let written = write(&half, &pem).and_then(|()| fs::hard_link(&half, &path));
    // If the file cannot be removed it does no harm: nobody reads it.
    let _ = fs::remove_file(&half);
    written.map_err(io_error("write", &path))?;
    Ok((name, key.kid))
}

/// Every file of a folder that should hold a key, and what is wrong with it.
pub fn list_keys(folder: &Path) -> Result<Vec<KeyListing>, KeyError> {
    let listing = |name: String| {
        let key = load(&folder.join(&name), &name);
        KeyListing {
            name,
            key: key
                .map(|key| (key.kid.clone(), key.signs_from))
                .map_err(|error| spacetime_sync_proto::error_text(&error)),
        }
    };
    Ok(names(folder)?.into_iter().map(listing).collect())
}

fn write(path: &Path, pem: &Secret) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(pem.expose().as_bytes())?;
    file.sync_all()
}

/// The names of the files that should hold a key. A name that begins with a dot belongs to a key that is being written.
fn names(folder: &Path) -> Result<Vec<String>, KeyError> {
    let error = || io_error("read", folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(error())? {
        let name = entry.map_err(error())?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".pem") && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    let from = names.len().saturating_sub(FILES);
    Ok(names.split_off(from))
}

fn load(path: &Path, name: &str) -> Result<SigningKey, KeyError> {
    let origin = path.display().to_string();
    let Some(signs_from) = moment_from_name(name) else {
        return Err(KeyError::Name { origin });
    };
    let mut text = String::new();
    secret_file::open(path)?
        .take(KEY_BYTES)
        .read_to_string(&mut text)
        .map_err(io_error("read", path))?;
    SigningKey::from_pem(&Secret::from(text), signs_from, &origin)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError + use<> {
    let origin = path.display().to_string();
    move |source| KeyError::Io { what, origin, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: u64 = 1_800_000_000;

    fn signer(keys: &KeyFolder, now: u64) -> Option<String> {
        keys.ring().signer(now).map(|key| key.kid().to_owned())
    }

    #[test]
    fn the_first_key_signs_at_once_and_the_next_after_every_cache_has_seen_it() {
        let folder = tempfile::tempdir().unwrap();
        let (name, first) = add_key(folder.path(), None, NOW).unwrap();
        let mode = fs::metadata(folder.path().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let keys = KeyFolder::open(folder.path(), NOW).unwrap();
        let (_, second) = add_key(folder.path(), None, NOW).unwrap();
        assert_eq!(
            signer(&keys, NOW + SIGNS_IN_SECONDS),
            Some(first.clone()),
            "the folder has not been read again yet"
        );
        keys.reload();
        assert_eq!(signer(&keys, NOW), Some(first.clone()));
        assert_eq!(keys.ring().published(NOW).count(), 2);
        assert_eq!(signer(&keys, NOW + SIGNS_IN_SECONDS - 1), Some(first));
        assert_eq!(signer(&keys, NOW + SIGNS_IN_SECONDS), Some(second));
        assert!(
            add_key(folder.path(), None, NOW).is_err(),
            "an existing key is never replaced"
        );
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 2, "no temporary file is left");
    }

    #[test]
    fn a_bad_file_does_not_take_the_ring_down() {
        let folder = tempfile::tempdir().unwrap();
        let (name, kid) = add_key(folder.path(), None, NOW).unwrap();
        for bad in ["20200101T000000Z.pem", "key.pem", "20200101T000001Z.pem"] {
            write(&folder.path().join(bad), &Secret::from("hunter2".to_owned())).unwrap();
        }
        let keys = KeyFolder::open(folder.path(), NOW).unwrap();
        assert_eq!(signer(&keys, NOW), Some(kid.clone()));
        fs::write(folder.path().join(&name), "half a k").unwrap();
        keys.reload();
        assert_eq!(signer(&keys, NOW), Some(kid.clone()), "the key of a damaged file stays");
        fs::remove_dir_all(folder.path()).unwrap();
        keys.reload();
        assert_eq!(signer(&keys, NOW), Some(kid), "the keys of a missing folder stay");
    }

    #[test]
    fn a_key_that_others_may_read_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (_, first) = add_key(folder.path(), Some(0), NOW - 10).unwrap();
        let keys = KeyFolder::open(folder.path(), NOW).unwrap();
        let (second, _) = add_key(folder.path(), Some(0), NOW).unwrap();
        let path = folder.path().join(second);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        keys.reload();
        assert_eq!(signer(&keys, NOW), Some(first));
        let said = KeyFolder::open(folder.path(), NOW).unwrap_err().to_string();
        assert!(
            said.contains(&*path.display().to_string()) && said.contains("0644"),
            "{said}"
        );
        let listed = list_keys(folder.path()).unwrap().pop().unwrap();
        assert!(listed.key.unwrap_err().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(KeyFolder::open(folder.path(), NOW).is_ok());
    }

    #[test]
    fn a_key_whose_file_is_removed_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = add_key(folder.path(), Some(0), NOW - 10).unwrap();
        let (_, second) = add_key(folder.path(), Some(0), NOW).unwrap();
        let keys = KeyFolder::open(folder.path(), NOW).unwrap();
        assert_eq!(keys.ring().published(NOW).count(), 2);
        fs::remove_file(folder.path().join(first)).unwrap();
        keys.reload();
        let left: Vec<_> = keys.ring().published(NOW).map(|key| key.kid().to_owned()).collect();
        assert_eq!(left, [second]);
    }

    #[test]
    fn a_folder_without_a_key_that_signs_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            KeyFolder::open(folder.path(), NOW),
            Err(KeyError::Empty { .. })
        ));
        add_key(folder.path(), Some(60), NOW).unwrap();
        assert!(matches!(
            KeyFolder::open(folder.path(), NOW),
            Err(KeyError::Empty { .. })
        ));
        assert!(KeyFolder::open(folder.path(), NOW + 60).is_ok());
        let nowhere = folder.path().join("nowhere");
        assert!(matches!(KeyFolder::open(&nowhere, NOW), Err(KeyError::Io { .. })));
    }
}
