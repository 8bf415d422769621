//! What to do with a lane that stays when the demo is over.

use std::path::Path;

use anyhow::Context as _;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::issuing::ADMIN;
use spacetime_sync_tests::lane::{Bridge, Lane};
use spacetime_sync_tests::process::built;

/// The commands to paste into a shell.
pub(crate) struct Commands {
    lane: String,
    append: String,
    follow: String,
    show: String,
    health: String,
    stop: String,
}

impl Commands {
    /// The commands for a lane and its bridge. The clients may read the streams, and were not started.
    pub(crate) fn of(
        psql: &Path,
        lane: &Lane,
        bridge: &Bridge,
        [client, terminal]: [&Follower; 2],
        stream: &StreamId,
    ) -> Self {
        let psql = psql.display();
        // psql does not know the driver's options.
        let url = lane.database.url().split('?').next().unwrap_or_default();
        let (name, uri) = (&lane.name, lane.server.uri());
        Self {
            lane: format!("database {name} at {uri}, files in {}", lane.folder.path().display()),
            append: format!(
                "{psql} '{url}' -c \"SELECT runtime.sync_append('{stream}', 'by-hand-1', 'note', convert_to('hello', 'UTF8'))\""
            ),
            follow: format!(
                "{} --print --uri {uri} --database {name} --bridge {} --session-file {} --db {} --stream {stream}",
                built("examples/follow").display(),
                bridge.url(),
                client.token_file().display(),
                client.store().display()
            ),
            show: format!(
                "{} {}",
                built("spacetime-sync-terminal").display(),
                terminal.arguments().join(" ")
            ),
            health: format!("curl -H 'Authorization: Bearer {ADMIN}' {}/healthz", bridge.url()),
            stop: format!("kill {}", std::process::id()),
        }
    }

    /// All commands with an explanation.
    pub(crate) fn text(&self, pid_file: Option<&Path>) -> String {
        let stop = pid_file.map_or_else(|| self.stop.clone(), |file| format!("kill $(cat {})", file.display()));
        format!(
            "\nThe lane goes on running: {}.\n\n\
             Follow a stream in another terminal (the session is valid for an hour):\n  {}\n\n\
             Append an event to it (repeat the same command, and nothing new happens):\n  {}\n\n\
             See live in a terminal who is here and how far the streams are:\n  {}\n\n\
             Ask for the bridge's health:\n  {}\n\n\
             Stop everything and delete it:\n  {stop}\n",
            self.lane, self.follow, self.append, self.show, self.health
        )
    }
}

/// Writes the id of this process where a script finds it.
pub(crate) fn write_pid(file: &Path) -> anyhow::Result<()> {
    std::fs::write(file, format!("{}\n", std::process::id())).with_context(|| file.display().to_string())
}
