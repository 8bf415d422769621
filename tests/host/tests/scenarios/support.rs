//! A running host, the people who call it, and their sockets. All waits have deadlines, and nothing sleeps blindly.

use std::collections::VecDeque;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use spacetimedb_client_api_messages::websocket::common::{CallProcedureFlags, QuerySetId};
use spacetimedb_client_api_messages::websocket::v2::{
    BIN_PROTOCOL, CallProcedure, CallReducer, CallReducerFlags, ClientMessage, ProcedureStatus, ReducerOutcome,
    ServerMessage, Subscribe,
};
use spacetimedb_lib::ser::Serialize;
use spacetimedb_lib::{Identity, bsatn};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Far more than any step needs, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn host_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spacetime-sync-host"));
    command.kill_on_drop(true);
    command
}

/// A version of the fixture module.
pub(crate) fn module(version: &str) -> Vec<u8> {
    let dir =
        std::env::var("HOST_FIXTURES").expect("HOST_FIXTURES is not set: run these tests with `scripts/host test`");
    let path = Path::new(&dir).join(format!("{version}.wasm"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Asks repeatedly until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    timeout(DEADLINE, asking)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// A host process that accepts requests.
pub(crate) struct Host {
    child: Child,
    pub(crate) stdout: Lines<BufReader<ChildStdout>>,
    pub(crate) url: String,
    http: reqwest::Client,
}

/// What the host answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text))
    }

    /// Status and text together, for assertions.
    pub(crate) fn pair(&self) -> (u16, &str) {
        (self.status, &self.text)
    }
}

impl Host {
    /// A host on a directory of its own, with the fixture module published as `demo`.
    pub(crate) async fn with_demo() -> (TempDir, Self, Person) {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let host = Self::start(dir.path()).await;
        let owner = host.newcomer().await;
        host.publish("demo", "", "plain", &owner).await.ok();
        (dir, host, owner)
    }

    pub(crate) async fn start(dir: &Path) -> Self {
        let mut command = host_command();
        command
            .arg("--data-dir")
            .arg(dir)
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the host can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let line = timeout(DEADLINE, stdout.next_line())
            .await
            .expect("the host becomes ready in time");
        let line = line
            .expect("stdout can be read")
            .expect("the host says where it listens");
        let url = line
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("unexpected line: {line}"))
            .to_owned();
        Self {
            child,
            stdout,
            url,
            http: reqwest::Client::new(),
        }
    }

    /// SIGKILL: no destructor runs, and nothing is flushed.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("the host can be killed");
    }

    /// Sends SIGTERM, and returns how the process ended.
    pub(crate) async fn terminate(mut self) -> (ExitStatus, Lines<BufReader<ChildStdout>>) {
        let pid = self.child.id().expect("the host is running").to_string();
        let sent = Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .expect("kill can be run");
        assert!(sent.success());
        let status = timeout(DEADLINE, self.child.wait())
            .await
            .expect("the host stops in time");
        (status.expect("the host can be waited for"), self.stdout)
    }

    pub(crate) fn request(&self, method: Method, path: &str, person: Option<&Person>) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match person {
            Some(person) => request.bearer_auth(&person.token),
            None => request,
        }
    }

    pub(crate) async fn newcomer(&self) -> Person {
        let answer = send(self.request(Method::POST, "/v1/identity", None)).await.ok().json();
        let text = |key: &str| answer[key].as_str().expect("the answer has this text").to_owned();
        Person {
            identity: Identity::from_hex(text("identity")).expect("an identity"),
            token: text("token"),
        }
    }

    pub(crate) async fn get(&self, path: &str, person: Option<&Person>) -> Answer {
        send(self.request(Method::GET, path, person)).await
    }

    pub(crate) async fn publish(&self, name: &str, query: &str, version: &str, person: &Person) -> Answer {
        let path = format!("/v1/database/{name}{query}");
        send(self.request(Method::PUT, &path, Some(person)).body(module(version))).await
    }

    pub(crate) async fn plan(&self, name: &str, version: &str, person: &Person) -> Answer {
        let path = format!("/v1/database/{name}/pre_publish?style=NoColor");
        send(self.request(Method::POST, &path, Some(person)).body(module(version))).await
    }

    pub(crate) async fn call(&self, name: &str, function: &str, arguments: Value, person: &Person) -> Answer {
        let path = format!("/v1/database/{name}/call/{function}");
        send(self.request(Method::POST, &path, Some(person)).json(&arguments)).await
    }

    pub(crate) async fn sql(&self, name: &str, statement: &str, person: &Person) -> Answer {
        let path = format!("/v1/database/{name}/sql");
        send(
            self.request(Method::POST, &path, Some(person))
                .body(statement.to_owned()),
        )
        .await
    }

    /// The rows of a statement that must succeed.
    pub(crate) async fn rows(&self, name: &str, statement: &str, person: &Person) -> Value {
        self.sql(name, statement, person).await.ok().json()[0]["rows"].take()
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = timeout(DEADLINE, request.send())
        .await
        .expect("the host answers in time")
        .expect("the host answers");
    Answer {
        status: response.status().as_u16(),
        text: response.text().await.expect("the answer is text"),
    }
}

/// A person with a token.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) identity: Identity,
    pub(crate) token: String,
}

/// Why there is no further message.
#[derive(Debug)]
pub(crate) enum Gone {
    Closed { code: u16, reason: String },
    Lost,
}

/// A client's WebSocket, speaking `v2.bsatn.spacetimedb`.
pub(crate) struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next_request: u32,
    /// Messages that arrived while another one was waited for.
    waiting: VecDeque<ServerMessage>,
    /// How the last message was compressed.
    pub(crate) last_tag: u8,
}

impl Socket {
    pub(crate) async fn try_open(
        host: &Host,
        path: &str,
        protocol: &'static str,
        person: &Person,
    ) -> Result<Self, tungstenite::Error> {
        let url = format!("{}{path}", host.url.replacen("http", "ws", 1));
        let mut request = url.into_client_request()?;
        let bearer = format!("Bearer {}", person.token)
            .parse()
            .expect("a token is a header value");
        request.headers_mut().insert("authorization", bearer);
        request.headers_mut().insert(
            "sec-websocket-protocol",
            protocol.parse().expect("a protocol is a header value"),
        );
        let (stream, _) = tokio_tungstenite::connect_async(request).await?;
        Ok(Self {
            stream,
            next_request: 0,
            waiting: VecDeque::new(),
            last_tag: 0,
        })
    }

    /// Connects with confirmed reads and without compression, and reads the greeting.
    pub(crate) async fn open(host: &Host, name: &str, person: &Person) -> Self {
        let path = format!("/v1/database/{name}/subscribe?compression=None&confirmed=true");
        let mut socket = Self::try_open(host, &path, BIN_PROTOCOL, person)
            .await
            .expect("the host takes the connection");
        match socket.next().await.expect("the host greets") {
            ServerMessage::InitialConnection(hello) => {
                assert_eq!(hello.identity, person.identity);
                socket
            }
            other => panic!("not a greeting: {other:?}"),
        }
    }

    pub(crate) async fn send_raw(&mut self, bytes: Vec<u8>) {
        self.stream
            .send(Message::Binary(bytes.into()))
            .await
            .expect("the message can be sent");
    }

    async fn send(&mut self, message: ClientMessage) {
        self.send_raw(bsatn::to_vec(&message).expect("a message can be encoded"))
            .await;
    }

    /// The next message as received, still compressed.
    pub(crate) async fn next_raw(&mut self) -> Result<Bytes, Gone> {
        loop {
            let frame = timeout(DEADLINE, self.stream.next())
                .await
                .expect("the host says something in time");
            match frame {
                Some(Ok(Message::Binary(bytes))) => {
                    self.last_tag = bytes[0];
                    return Ok(bytes.slice(1..));
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(Gone::Closed {
                        code: frame.code.into(),
                        reason: frame.reason.to_string(),
                    });
                }
                Some(Ok(Message::Close(None)) | Err(_)) | None => return Err(Gone::Lost),
                Some(Ok(_)) => {}
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Result<ServerMessage, Gone> {
        if let Some(message) = self.waiting.pop_front() {
            return Ok(message);
        }
        let bytes = self.next_raw().await?;
        assert_eq!(self.last_tag, 0, "compression was not asked for");
        Ok(bsatn::from_slice(&bytes).expect("a message of the host can be decoded"))
    }

    /// The first message that `pick` accepts. The others are kept for later.
    async fn pick<T>(&mut self, mut pick: impl FnMut(&ServerMessage) -> Option<T>) -> T {
        let mut passed = VecDeque::new();
        let found = loop {
            let message = self.next().await.expect("the connection holds");
            match pick(&message) {
                Some(found) => break found,
                None => passed.push_back(message),
            }
        };
        passed.append(&mut self.waiting);
        self.waiting = passed;
        found
    }

    fn request_id(&mut self) -> u32 {
        self.next_request += 1;
        self.next_request
    }

    /// Subscribes, and returns the initial number of rows.
    pub(crate) async fn subscribe(&mut self, query: &str) -> Result<u64, String> {
        let request_id = self.request_id();
        let query_set_id = QuerySetId::new(request_id);
        let query_strings = [query.into()].into();
        self.send(ClientMessage::Subscribe(Subscribe {
            request_id,
            query_set_id,
            query_strings,
        }))
        .await;
        self.pick(|message| match message {
            ServerMessage::SubscribeApplied(applied) if applied.query_set_id == query_set_id => Some(Ok(applied
                .rows
                .tables
                .iter()
                .map(|t| t.rows.into_iter().count() as u64)
                .sum())),
            ServerMessage::SubscriptionError(e) if e.query_set_id == query_set_id => Some(Err(e.error.to_string())),
            _ => None,
        })
        .await
    }

    /// Sends a call without waiting for its result.
    pub(crate) async fn start_call(&mut self, reducer: &str, arguments: &impl Serialize) -> u32 {
        let request_id = self.request_id();
        let args = bsatn::to_vec(arguments).expect("arguments can be encoded").into();
        let flags = CallReducerFlags::Default;
        self.send(ClientMessage::CallReducer(CallReducer {
            request_id,
            flags,
            reducer: reducer.into(),
            args,
        }))
        .await;
        request_id
    }

    pub(crate) async fn call(&mut self, reducer: &str, arguments: &impl Serialize) -> Result<(), String> {
        let id = self.start_call(reducer, arguments).await;
        self.pick(|message| match message {
            ServerMessage::ReducerResult(result) if result.request_id == id => Some(outcome(&result.result)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn procedure(&mut self, procedure: &str, arguments: &impl Serialize) -> Result<Bytes, String> {
        let request_id = self.request_id();
        let args = bsatn::to_vec(arguments).expect("arguments can be encoded").into();
        let flags = CallProcedureFlags::Default;
        let call = CallProcedure {
            request_id,
            flags,
            procedure: procedure.into(),
            args,
        };
        self.send(ClientMessage::CallProcedure(call)).await;
        self.pick(|message| match message {
            ServerMessage::ProcedureResult(result) if result.request_id == request_id => Some(match &result.status {
                ProcedureStatus::Returned(bytes) => Ok(bytes.clone()),
                ProcedureStatus::InternalError(text) => Err(text.to_string()),
            }),
            _ => None,
        })
        .await
    }

    /// The encoded rows that the next update by another client inserts.
    pub(crate) async fn next_inserts(&mut self) -> Vec<Bytes> {
        use spacetimedb_client_api_messages::websocket::v2::TableUpdateRows;
        self.pick(|message| match message {
            ServerMessage::TransactionUpdate(update) => Some(
                update
                    .query_sets
                    .iter()
                    .flat_map(|set| &set.tables)
                    .flat_map(|table| &table.rows)
                    .flat_map(|rows| match rows {
                        TableUpdateRows::PersistentTable(rows) => rows.inserts.into_iter().collect::<Vec<_>>(),
                        TableUpdateRows::EventTable(rows) => rows.events.into_iter().collect(),
                    })
                    .collect(),
            ),
            _ => None,
        })
        .await
    }

    /// Reads until the connection ends, and returns how it ended.
    pub(crate) async fn end(&mut self) -> Gone {
        loop {
            if let Err(gone) = self.next().await {
                return gone;
            }
        }
    }
}

pub(crate) fn outcome(outcome: &ReducerOutcome) -> Result<(), String> {
    match outcome {
        ReducerOutcome::Ok(_) | ReducerOutcome::OkEmpty => Ok(()),
        ReducerOutcome::Err(bytes) => Err(bsatn::from_slice(bytes).expect("an error is a string")),
        ReducerOutcome::InternalError(text) => Err(text.to_string()),
    }
}
