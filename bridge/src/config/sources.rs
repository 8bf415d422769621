//! Finds where each key of a configuration comes from, so that an error names the file and line, or the variable.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// The file, and the variables that override it.
#[derive(Debug, Default)]
pub(super) struct Sources<'a> {
    /// The path and the text.
    pub(super) file: Option<(&'a Path, String)>,
    /// The variable of each key that the environment sets.
    pub(super) variables: BTreeMap<String, String>,
}

impl Sources<'_> {
    /// Reads a tree as the configuration, or as a part of it.
    pub(super) fn parse<T: DeserializeOwned>(&self, tree: toml::Table) -> Result<T, ConfigError> {
        serde_path_to_error::deserialize(toml::Value::Table(tree)).map_err(|error| {
            let key = error.path().to_string();
            ConfigError::Key {
                place: self.place(&key),
                message: error.into_inner().message().to_owned(),
                key: if key == "." {
                    "the configuration".to_owned()
                } else {
                    key
                },
            }
        })
    }

    /// Adds to an error where its key is set.
    pub(super) fn locate(&self, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::Value { key, message } => ConfigError::Key {
                place: self.place(key),
                key: key.to_owned(),
                message,
            },
            other => other,
        }
    }

    /// The place where a key is set, or should be.
    pub(super) fn place(&self, key: &str) -> String {
        match (self.variables.get(key), &self.file) {
            (Some(variable), _) => variable.clone(),
            (None, Some((path, text))) => match line_of(text, key) {
                Some(line) => format!("{}:{line}", path.display()),
                None => path.display().to_string(),
            },
            (None, None) => "the environment (without --config)".to_owned(),
        }
    }
}

/// The line of a byte in a text. Lines count from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    before.filter(|byte| *byte == b'\n').count() + 1
}

/// The line of `section.key`, or of the section that lacks the key.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let (mut table, mut at) = (document.get_ref(), None);
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else {
            break;
        };
        at = Some(name.span().start);
        let DeValue::Table(inner) = value.get_ref() else { break };
        table = inner;
    }
    at.map(|at| line_at(text, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_line_of_a_key_or_of_its_section() {
        let text = "# first\n[limits]\n\ncalls = 3\n[http]\nlisten = \"x\"\nbridge.lead = true\n";
        for (key, line) in [
            ("limits.calls", Some(4)),
            ("limits.reads", Some(2)),
            ("http.listen", Some(6)),
            ("http.bridge.lead", Some(7)),
            ("retention.beat_ms", None),
        ] {
            assert_eq!(line_of(text, key), line, "{key}");
        }
        assert_eq!(line_of("[limits", "limits"), None);
    }
}
