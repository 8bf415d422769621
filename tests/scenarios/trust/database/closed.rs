//! A new database: nobody but its owner is served before it is configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use spacetime_sync_proto::{Refusal, RefusalCode};
use spacetime_sync_stdb::admin::Admin;
use spacetime_sync_tests::tool;

use crate::lane::hostile::{Module, SECRET, identity, newcomer};

const CONTRACT: &str = "SELECT * FROM sync_contract";

#[tokio::test(flavor = "multi_thread")]
async fn a_module_admits_nobody_but_its_owner_until_it_is_configured() {
    let module = Module::start_unconfigured().await;
    let stranger = newcomer(&module.server).await;
    let shut = async || {
        for who in [None, Some(&stranger), Some(&module.bridge)] {
            assert!(!module.connects(who).await, "{who:?}");
            let refused = module.sql(who, CONTRACT).await.unwrap_err();
            let code = Refusal::from_wire(&refused).map(|refusal| refusal.code);
            assert!(
                matches!(code, Some(RefusalCode::NotConfigured | RefusalCode::Unauthorized)),
                "{refused}"
            );
        }
        assert!(module.connects(Some(&module.owner)).await);
        assert_eq!(module.sql(Some(&module.owner), CONTRACT).await.unwrap().len(), 2);
    };
    shut().await;
    // An owner that trusts an issuer says so first, and then nobody else ever gets in.
    let trusted = json!(["http://127.0.0.1:9", "openagents-sync", 1_000]);
    let owner = Some(&module.owner);
    module.call(owner, "trust_issuer", &trusted).await.done();
    shut().await;
    let bridge = json!([identity(&module.bridge), SECRET]);
    module.call(owner, "configure", &bridge).await.done();
    for who in [None, Some(&stranger)] {
        assert!(!module.connects(who).await);
        module
            .call(who, "read_heads", &json!([[]]))
            .await
            .refused(RefusalCode::Unauthorized);
    }
    assert!(module.connects(Some(&module.bridge)).await);

    // Without an issuer, naming the bridge opens the database to anybody.
    let module = Module::start().await;
    assert!(module.connects(None).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_knocks_all_the_time_is_not_let_in_while_the_owner_publishes() {
    let module = Module::start_unconfigured().await;
    let uri = module.server.uri();
    let database = format!("{}-fresh", module.name);
    let stranger = newcomer(&module.server).await;
    let (inside, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let refused = Arc::new(AtomicU64::new(0));
    let knocking: Vec<_> = (0..4)
        .map(|_| {
            let admin = Admin::new(uri, &database, stranger.token.clone());
            let (inside, refused, over) = (inside.clone(), refused.clone(), over.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match admin.check_contract().await {
                        Ok(_) => inside.fetch_add(1, Ordering::Relaxed),
                        Err(spacetime_sync_stdb::StdbError::NotLetIn { .. }) => refused.fetch_add(1, Ordering::Relaxed),
                        Err(_) => 0,
                    };
                }
            })
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let owner = folder.path().join("owner.token");
    let wasm = std::env::var("SYNC_MODULE_WASM").unwrap();
    let publish = ["publish", "--uri", uri, "--database", &database, "--wasm", &wasm];
    let configured = [
        "--issuer",
        "http://127.0.0.1:9",
        "--token-file",
        owner.to_str().unwrap(),
    ];
    for erased in [&[][..], &["--delete-data"]] {
        let arguments = [&publish[..], &configured, erased].concat();
        tool::run("spacetime-sync", &arguments, &[]).await.good();
    }
    over.store(true, Ordering::Relaxed);
    for task in knocking {
        task.await.unwrap();
    }
    assert_eq!(inside.load(Ordering::Relaxed), 0, "times that the stranger was let in");
    assert!(refused.load(Ordering::Relaxed) > 0, "the stranger has knocked");
}
