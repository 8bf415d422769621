//! `spacetime-sync publish`: puts the module onto a server, without the SpacetimeDB CLI.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::RngCore as _;
use serde::Serialize;
use serde_json::Value;
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::refusal::RefusalClass;

use spacetime_sync_proto::{DatabasePin, Secret};
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_stdb::identity::{self, NotAToken};
use spacetime_sync_stdb::tokens::{TokenFileError, read_token};
use spacetime_sync_transport::Transport;

/// What to publish where.
#[derive(Debug, Clone)]
pub struct Request {
    /// `http://…` of the server.
    pub uri: String,
    /// How to reach it.
    pub transport: Transport,
    /// Name of the database.
    pub database: String,
    /// File with the owner's token. If it does not exist, publishing makes a new identity and writes it.
    pub owner_token: PathBuf,
    /// How the bridge proves its identity.
    pub bridge: Bridge,
    /// The module. `None` if it is already published and only its trust needs configuring.
    pub wasm: Option<Vec<u8>>,
    /// How much the publish may break.
    pub breaking: Breaking,
    /// How many rows a query of anybody but the owner may scan; see [`ROW_LIMIT`].
    pub row_limit: u64,
}

/// SpacetimeDB refuses a query or a subscription if it estimates that it scans more rows. Only a bound far above what a
/// client of the lane asks for is safe: for a subscription to frames of one stream, the estimate counts the frames of all
/// streams. This one stops joins of four of the engine's own tables, which hold the lane for minutes.
pub const ROW_LIMIT: u64 = 20_000_000;

/// How the bridge proves its identity.
#[derive(Debug, Clone)]
pub enum Bridge {
    /// With the token in this file. If it does not exist, publishing makes a new identity and writes it.
    TokenFile(PathBuf),
    /// With tokens that it signs with the issuer's keys.
    Issuer(Trust),
}

/// Whose tokens the module trusts.
#[derive(Debug, Clone)]
pub struct Trust {
    /// `iss`
    pub issuer: String,
    /// `aud`
    pub audience: String,
    /// How often the module looks for sessions that have ended.
    pub sweep_every_ms: u32,
}

/// What a publish changed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name of the database.
    pub database: String,
    /// Whether the database is new.
    pub created: bool,
    /// Which database it is, for the configuration of the bridge.
    #[serde(flatten)]
    pub pin: DatabasePin,
    /// Identity of the owner.
    pub owner: String,
    /// Identity of the bridge.
    pub bridge: String,
    /// `+ name`, `- name` and `~ name` of tables, reducers and the rest of the schema.
    pub changes: Vec<String>,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The server refused or failed.
    #[error(transparent)]
    Stdb(#[from] StdbError),
    /// A token file cannot be read.
    #[error(transparent)]
    Token(#[from] TokenFileError),
    /// A token file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file does not hold a token.
    #[error("{} holds no token", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
        /// What was expected.
        source: NotAToken,
    },
    /// The bytes are not a module.
    #[error(
        "expected a module in WebAssembly, found {found}; build one with: cargo build --release --target \
         wasm32-unknown-unknown"
    )]
    NotWasm {
        /// What it is instead.
        found: String,
    },
    /// There is nothing to build.
    #[error(
        "there is no module in {}; run this in the repository, or name the module's folder with --module or a built \
         module with --wasm",
        path.display()
    )]
    NoModule {
        /// The folder.
        path: PathBuf,
    },
    /// The module could not be built.
    #[error("the module in {} could not be built: {message}", path.display())]
    Build {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
}

impl PublishError {
    /// Whether the server certainly changed nothing. If its answer was lost, the database may belong to a new identity.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Stdb(error) => match error.class() {
                RefusalClass::Fatal | RefusalClass::Reject => true,
                RefusalClass::Retry => false,
            },
            Self::Token(_) | Self::Write { .. } | Self::NoToken { .. } | Self::NotWasm { .. } => true,
            Self::NoModule { .. } | Self::Build { .. } => true,
        }
    }
}

/// Publishes or updates the module, and configures whom it trusts. If the server refuses, the new token files are
/// removed.
pub async fn publish(request: Request) -> Result<Report, PublishError> {
    if let Some(wasm) = &request.wasm {
        must_be_wasm(wasm)?;
    }
    let mut unused = Vec::new();
    let published = publish_as(request, &mut unused).await;
    if published.as_ref().is_err_and(PublishError::is_refusal) {
        unused.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
    published
}

/// `unused` lists the new token files until the server knows their identities.
async fn publish_as(request: Request, unused: &mut Vec<PathBuf>) -> Result<Report, PublishError> {
    let owner = match &request.wasm {
        Some(_) => token_or_new(&request, &request.owner_token, unused).await?,
        // A new identity owns no database.
        None => read_token(&request.owner_token)?,
    };
    let bridge_identity = match &request.bridge {
        Bridge::TokenFile(path) => identity_in(path, &token_or_new(&request, path, unused).await?)?,
        Bridge::Issuer(trust) => identity::of_bridge(&trust.issuer),
    };
    let owner_identity = identity_in(&request.owner_token, &owner)?;
    let admin = Admin::over(&request.transport, &request.uri, &request.database, owner);
    let before = admin.schema().await?;
    if let Some(wasm) = request.wasm {
        admin.publish(wasm, request.breaking).await?;
        unused.clear();
    }
    let after = admin.schema().await?;
    // A new module admits nobody but its owner until it is configured. So this comes last: from the first caller on, all that
    // bounds callers is there.
    admin.set_row_limit(request.row_limit).await?;
    if let Bridge::Issuer(trust) = &request.bridge {
        admin
            .trust_issuer(&trust.issuer, &trust.audience, trust.sweep_every_ms)
            .await?;
    }
    configure(&admin, &bridge_identity).await?;
    unused.clear();
    // Checks that this build can talk to the module. The answer also means that a power cut does not undo the publish.
    admin.check_contract().await?;
    let pin = admin.pin().await?;
    let (held, holds) = (parts(before.as_ref()), parts(after.as_ref()));
    Ok(Report {
        database: request.database,
        created: before.is_none(),
        pin,
        owner: owner_identity,
        bridge: bridge_identity,
        changes: changes(&held, &holds),
    })
}

/// Builds the module in `folder` and returns the wasm.
pub async fn build_module(folder: &Path) -> Result<Vec<u8>, PublishError> {
    let failed = |message: String| PublishError::Build {
        path: folder.to_owned(),
        message,
    };
    if !folder.join("Cargo.toml").is_file() {
        return Err(PublishError::NoModule {
            path: folder.to_owned(),
        });
    }
    let output = tokio::process::Command::new("cargo")
        .args([
            "build",
            "--release",
            "--target",
            "wasm32-unknown-unknown",
            "--message-format",
            "json-render-diagnostics",
        ])
        .current_dir(folder)
        .stderr(std::process::Stdio::inherit())
        .output()
        .await
        .map_err(|error| failed(format!("cannot run cargo: {error}")))?;
    if !output.status.success() {
        return Err(failed(format!("cargo ended with {}", output.status)));
    }
    let artifact = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| message["filenames"][0].as_str().map(PathBuf::from))
        .rfind(|path| path.extension().is_some_and(|extension| extension == "wasm"))
        .ok_or_else(|| failed("cargo did not build a wasm file".to_owned()))?;
    std::fs::read(&artifact).map_err(|error| failed(format!("{}: {error}", artifact.display())))
}

fn identity_in(path: &Path, token: &Secret) -> Result<String, PublishError> {
    identity::of_token(token).map_err(|source| PublishError::NoToken {
        path: path.to_owned(),
        source,
    })
}

/// Checks the bytes before anything is created, because a server only says that it could not parse them.
fn must_be_wasm(bytes: &[u8]) -> Result<(), PublishError> {
    const MAGIC: &[u8] = b"\0asm";
    if bytes.starts_with(MAGIC) {
        return Ok(());
    }
    let found = match bytes.len() {
        0 => "an empty file".to_owned(),
        length => format!("{length} bytes of something else"),
    };
    Err(PublishError::NotWasm { found })
}

async fn token_or_new(request: &Request, path: &Path, unused: &mut Vec<PathBuf>) -> Result<Secret, PublishError> {
    if path.exists() {
        return Ok(read_token(path)?);
    }
    let credential = Admin::new_identity_over(&request.transport, &request.uri).await?;
    let write = |source| PublishError::Write {
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(write)?;
    unused.push(path.to_owned());
    writeln!(file, "{}", credential.token.expose()).map_err(write)?;
    Ok(credential.token)
}

async fn configure(admin: &Admin, bridge: &str) -> Result<(), StdbError> {
    match admin.configure(bridge, "").await {
        // The module has no secret for its stream keys yet.
        Err(StdbError::Refused(refusal)) if refusal.code == RefusalCode::InvalidArgument => {
            let mut secret = [0; 32];
            rand::rng().fill_bytes(&mut secret);
            admin.configure(bridge, &hex::encode(secret)).await
        }
        answer => answer,
    }
}

/// The named parts of a schema, each with its whole definition.
fn parts(schema: Option<&Value>) -> BTreeMap<String, String> {
    let mut parts = BTreeMap::new();
    let Some(schema) = schema else { return parts };
    let types = &schema["typespace"]["types"];
    for (section, what) in [
        ("tables", "table"),
        ("reducers", "reducer"),
        ("misc_exports", "procedure"),
    ] {
        for part in schema[section].as_array().into_iter().flatten() {
            let body = part
                .as_object()
                .and_then(|export| export.get("Procedure"))
                .unwrap_or(part);
            let Some(name) = body["name"].as_str() else { continue };
            let row = body["product_type_ref"].as_u64().map(|at| &types[at as usize]);
            parts.insert(
                format!("{what} {name}"),
                format!("{body} {}", row.unwrap_or(&Value::Null)),
            );
        }
    }
    for filter in schema["row_level_security"].as_array().into_iter().flatten() {
        parts.insert(
            format!("filter {}", filter["sql"].as_str().unwrap_or_default()),
            String::new(),
        );
    }
    parts
}

fn changes(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let added = after
        .keys()
        .filter(|name| !before.contains_key(*name))
        .map(|name| format!("+ {name}"));
    let removed = before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .map(|name| format!("- {name}"));
    let changed = after
        .iter()
        .filter(|(name, body)| before.get(*name).is_some_and(|held| held != *body))
        .map(|(name, _)| format!("~ {name}"));
    added.chain(removed).chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_changed_schema_is_reported_part_by_part() {
        let schema = |tables: Value, types: Value| json!({ "typespace": { "types": types }, "tables": tables });
        let before = schema(
            json!([{"name": "a", "product_type_ref": 0}, {"name": "b"}]),
            json!(["x"]),
        );
        let after = schema(
            json!([{"name": "a", "product_type_ref": 0}, {"name": "c"}]),
            json!(["y"]),
        );
        assert_eq!(
            changes(&parts(Some(&before)), &parts(Some(&after))),
            ["+ table c", "- table b", "~ table a"]
        );
        assert_eq!(changes(&parts(None), &parts(Some(&before))), ["+ table a", "+ table b"]);
    }
}
