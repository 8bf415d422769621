//! Files with secrets that others may read.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::{Files, run};

fn change(path: &str, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_secret_that_others_may_read_is_refused_by_every_process() {
    let files = Files::new();
    let path = |name: &str| files.path(name);
    let keys = std::fs::read_dir(path("keys")).unwrap().next().unwrap().unwrap().path();
    let key = keys.display().to_string();
    // As Kubernetes shows a secret's files.
    symlink(path("admin"), path("linked")).unwrap();
    let (owner, bridge, session, app, seals) = (
        path("owner"),
        path("bridge"),
        path("session"),
        path("app.pem"),
        path("seal-keys.json"),
    );
    let (folder, store) = (path("keys"), path("client.sqlite"));
    let wasm = path("module.wasm");
    std::fs::write(&wasm, b"\0asm").unwrap();
    let nowhere = ["--uri", "http://localhost:9", "--database", "lane"];
    let identity = "0".repeat(64);
    let follow = ["--db", &store, "--stream", "s"];
    let plain = files.bridge(&[]);
    let gate = path("gate");
    for (file, program, arguments, environment) in [
        (&key, "spacetime-sync", vec!["run"], plain.clone()),
        (&key, "spacetime-sync", vec!["verify"], plain.clone()),
        (
            &key,
            "spacetime-sync",
            vec!["run"],
            files.bridge(&[("seals.keys_dir", &folder), ("issuer.keys_dir", &folder)]),
        ),
        (&key, "spacetime-sync", vec!["keys", "seals", "--dir", &folder], vec![]),
        (&path("admin"), "spacetime-sync", vec!["run"], plain.clone()),
        (
            &path("linked"),
            "spacetime-sync",
            vec!["run"],
            files.bridge(&[("http.admin_token_file", &path("linked"))]),
        ),
        (
            &gate,
            "spacetime-sync",
            vec!["config", "check"],
            files.bridge(&[("http.gate_token_file", &gate)]),
        ),
        (
            &bridge,
            "spacetime-sync",
            vec!["run"],
            files.bridge(&[("spacetimedb.token_file", &bridge)]),
        ),
        (&gate, "spacetime-sync", vec!["gate"], files.gate(&[])),
        (
            &owner,
            "spacetime-sync",
            [
                &[
                    "publish",
                    "--wasm",
                    &wasm,
                    "--issuer",
                    "https://lane.example",
                    "--token-file",
                    &owner,
                ][..],
                &nowhere,
            ]
            .concat(),
            vec![],
        ),
        (
            &owner,
            "spacetime-sync",
            [
                &[
                    "grant",
                    "--token-file",
                    &owner,
                    "--identity",
                    &identity,
                    "--stream",
                    "s",
                ][..],
                &nowhere,
            ]
            .concat(),
            vec![],
        ),
        (&owner, "spacetime-sync", vec!["identity", &owner], vec![]),
        (
            &session,
            "spacetime-sync",
            vec![
                "session",
                "token",
                "--bridge",
                "http://localhost:9",
                "--session-file",
                &session,
                "--stream",
                "s",
            ],
            vec![],
        ),
        (
            &app,
            "spacetime-sync",
            vec![
                "session",
                "sign",
                "--key",
                &app,
                "--issuer",
                "i",
                "--audience",
                "a",
                "--user",
                "7",
                "--session",
                "s",
            ],
            vec![],
        ),
        (
            &owner,
            "examples/follow",
            [&["--token-file", &owner, "--seal-keys", &seals][..], &nowhere, &follow].concat(),
            vec![],
        ),
    ] {
        for mode in [0o640, 0o644, 0o666] {
            // Root may let a group read, and the tests may run as root.
            if mode == 0o640 && std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(file).unwrap()) == 0 {
                continue;
            }
            change(file, mode);
            let (mode, mends) = (format!("{mode:04o}"), format!("chmod 600 '{file}'"));
            let said = run(program, &arguments, &environment)
                .await
                .failed(1, &[file, &mode, &mends]);
            assert!(!said.contains("a-secret"), "{said}");
        }
        change(file, 0o600);
    }
    run("spacetime-sync", &["config", "check"], &plain).await.good();
}
