//! Who may call what, before and after the owner has said whom the module trusts.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use spacetime_sync_proto::{ChainHash, RefusalCode, limit};
use spacetime_sync_stdb::admin::Credential;
use spacetime_sync_tests::lane::A_DAY;
use spacetime_sync_tests::schema::scheduled;

use super::{Module, SECRET, Said, append_arguments, column, identity, log, newcomer, stream};

/// The answers to each kind of caller: stranger, anonymous, client with a grant, bridge, owner.
type Verdicts = [Option<RefusalCode>; 5];

#[tokio::test]
async fn each_function_admits_only_permitted_callers() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let events = log(&id, 2, 1);
    module.append(&id, &events, &ChainHash::genesis(&id)).await.done();
    let client = module.client(&[&id]).await;
    let stranger = newcomer(&module.server).await;
    let third = newcomer(&module.server).await;
    let (name, end) = (id.as_str(), column(&events[1].chain_hash));

    // Each call repeats something that was already done, so an allowed call changes nothing either.
    let unauthorized = Some(RefusalCode::Unauthorized);
    let forbidden = Some(RefusalCode::ForbiddenStream);
    let invalid = Some(RefusalCode::InvalidArgument);
    module
        .call(Some(&client), "ack_checkpoint", &json!([name, 2, end]))
        .await
        .done();
    module.as_owner().grant(&third.identity, &id, A_DAY).await.unwrap();
    let single = json!([
        name,
        1,
        column(&ChainHash::genesis(&id)),
        "key-1",
        "test.event",
        hex::encode([1; 10]),
        7
    ]);
    let functions: BTreeMap<&str, (Value, Verdicts)> = BTreeMap::from([
        (
            "append_sync_event",
            (single, [unauthorized, unauthorized, unauthorized, None, unauthorized]),
        ),
        (
            "append_sync_events",
            (
                append_arguments(&id, &events, &ChainHash::genesis(&id)),
                [unauthorized, unauthorized, unauthorized, None, unauthorized],
            ),
        ),
        (
            "configure",
            (
                json!([identity(&module.bridge), ""]),
                [unauthorized, unauthorized, unauthorized, unauthorized, None],
            ),
        ),
        (
            "grant_stream",
            (
                json!([identity(&third), name, 0]),
                [unauthorized, unauthorized, unauthorized, unauthorized, invalid],
            ),
        ),
        (
            "revoke_stream",
            (
                json!([identity(&third), "another.stream"]),
                [unauthorized, unauthorized, unauthorized, None, None],
            ),
        ),
        (
            "ack_checkpoint",
            (
                json!([name, 2, end]),
                [forbidden, forbidden, None, forbidden, forbidden],
            ),
        ),
        (
            "read_events",
            (json!([name, 0]), [forbidden, forbidden, None, None, None]),
        ),
        // A permitted caller is told that the arguments are invalid, so nothing changes.
        (
            "trust_issuer",
            (
                json!(["", "", 0]),
                [unauthorized, unauthorized, unauthorized, unauthorized, invalid],
            ),
        ),
        (
            "set_compatibility",
            (
                json!(["", "", 1, 1]),
                [unauthorized, unauthorized, unauthorized, invalid, invalid],
            ),
        ),
        (
            "revoke_session",
            (
                json!(["a/b"]),
                [unauthorized, unauthorized, unauthorized, invalid, invalid],
            ),
        ),
        (
            "set_retention",
            (
                json!([[{ "class": "", "stream_prefix": "", "window_events": 0, "window_age": 0, "durable_reads": true }]]),
                [unauthorized, unauthorized, unauthorized, invalid, invalid],
            ),
        ),
        (
            "rewind_stream",
            (
                json!(["no name", 0, end, "", 0, end]),
                [unauthorized, unauthorized, unauthorized, invalid, invalid],
            ),
        ),
        (
            "mark_epoch",
            (
                json!(["", 0, true]),
                [unauthorized, unauthorized, unauthorized, invalid, invalid],
            ),
        ),
        (
            "read_streams",
            (json!([""]), [unauthorized, unauthorized, unauthorized, None, None]),
        ),
        // The bridge alone keeps the journal. It is told that the arguments are invalid, so nothing changes.
        (
            "bring_back",
            (
                json!([[{ "mark": 1, "key": "", "document": "" }]]),
                [unauthorized, unauthorized, unauthorized, invalid, unauthorized],
            ),
        ),
        (
            "close_journal",
            (
                json!([9]),
                [unauthorized, unauthorized, unauthorized, invalid, unauthorized],
            ),
        ),
        (
            "open_journal",
            (
                json!(["", 0]),
                [unauthorized, unauthorized, unauthorized, invalid, unauthorized],
            ),
        ),
        (
            "settle_journal",
            (
                json!([9]),
                [unauthorized, unauthorized, unauthorized, invalid, unauthorized],
            ),
        ),
        (
            "read_journal",
            (
                json!([1]),
                [unauthorized, unauthorized, unauthorized, None, unauthorized],
            ),
        ),
        // None of these callers has a session.
        (
            "upsert_presence",
            (json!(["s", "n", "online", "", "", []]), [unauthorized; 5]),
        ),
        (
            "send_signal",
            (json!(["n", "user", "", "typing", 0, 0, ""]), [unauthorized; 5]),
        ),
        ("challenge_nostr_key", (json!(["n"]), [unauthorized; 5])),
        (
            "bind_nostr_key",
            (json!(["n", "c", "0a".repeat(32), "0b".repeat(64)]), [unauthorized; 5]),
        ),
        ("read_audience_key", (json!([""]), [unauthorized; 5])),
        ("read_providers_key", (json!([]), [unauthorized; 5])),
        ("readable_streams", (json!([""]), [None; 5])),
        (
            "publish_provider_capability",
            (json!(["p", "c", 1, 0, "", "{}", 60]), [unauthorized; 5]),
        ),
        (
            "open_compute_assignment",
            (json!(["r", "", "{}", 60]), [unauthorized; 5]),
        ),
        (
            "update_compute_assignment",
            (json!(["r", "u", 1, "open", "", ""]), [unauthorized; 5]),
        ),
        ("enqueue_bridge_event", (json!(["e", "nostr", "{}"]), [unauthorized; 5])),
        ("mark_bridge_event_sent", (json!(["e", "n"]), [unauthorized; 5])),
        (
            "read_heads",
            (json!([[name]]), [unauthorized, unauthorized, unauthorized, None, None]),
        ),
    ]);
    let callers: [(&str, Option<&Credential>); 5] = [
        ("a stranger", Some(&stranger)),
        ("nobody", None),
        ("a client", Some(&client)),
        ("the bridge", Some(&module.bridge)),
        ("the owner", Some(&module.owner)),
    ];

    // The first page of a new journal ends the pass over everything that is held: nothing is.
    module.call(Some(&module.bridge), "read_journal", &json!([1])).await;
    let before = module.everything().await;
    let schema = module.as_owner().schema().await.unwrap().unwrap();
    // See `access::sessions::only_the_database_can_run_sweeps`.
    let scheduled = scheduled(&schema).unwrap();
    assert_eq!(scheduled.len(), 2, "{scheduled:?}");
    let reducers = schema["reducers"].as_array().unwrap().iter();
    let reducers = reducers.filter(|reducer| !scheduled.contains(reducer["name"].as_str().unwrap()));
    let (lifecycle, reducers): (Vec<_>, Vec<_>) =
        reducers.partition(|reducer| reducer["lifecycle"].get("some").is_some());
    let procedures = schema["misc_exports"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|export| export.get("Procedure"));
    let mut named = 0;
    for function in reducers.into_iter().chain(procedures) {
        let function = function["name"].as_str().unwrap();
        let (arguments, verdicts) = functions
            .get(function)
            .unwrap_or_else(|| panic!("add {function} to this list and say who may call it"));
        named += 1;
        for ((who, caller), expected) in callers.into_iter().zip(verdicts) {
            let said = module.call(caller, function, arguments).await;
            assert!(!matches!(said, Said::Failed(..)), "{who} calls {function}: {said:?}");
            assert_eq!(said.code(), *expected, "{who} calls {function}: {said:?}");
            assert_eq!(module.everything().await, before, "{who} calls {function}");
        }
    }
    assert_eq!(
        named,
        functions.len(),
        "this list names a function that no longer exists"
    );
    assert!(!lifecycle.is_empty());
    for reducer in lifecycle {
        let name = reducer["name"].as_str().unwrap();
        for (who, caller) in callers {
            let said = module.call(caller, name, &json!([])).await;
            assert!(matches!(said, Said::Failed(400, _)), "{who} calls {name}: {said:?}");
        }
    }
    assert_eq!(module.everything().await, before);
    // The answer for a missing stream is the same, so nobody learns which streams exist.
    let there = module.call(Some(&stranger), "read_events", &json!([name, 0])).await;
    let not_there = module
        .call(Some(&stranger), "read_events", &json!(["no.such.stream", 0]))
        .await;
    assert_eq!(there, not_there);
}

#[tokio::test]
async fn every_function_refuses_invalid_names_and_seqs() {
    let module = Module::start().await;
    let id = stream("runtime.run.1.events");
    let client = module.client(&[&id]).await;
    module
        .append(&id, &log(&id, 1, 1), &ChainHash::genesis(&id))
        .await
        .done();
    let before = module.everything().await;
    let owner = Some(&module.owner);
    for name in [
        "",
        "a b",
        "a\0b",
        "a;--",
        "str\u{435}am",
        &"x".repeat(limit::STREAM_ID_BYTES + 1),
    ] {
        for (caller, function, arguments) in [
            (owner, "grant_stream", json!([identity(&client), name, 60])),
            (owner, "revoke_stream", json!([identity(&client), name])),
            (owner, "read_heads", json!([[id.as_str(), name]])),
            (Some(&client), "read_events", json!([name, 0])),
            (Some(&client), "ack_checkpoint", json!([name, 0, "0x0"])),
        ] {
            let said = module.call(caller, function, &arguments).await;
            said.refused(RefusalCode::InvalidArgument);
        }
    }
    let many = vec![id.as_str(); limit::HEADS + 1];
    let said = module.call(owner, "read_heads", &json!([many])).await;
    said.refused(RefusalCode::InvalidArgument);
    let said = module.call(owner, "read_heads", &json!([&many[1..]])).await;
    assert_eq!(said.done().as_array().unwrap().len(), limit::HEADS);
    for (after, frames) in [(0, 1), (1, 0), (2, 0), (i64::MAX as u64, 0)] {
        let page = module
            .call(Some(&client), "read_events", &json!([id.as_str(), after]))
            .await
            .done();
        assert_eq!(
            (&page[1], page[5].as_array().unwrap().len()),
            (&json!(1), frames),
            "after {after}"
        );
    }
    let said = module
        .call(Some(&client), "read_events", &json!([id.as_str(), u64::MAX]))
        .await;
    said.refused(RefusalCode::InvalidArgument);
    assert_eq!(module.everything().await, before);
}

#[tokio::test]
async fn an_unconfigured_module_refuses_everything_and_its_secret_is_fixed() {
    let module = Module::start_unconfigured().await;
    let id = stream("runtime.run.1.events");
    let events = log(&id, 3, 1);
    let stranger = newcomer(&module.server).await;
    let (owner, bridge) = (Some(&module.owner), Some(&module.bridge));
    let append = append_arguments(&id, &events[..1], &ChainHash::genesis(&id));
    let name = id.as_str();
    let unset = RefusalCode::NotConfigured;
    let before = module.everything().await;
    for (who, function, arguments, code) in [
        (owner, "append_sync_events", append.clone(), unset),
        (bridge, "append_sync_events", append.clone(), unset),
        (owner, "grant_stream", json!([identity(&stranger), name, 60]), unset),
        (bridge, "grant_stream", json!([identity(&stranger), name, 60]), unset),
        (owner, "revoke_stream", json!([identity(&stranger), name]), unset),
        (owner, "read_heads", json!([[name]]), unset),
        (owner, "read_events", json!([name, 0]), unset),
        (bridge, "read_events", json!([name, 0]), unset),
        (bridge, "ack_checkpoint", json!([name, 0, "0x0"]), unset),
        (
            owner,
            "configure",
            json!([identity(&module.bridge), ""]),
            RefusalCode::InvalidArgument,
        ),
        (
            owner,
            "configure",
            json!([identity(&module.bridge), &SECRET[2..]]),
            RefusalCode::InvalidArgument,
        ),
        (
            owner,
            "configure",
            json!([identity(&module.bridge), "not hex"]),
            RefusalCode::InvalidArgument,
        ),
        (bridge, "configure", json!([identity(&module.bridge), SECRET]), unset),
    ] {
        let refusal = module.call(who, function, &arguments).await.refused(code);
        assert!(
            code != unset || refusal.message.contains("spacetime-sync publish"),
            "{refusal:?}"
        );
        assert_eq!(module.everything().await, before, "{function} {arguments}");
    }

    let configure = async |bridge: &Credential, secret: &str| {
        module
            .call(owner, "configure", &json!([identity(bridge), secret]))
            .await
    };
    configure(&module.bridge, SECRET).await.done();
    module.append(&id, &events[..1], &ChainHash::genesis(&id)).await.done();
    let client = module.client(&[&id]).await;
    let before = module.everything().await;
    let other = "ff".repeat(16);
    let refusal = configure(&stranger, &other).await.refused(RefusalCode::KeySecretFixed);
    assert!(refusal.message.contains("leave key_secret empty"), "{refusal:?}");
    configure(&module.bridge, "zz")
        .await
        .refused(RefusalCode::InvalidArgument);
    configure(&module.bridge, SECRET).await.done();
    assert_eq!(
        module.everything().await,
        before,
        "a repeated configuration changes nothing"
    );

    // Another bridge takes over. The streams keep their keys, so grants and logs stay valid.
    configure(&stranger, "").await.done();
    let next = append_arguments(&id, &events[1..2], &events[0].chain_hash);
    module
        .call(bridge, "append_sync_events", &next)
        .await
        .refused(RefusalCode::Unauthorized);
    module.call(Some(&stranger), "append_sync_events", &next).await.done();
    let page = module
        .call(Some(&client), "read_events", &json!([name, 0]))
        .await
        .done();
    assert_eq!(page[1], 2, "{page}");
}

#[tokio::test]
async fn a_checkpoint_is_acknowledged_by_its_own_client_and_only_forward() {
    let module = Module::start().await;
    let [id, other] = [stream("runtime.run.1.events"), stream("runtime.run.2.events")];
    let events = log(&id, 6, 1);
    for (from, to) in [(1, 3), (4, 6)] {
        let base = super::chain_before(&id, &events, from);
        module.append(&id, &events[from - 1..to], &base).await.done();
    }
    module
        .append(&other, &log(&other, 1, 1), &ChainHash::genesis(&other))
        .await
        .done();
    let [first, second] = [module.client(&[&id]).await, module.client(&[&id, &other]).await];
    let ack = async |who: &Credential, name: &str, seq: u64, chain: &ChainHash| {
        module
            .call(Some(who), "ack_checkpoint", &json!([name, seq, column(chain)]))
            .await
    };
    let name = id.as_str();
    let chain = |seq: usize| &events[seq - 1].chain_hash;
    ack(&first, name, 2, chain(2)).await.done();
    let before = module.everything().await;
    ack(&first, name, 2, chain(2)).await.done();
    assert_eq!(
        module.everything().await,
        before,
        "a repeated acknowledgement changes nothing"
    );
    for (what, seq, of, code) in [
        ("behind", 1, chain(1), RefusalCode::CheckpointBehind),
        ("past the head", 7, chain(6), RefusalCode::CheckpointAhead),
        ("the same seq on another chain", 2, chain(3), RefusalCode::ChainMismatch),
        ("a later seq on another chain", 5, chain(4), RefusalCode::ChainMismatch),
        ("the head on another chain", 6, chain(5), RefusalCode::ChainMismatch),
        ("an invalid seq", u64::MAX, chain(6), RefusalCode::InvalidArgument),
    ] {
        ack(&first, name, seq, of).await.refused(code);
        assert_eq!(module.everything().await, before, "{what}");
    }
    ack(&first, other.as_str(), 1, chain(1))
        .await
        .refused(RefusalCode::ForbiddenStream);
    ack(&first, "no.such.stream", 0, chain(1))
        .await
        .refused(RefusalCode::ForbiddenStream);
    ack(&first, "no stream", 0, chain(1))
        .await
        .refused(RefusalCode::InvalidArgument);
    ack(&first, name, 6, chain(6)).await.done();
    ack(&second, name, 4, chain(4)).await.done();
    ack(&second, other.as_str(), 0, &ChainHash::genesis(&other))
        .await
        .done();

    // Each client sees its own checkpoint, however it asks. An operator sees all.
    let seqs = async |who: &Credential, statement: &str| {
        let rows = module.sql(Some(who), statement).await.unwrap();
        let mut seqs: Vec<_> = rows.iter().map(|row| row[0].as_u64().unwrap()).collect();
        seqs.sort_unstable();
        seqs
    };
    assert_eq!(seqs(&first, "SELECT seq FROM sync_checkpoint").await, [6]);
    assert_eq!(seqs(&second, "SELECT seq FROM sync_checkpoint").await, [0, 4]);
    assert_eq!(seqs(&module.owner, "SELECT seq FROM sync_checkpoint").await, [0, 4, 6]);
    let theirs = format!("SELECT seq FROM sync_checkpoint WHERE identity = 0x{}", second.identity);
    assert_eq!(seqs(&first, &theirs).await, [0; 0]);
    assert_eq!(seqs(&second, &theirs).await, [0, 4]);
    assert_eq!(seqs(&module.bridge, "SELECT seq FROM sync_checkpoint").await, [0; 0]);

    // Without its grant a client can no longer move its checkpoint.
    module.as_owner().revoke(&first.identity, &id).await.unwrap();
    ack(&first, name, 6, chain(6))
        .await
        .refused(RefusalCode::ForbiddenStream);
}

#[tokio::test]
async fn a_caller_who_may_not_append_is_refused_before_its_arguments_are_checked() {
    let module = Module::start().await;
    let before = module.everything().await;
    let single = |seq: u64, payload: usize| json!(["a", seq, "0x0", "key", "kind", hex::encode(vec![1; payload]), 7]);
    let stranger = newcomer(&module.server).await;
    for (function, arguments) in [
        ("append_sync_event", single(1, limit::PAYLOAD_BYTES + 1)),
        ("append_sync_event", single(u64::MAX, 1)),
        ("append_sync_events", json!(["a b", u64::MAX, 1, "0x0", "0x0", 0, "ff"])),
    ] {
        let said = module.call(Some(&stranger), function, &arguments).await;
        said.refused(RefusalCode::Unauthorized);
    }
    assert_eq!(module.everything().await, before);
}

#[tokio::test]
async fn a_rewind_forgets_only_the_checkpoints_past_it() {
    let module = Module::start().await;
    let [id, other] = [stream("runtime.run.1.events"), stream("runtime.run.2.events")];
    let logs = [&id, &other].map(|id| (id, log(id, 6, 1)));
    let [behind, past] = [module.client(&[&id]).await, module.client(&[&id, &other]).await];
    for (id, events) in &logs {
        module.append(id, events, &ChainHash::genesis(id)).await.done();
        for (who, seq) in [(&behind, 3), (&past, 5)] {
            let ack = json!([id.as_str(), seq, column(&events[seq - 1].chain_hash)]);
            module.call(Some(who), "ack_checkpoint", &ack).await;
        }
    }
    let acknowledged = async || {
        let rows = module.sql(Some(&module.owner), "SELECT seq FROM sync_checkpoint").await;
        let mut seqs: Vec<_> = rows.unwrap().iter().map(|row| row[0].as_u64().unwrap()).collect();
        seqs.sort_unstable();
        seqs
    };
    assert_eq!(acknowledged().await, [3, 5, 5]);
    let [to, seen] = [2, 5].map(|at| column(&logs[0].1[at].chain_hash));
    let rewind = json!([id.as_str(), 3, to, "", 6, seen]);
    module.call(Some(&module.owner), "rewind_stream", &rewind).await.done();
    assert_eq!(acknowledged().await, [3, 5]);
}
