//! The module and the bindings of bridge and client have the same contract.

mod bindings;

use std::path::Path;

use serde_json::{Value, json};
use spacetime_sync_proto::contract::SCHEMA_HASH;
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_tests::lane::module_wasm;
use spacetime_sync_tests::schema::Surface;
use spacetime_sync_tests::server::Server;

const WHAT_TO_DO: &str = "run scripts/bindings, write the hash that it prints to SCHEMA_HASH in proto/src/contract.rs and raise \
     SCHEMA_VERSION there";

async fn published_schema() -> Value {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("host");
    std::fs::create_dir(&data).unwrap();
    let server = Server::start(&data).await.unwrap();
    let owner = Admin::new_identity(server.uri()).await.unwrap();
    let name = format!("contract-{}", &owner.identity[owner.identity.len() - 16..]);
    let admin = Admin::new(server.uri(), &name, owner.token);
    admin.publish(module_wasm().unwrap(), Breaking::Refuse).await.unwrap();
    admin.schema().await.unwrap().unwrap()
}

fn bindings_surface() -> Surface {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/module_bindings/src/generated");
    bindings::surface(&folder).unwrap()
}

#[tokio::test]
async fn module_and_bindings_agree() {
    let schema = published_schema().await;
    let (module, bindings) = (Surface::of_schema(&schema).unwrap(), bindings_surface());
    let differences = bindings.differences(&module);
    assert!(
        differences.is_empty(),
        "the bindings (-) do not match the module (+): {WHAT_TO_DO}\n{}",
        differences.join("\n")
    );
    assert_eq!(
        module.hash().unwrap(),
        SCHEMA_HASH,
        "the hash of the schema (left) is not the contract's SCHEMA_HASH: {WHAT_TO_DO}"
    );

    // Guards against comparing two empty surfaces.
    assert!(module.tables.contains_key("sync_event") && !module.tables.contains_key("sync_trust"));
    assert!(module.reducers.contains_key("append_sync_events") && !module.reducers.contains_key("init"));
    assert_eq!(module.procedures["read_events"].returns, "Result<EventPage, String>");
    every_change_of_the_schema_is_noticed(&schema, &bindings);
}

/// Changes the published schema in each way that matters, and in some that do not.
fn every_change_of_the_schema_is_noticed(schema: &Value, bindings: &Surface) {
    let table = |schema: &Value, name: &str| {
        schema["tables"]
            .as_array()
            .unwrap()
            .iter()
            .position(|table| table["name"] == name)
            .unwrap()
    };
    let row = |schema: &Value, name: &str| {
        schema["tables"][table(schema, name)]["product_type_ref"]
            .as_u64()
            .unwrap() as usize
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Value));
    let changes: [Change<'_>; 9] = [
        ("a column of another name", &|schema| {
            let at = row(schema, "sync_head");
            schema["typespace"]["types"][at]["Product"]["elements"][1]["name"] = json!({ "some": "other" });
        }),
        ("a column of another type", &|schema| {
            let at = row(schema, "sync_head");
            schema["typespace"]["types"][at]["Product"]["elements"][1]["algebraic_type"] = json!({ "U32": [] });
        }),
        ("columns in another order", &|schema| {
            let at = row(schema, "sync_head");
            schema["typespace"]["types"][at]["Product"]["elements"]
                .as_array_mut()
                .unwrap()
                .swap(1, 2);
        }),
        ("no primary key", &|schema| {
            let at = table(schema, "sync_head");
            schema["tables"][at]["primary_key"] = json!([]);
        }),
        ("a column that is no longer unique", &|schema| {
            let at = table(schema, "sync_stream");
            schema["tables"][at]["constraints"].as_array_mut().unwrap().remove(0);
        }),
        ("a table that clients no longer see", &|schema| {
            let at = table(schema, "sync_checkpoint");
            schema["tables"][at]["table_access"] = json!({ "Private": [] });
        }),
        ("a reducer that is gone", &|schema| {
            schema["reducers"]
                .as_array_mut()
                .unwrap()
                .retain(|reducer| reducer["name"] != "ack_checkpoint");
        }),
        ("an argument of another type", &|schema| {
            let reducers = schema["reducers"].as_array_mut().unwrap();
            let reducer = reducers
                .iter_mut()
                .find(|reducer| reducer["name"] == "append_sync_events")
                .unwrap();
            reducer["params"]["elements"][1]["algebraic_type"] = json!({ "I64": [] });
        }),
        ("a procedure that answers otherwise", &|schema| {
            let exports = schema["misc_exports"].as_array_mut().unwrap();
            let procedure = exports
                .iter_mut()
                .find_map(|export| export.get_mut("Procedure"))
                .unwrap();
            procedure["return_type"] = json!({ "String": [] });
        }),
    ];
    for (what, change) in changes {
        let mut changed = schema.clone();
        change(&mut changed);
        let surface = Surface::of_schema(&changed).unwrap();
        assert!(!bindings.differences(&surface).is_empty(), "{what}");
        assert_ne!(surface.hash().unwrap(), SCHEMA_HASH, "{what}");
    }
    let mut same = schema.clone();
    same["tables"].as_array_mut().unwrap().reverse();
    same["tables"][0]["indexes"] = json!([]);
    same["row_level_security"] = json!([]);
    assert_eq!(
        Surface::of_schema(&same).unwrap().hash().unwrap(),
        SCHEMA_HASH,
        "a change that no client sees"
    );
}
