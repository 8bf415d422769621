//! Publishes the module of `SYNC_MODULE_WASM` to a temporary database and prints the `SCHEMA_HASH` that it needs.

use anyhow::Context as _;
use spacetime_sync_proto::contract::SCHEMA_HASH;
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_tests::lane::module_wasm;
use spacetime_sync_tests::schema::Surface;
use spacetime_sync_tests::server::Server;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("host");
    std::fs::create_dir(&data)?;
    let server = Server::start(&data).await?;
    let owner = Admin::new_identity(server.uri()).await?;
    let name = format!("schema-{}", &owner.identity[owner.identity.len() - 16..]);
    let admin = Admin::new(server.uri(), &name, owner.token);
    admin.publish(module_wasm()?, Breaking::Refuse).await?;
    let schema = admin
        .schema()
        .await?
        .context("the database has no schema, though the module was just published")?;
    let hash = Surface::of_schema(&schema)?.hash()?;
    println!("{hash}");
    if hash != SCHEMA_HASH {
        eprintln!(
            "write it to SCHEMA_HASH in proto/src/contract.rs, which says {SCHEMA_HASH}, and raise SCHEMA_VERSION"
        );
    }
    Ok(())
}
