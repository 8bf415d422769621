//! The hostile client itself. What it does through the gate is in `through`, what it asks the bridge in `requests`.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::{Scope, TokenRequest, TokenResponse};
use tokio::net::{TcpSocket, TcpStream};

use super::{ELSEWHERE, Kind, Tally};
use crate::issuing::ask;
use crate::process::built;

/// How often it tells what it has done.
const TELLS: Duration = Duration::from_millis(100);
/// How much the kernel takes for a client that reads nothing.
const SMALL_BUFFER: u32 = 4_096;

/// The arguments of the client's process.
#[derive(Debug, Clone, clap::Parser)]
pub struct Args {
    /// In which way it does harm.
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// `http://host:port` of the gate.
    #[arg(long)]
    pub gate: String,
    /// `http://host:port` of the bridge.
    #[arg(long)]
    pub bridge: String,
    /// The name of the database.
    #[arg(long)]
    pub database: String,
    /// A file with the session credential.
    #[arg(long)]
    pub credential_file: PathBuf,
    /// A stream that the session may read. The first has the longest log.
    #[arg(long = "stream", required = true)]
    pub streams: Vec<StreamId>,
    /// The key of a stream in SpacetimeDB.
    #[arg(long = "key")]
    pub keys: Vec<u64>,
}

impl Args {
    /// The command with these arguments.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(built("hostile"));
        command.args(["--kind", &self.kind.name(), "--database", &self.database]);
        command.args(["--gate", &self.gate, "--bridge", &self.bridge]);
        command.arg("--credential-file").arg(&self.credential_file);
        for stream_id in &self.streams {
            command.args(["--stream", stream_id.as_str()]);
        }
        for key in &self.keys {
            command.args(["--key", &key.to_string()]);
        }
        command
    }
}

/// A hostile client. All that it does at once, it does in one task, so that it takes one core at the most.
pub struct Client {
    pub(super) args: Args,
    pub(super) http: reqwest::Client,
    pub(super) credential: String,
    pub(super) wanted: TokenRequest,
    pub(super) token: TokenResponse,
    tally: Cell<Tally>,
}

impl Client {
    /// A client with a token.
    pub async fn new(args: Args) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .local_address(IpAddr::V4(ELSEWHERE))
            .no_gzip()
            .build()?;
        let credential = std::fs::read_to_string(&args.credential_file)?.trim().to_owned();
        let scopes = [Scope::Subscribe, Scope::CheckpointWrite, Scope::RunEvents];
        let wanted = TokenRequest {
            scopes: scopes.map(|scope| scope.as_str().to_owned()).to_vec(),
            streams: args.streams.iter().map(|id| id.as_str().to_owned()).collect(),
            ttl_seconds: Some(900),
            ..TokenRequest::default()
        };
        let answer = ask(&http, &args.bridge, &credential).json(&wanted).send().await?;
        let token = answer.error_for_status()?.json().await?;
        Ok(Self {
            args,
            http,
            credential,
            wanted,
            token,
            tally: Cell::default(),
        })
    }

    /// Does harm for as long as the process runs, and tells on stdout what it has done.
    pub async fn run(&self) -> anyhow::Result<()> {
        tokio::select! {
            harmed = self.harm() => harmed,
            told = self.tell() => told,
        }
    }

    async fn harm(&self) -> anyhow::Result<()> {
        match self.args.kind {
            Kind::Calls => self.calls(1, &self.prepared().await?).await,
            Kind::CallsOnEight => self.calls(8, &self.prepared().await?).await,
            Kind::Subscribes => self.subscribes().await,
            Kind::Hoards => self.hoards(8).await,
            Kind::Reads => self.reads().await,
            Kind::Unread => self.unread().await,
            Kind::Connects => at_once(4, async || self.connect_once().await).await,
            Kind::Reconnects => at_once(2, async || self.reconnect_once().await).await,
            Kind::Forbidden => {
                let turn = Cell::new(0);
                at_once(2, async || self.forbidden_once(&turn).await).await;
            }
            Kind::Guesses => self.guesses().await,
            Kind::Revoked => {
                let calls = self.prepared().await?;
                let connects = at_once(2, async || self.connect_once().await);
                tokio::join!(self.calls(2, &calls), self.subscribes(), connects, self.tokens(1));
            }
            Kind::Tokens => self.tokens(4).await,
            Kind::History => self.history(4).await,
            Kind::HistoryUnread => self.history_unread(8).await,
            Kind::Reports => self.reports(4).await,
            Kind::Worst => self.worst().await?,
        }
        Ok(())
    }

    /// Six connections that stay, the rest of what it may open in churn, and the bridge at the same time.
    async fn worst(&self) -> anyhow::Result<()> {
        let (calls, turn) = (self.prepared().await?, Cell::new(0));
        let churn = at_once(1, async || {
            self.connect_once().await;
            self.reconnect_once().await;
            self.forbidden_once(&turn).await;
        });
        tokio::join!(
            self.calls(2, &calls),
            self.subscribes(),
            self.hoards(1),
            self.reads(),
            self.unread(),
            churn,
            self.tokens(1),
            self.history(1),
            self.history_unread(2),
            self.reports(1),
        );
        Ok(())
    }

    async fn tell(&self) -> anyhow::Result<()> {
        loop {
            println!("{}", serde_json::to_string(&self.tally.get())?);
            tokio::time::sleep(TELLS).await;
        }
    }

    /// Counts what happens.
    pub(super) fn count(&self, happened: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        happened(&mut tally);
        self.tally.set(tally);
    }

    pub(super) fn said(&self) {
        self.count(|tally| tally.said += 1);
    }

    /// A connection was closed, or nobody answered. The machine has few ports for those who try again without a pause.
    pub(super) async fn closed(&self) {
        self.count(|tally| tally.closed += 1);
        tokio::time::sleep(crate::STEP).await;
    }
}

/// Does something again and again, so many times at once.
pub(super) async fn at_once(times: usize, act: impl AsyncFn()) {
    join_all((0..times).map(|_| again(&act))).await;
}

async fn again(act: &impl AsyncFn()) {
    loop {
        act().await;
    }
}

/// A socket to `http://host:port` from the hostile clients' address, for somebody who reads or does not.
pub(super) async fn dial(uri: &str, reads: bool) -> anyhow::Result<TcpStream> {
    let address = uri.strip_prefix("http://").context("expected http://")?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if !reads {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
    }
    socket.bind(SocketAddr::from((ELSEWHERE, 0)))?;
    Ok(socket.connect(address.parse()?).await?)
}
