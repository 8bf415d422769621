//! A tiny HTTP server with scripted answers that records its requests. It stands for another party of the lane where a
//! scenario needs only its answers.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A recorded request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `Host`
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The `Authorization` header, if it was sent.
    pub authorization: Option<String>,
    /// The body.
    pub body: String,
}

type Answers = dyn Fn(&Asked) -> (u16, String) + Send + Sync;

/// A scripted server; see the module. It ends with the runtime that it was started in.
#[derive(Debug, Clone)]
pub struct Stub {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    /// Starts a server that answers every request with the status and JSON body that `answer` returns.
    pub async fn start(answer: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let stub = Self {
            url: format!("http://{}", listener.local_addr()?),
            asked: Arc::default(),
        };
        let (asked, answer): (_, Arc<Answers>) = (stub.asked.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, answer) = (asked.clone(), answer.clone());
                // A peer that disconnects needs no answer.
                tokio::spawn(async move { drop(serve(stream, &asked, &*answer).await) });
            }
        });
        Ok(stub)
    }

    /// `http://host:port`
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All requests so far whose path ends with `path`.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked
            .iter()
            .filter(|asked| asked.path.ends_with(path))
            .cloned()
            .collect()
    }
}

async fn serve(stream: TcpStream, log: &Mutex<Vec<Asked>>, answer: &Answers) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut authorization, mut host) = (0, None, String::new());
        loop {
            line.clear();
            stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "host" => host = value.trim().to_owned(),
                "authorization" => authorization = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let asked = Asked {
            host,
            path,
            authorization,
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let (status, body) = answer(&asked);
        log.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        let head = format!(
            "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
    }
}
