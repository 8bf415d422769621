//! Wrong and hostile input, calls and reads without a right, and parties that do not fit together. Each gets a clear
//! refusal, and none of them loses data.

mod access;
mod appends;
mod checkpoints;
mod parties;
pub(crate) mod visibility;

use bytes::Bytes;
use serde_json::{Value, json};
use spacetime_sync_proto::{
    ChainHash, Event, Frame, IdempotencyKey, Kind, PayloadHash, Refusal, RefusalCode, Seq, StreamId,
};
use spacetime_sync_stdb::admin::{Admin, Breaking, Credential};
use spacetime_sync_tests::lane::{A_DAY, module_wasm};
use spacetime_sync_tests::process::Environment;
use spacetime_sync_tests::server::Server;

/// The module on a server, with its owner and its bridge, and without authority or clients.
pub(crate) struct Module {
    pub(crate) server: Server,
    pub(crate) name: String,
    pub(crate) owner: Credential,
    pub(crate) bridge: Credential,
    _folder: tempfile::TempDir,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    /// The call succeeded. For a procedure, this is its value.
    Done(Value),
    /// The module refused the call.
    Refused(Refusal),
    /// The server failed the call before the module could answer.
    Failed(u16, String),
}

impl Said {
    pub(crate) fn code(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Done(_) | Self::Failed(..) => None,
        }
    }

    #[track_caller]
    pub(crate) fn done(self) -> Value {
        match self {
            Self::Done(value) => value,
            other => panic!("expected success, found {other:?}"),
        }
    }

    /// The refusal, which must also say something to a person.
    #[track_caller]
    pub(crate) fn refused(self, code: RefusalCode) -> Refusal {
        match self {
            Self::Refused(refusal) if refusal.code == code => {
                assert!(refusal.message.len() > 10, "{refusal:?}");
                refusal
            }
            other => panic!("expected {code:?}, found {other:?}"),
        }
    }
}

impl Module {
    /// Publishes and configures the module.
    pub(crate) async fn start() -> Self {
        Self::start_with(&Environment::new()).await
    }

    /// The same on a server with these environment variables.
    pub(crate) async fn start_with(environment: &Environment) -> Self {
        let module = Self::start_unconfigured_with(environment).await;
        module
            .as_owner()
            .configure(&module.bridge.identity, SECRET)
            .await
            .unwrap();
        module.open_journal().await;
        module
    }

    /// Has the module accept changes, as a bridge does that has nothing to bring back.
    pub(crate) async fn open_journal(&self) {
        let nothing = json!(["epoch", 0]);
        self.call(Some(&self.bridge), "open_journal", &nothing).await.done();
    }

    pub(crate) async fn start_unconfigured() -> Self {
        Self::start_unconfigured_with(&Environment::new()).await
    }

    async fn start_unconfigured_with(environment: &Environment) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("host");
        std::fs::create_dir(&data).unwrap();
        let server = Server::start_with(&data, environment).await.unwrap();
        let [owner, bridge] = [newcomer(&server).await, newcomer(&server).await];
        let name = format!("hostile-{}", &owner.identity[owner.identity.len() - 16..]);
        let module = Self {
            server,
            name,
            owner,
            bridge,
            _folder: folder,
        };
        module
            .as_owner()
            .publish(module_wasm().unwrap(), Breaking::Refuse)
            .await
            .unwrap();
        module
    }

    pub(crate) fn as_owner(&self) -> Admin {
        Admin::new(self.server.uri(), &self.name, self.owner.token.clone())
    }

    /// Creates an identity that may read these streams.
    pub(crate) async fn client(&self, streams: &[&StreamId]) -> Credential {
        let client = newcomer(&self.server).await;
        for stream_id in streams {
            self.as_owner().grant(&client.identity, stream_id, A_DAY).await.unwrap();
        }
        client
    }

    /// Calls a reducer or procedure over HTTP. Without a token the server makes up an identity.
    pub(crate) async fn call(&self, caller: Option<&Credential>, function: &str, arguments: &Value) -> Said {
        let request = self.request(caller, &format!("call/{function}")).json(arguments);
        let response = request.send().await.unwrap();
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        match status {
            200 if text.is_empty() => Said::Done(Value::Null),
            200 => {
                let value: Value = serde_json::from_str(&text).unwrap();
                // The value is a result, whose variants are given by number or by name.
                if let Some(refused) = value.get("err").or_else(|| value.get(1).filter(|_| value[0] == 1)) {
                    let text = refused.as_str().unwrap();
                    return Said::Refused(Refusal::from_wire(text).unwrap_or_else(|| panic!("not a refusal: {text}")));
                }
                Said::Done(value.get("ok").or_else(|| value.get(1)).unwrap().clone())
            }
            // 403 means that the module did not admit the caller.
            530 | 403 if let Some(refusal) = Refusal::from_wire(&text) => Said::Refused(refusal),
            _ => Said::Failed(status, text),
        }
    }

    /// Whether the module lets a WebSocket in.
    pub(crate) async fn connects(&self, who: Option<&Credential>) -> bool {
        let (said, mut answer) = tokio::sync::mpsc::unbounded_channel();
        let failed = said.clone();
        let built = spacetime_sync_bindings::DbConnection::builder()
            .with_uri(self.server.uri())
            .with_database_name(self.name.as_str())
            .with_token(who.map(|who| who.token.expose()))
            .on_connect(move |_, _, _| said.send(true).unwrap_or_default())
            .on_disconnect(move |_, _| failed.send(false).unwrap_or_default())
            .build();
        let Ok(connection) = built else { return false };
        let pump = tokio::spawn(async move { connection.run_async().await });
        let let_in = tokio::time::timeout(std::time::Duration::from_secs(20), answer.recv()).await;
        pump.abort();
        let_in.expect("the host accepts or hangs up").unwrap_or(false)
    }

    /// Appends a frame as the bridge does.
    pub(crate) async fn append(&self, stream_id: &StreamId, events: &[Event], base_chain: &ChainHash) -> Said {
        self.call(
            Some(&self.bridge),
            "append_sync_events",
            &append_arguments(stream_id, events, base_chain),
        )
        .await
    }

    /// The rows that a statement returns, or the reason why it was refused.
    pub(crate) async fn sql(&self, caller: Option<&Credential>, statement: &str) -> Result<Vec<Value>, String> {
        let response = self
            .request(caller, "sql")
            .body(statement.to_owned())
            .send()
            .await
            .unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        if !status.is_success() {
            return Err(text);
        }
        let answer: Value = serde_json::from_str(&text).unwrap();
        Ok(answer[0]["rows"].as_array().unwrap().clone())
    }

    /// Every row of every table, as the owner sees them, but for what is counted of callers, which passes by itself.
    pub(crate) async fn everything(&self) -> Vec<(String, Vec<Value>)> {
        let mut all = Vec::new();
        for table in self.tables().await.into_iter().filter(|table| table != "caller_quota") {
            let mut rows = self
                .sql(Some(&self.owner), &format!("SELECT * FROM {table}"))
                .await
                .unwrap();
            rows.sort_by_key(Value::to_string);
            all.push((table, rows));
        }
        all
    }

    /// The names of all tables, including private ones.
    pub(crate) async fn tables(&self) -> Vec<String> {
        let schema = self.as_owner().schema().await.unwrap().unwrap();
        let tables = schema["tables"].as_array().unwrap().iter();
        tables.map(|table| table["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn request(&self, caller: Option<&Credential>, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/v1/database/{}/{path}", self.server.uri(), self.name);
        let request = reqwest::Client::new().post(url);
        match caller {
            Some(caller) => request.bearer_auth(caller.token.expose()),
            None => request,
        }
    }
}

/// Hex, 16 bytes: the shortest secret that the module accepts.
pub(crate) const SECRET: &str = "000102030405060708090a0b0c0d0e0f";

pub(crate) async fn newcomer(server: &Server) -> Credential {
    Admin::new_identity(server.uri()).await.unwrap()
}

pub(crate) fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

/// A log of `count` events whose payloads depend on `flavour`.
pub(crate) fn log(stream_id: &StreamId, count: u64, flavour: u8) -> Vec<Event> {
    let mut chain = ChainHash::genesis(stream_id);
    (1..=count)
        .map(|seq| {
            let seq = Seq::new(seq).unwrap();
            let payload = Bytes::from(vec![flavour; 10]);
            let payload_hash = PayloadHash::of(&payload);
            let idempotency_key = IdempotencyKey::new(&format!("key-{seq}")).unwrap();
            let kind = Kind::new("test.event").unwrap();
            chain = chain.link(seq, 7, &payload_hash, &idempotency_key, &kind);
            Event {
                seq,
                idempotency_key,
                kind,
                payload,
                payload_hash,
                chain_hash: chain,
                committed_at_us: 7,
            }
        })
        .collect()
}

/// The chain hash before the event at `seq` of a log.
fn chain_before(stream_id: &StreamId, log: &[Event], seq: usize) -> ChainHash {
    if seq == 1 {
        ChainHash::genesis(stream_id)
    } else {
        log[seq - 2].chain_hash
    }
}

pub(crate) fn append_arguments(stream_id: &StreamId, events: &[Event], base_chain: &ChainHash) -> Value {
    let frame = Frame::encode(events, None);
    let read = Frame::decode(events[0].seq.get(), *base_chain, frame.clone()).unwrap();
    json!([
        stream_id.as_str(),
        read.first_seq().get(),
        read.last_seq().get(),
        column(base_chain),
        column(&read.last_chain()),
        read.last_at_us(),
        hex::encode(frame)
    ])
}

/// A chain hash as a 256-bit argument.
pub(crate) fn column(chain: &ChainHash) -> String {
    format!("0x{}", hex::encode(chain.as_bytes()))
}

/// An identity as an argument.
pub(crate) fn identity(credential: &Credential) -> Value {
    json!({ "__identity__": format!("0x{}", credential.identity) })
}
