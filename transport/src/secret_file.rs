//! Reads files that hold a secret, and refuses those that others may read.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use spacetime_sync_proto::Secret;

/// The longest secret.
const LONGEST: u64 = 1024 * 1024;

/// Why a file yields no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Others than its owner may read or change it.
    #[error(
        "{} holds a secret, and its mode {mode:04o} lets others than its owner read or change it: chmod 600 '{}'",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Whether a mode lets others at a file: the rule of Postgres for the keys of certificates. Nobody but the owner may, but
/// root may let a group read, as Kubernetes does for the files of a secret.
pub fn is_exposed(mode: u32, owner: u32) -> bool {
    let others = if owner == 0 { 0o037 } else { 0o077 };
    mode & others != 0
}

/// Opens a file that holds a secret. Behind a link, the file counts that it leads to.
pub fn open(path: &Path) -> Result<File, SecretFileError> {
    let failed = |source| SecretFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        // What was opened is asked, and not the path, which may lead elsewhere a moment later.
        let found = file.metadata().map_err(failed)?;
        // A pipe or a terminal has nothing that others could read later.
        if found.is_file() && is_exposed(found.mode(), found.uid()) {
            return Err(SecretFileError::Exposed {
                path: path.to_owned(),
                mode: found.mode() & 0o7777,
            });
        }
    }
    Ok(file)
}

/// Refuses a url if one of these parameters names a file with a secret that others may read. The secret itself may stand
/// there, too, in PEM.
pub fn check_named_in(url: &str, parameters: &[&str]) -> Result<(), SecretFileError> {
    let Ok(url) = reqwest::Url::parse(url) else {
        return Ok(());
    };
    for (name, value) in url.query_pairs() {
        if parameters.contains(&&*name) && !value.trim_start().starts_with("-----BEGIN") {
            open(Path::new(&*value))?;
        }
    }
    Ok(())
}

/// Reads a file that holds a secret.
pub fn read(path: &Path) -> Result<Secret, SecretFileError> {
    let mut text = String::new();
    let read = open(path)?.take(LONGEST).read_to_string(&mut text);
    read.map_err(|source| SecretFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Secret::from(text))
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn nobody_but_the_owner_may_and_roots_group_may_read() {
        for (mode, of_root, of_another) in [
            (0o600, false, false),
            (0o400, false, false),
            (0o700, false, false),
            (0o640, false, true),
            (0o440, false, true),
            (0o660, true, true),
            (0o620, true, true),
            (0o650, true, true),
            (0o644, true, true),
            (0o604, true, true),
            (0o602, true, true),
            (0o601, true, true),
            (0o100_600, false, false),
            (0o100_644, true, true),
        ] {
            assert_eq!(is_exposed(mode, 0), of_root, "{mode:o} of root");
            assert_eq!(is_exposed(mode, 1_000), of_another, "{mode:o} of another");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_through_links_too() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("token"), folder.path().join("link"));
        std::fs::write(&file, "hunter2").unwrap();
        symlink(&file, &link).unwrap();
        for mode in [0o644, 0o666, 0o604] {
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            for path in [&file, &link] {
                let said = read(path).unwrap_err().to_string();
                let named = [
                    path.display().to_string(),
                    format!("{mode:04o}"),
                    format!("chmod 600 '{}'", path.display()),
                ];
                assert!(named.iter().all(|part| said.contains(part)), "{said}");
                assert!(!said.contains("hunter2"), "{said}");
            }
        }
        set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        for path in [&file, &link] {
            assert_eq!(read(path).unwrap().expose(), "hunter2");
        }
        let named = |mode| {
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let url = format!("postgres://h/d?sslcert=/none&sslkey={}", file.display());
            check_named_in(&url, &["sslkey"])
        };
        assert!(matches!(named(0o604), Err(SecretFileError::Exposed { .. })));
        named(0o600).unwrap();
        check_named_in("postgres://h/d?sslkey=-----BEGIN%20PRIVATE", &["sslkey"]).unwrap();
        let gone = read(&folder.path().join("gone")).unwrap_err();
        assert!(matches!(gone, SecretFileError::Read { .. }), "{gone:?}");
    }
}
