//! Shows runs and codex workers as they are, live: a program to copy.
//!
//! It follows their summaries as documents, keeps them in a SQLite file, and prints a line of JSON for each that is new or has
//! changed. Started again, it shows at once what the file has, also without a connection.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};
use spacetime_sync_client::{Changed, ClientConfig};
use spacetime_sync_client::{
    Content, Credential, Document, Documents, DocumentsError, HttpTokens, NoEvents, Phase, SqliteStore, StreamId,
    SyncClient, TokenError,
};

#[derive(Parser)]
struct Args {
    /// The address of SpacetimeDB.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    uri: String,
    /// The name of the database.
    #[arg(long)]
    database: String,
    /// A bridge that issues tokens for the session credential.
    #[arg(long)]
    bridge: String,
    /// A file with the session credential. It is read again for each token.
    #[arg(long)]
    session_file: PathBuf,
    /// The SQLite file to keep them in.
    #[arg(long)]
    db: PathBuf,
    /// The streams of documents.
    #[arg(long = "stream", default_values = ["runtime.run_summaries", "runtime.codex_worker_summaries"])]
    streams: Vec<StreamId>,
}

/// What the program shows of a document, whatever else is in it.
#[derive(Deserialize)]
struct Summary {
    #[serde(alias = "state")]
    status: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let args = Args::parse();
    let mut config = ClientConfig::new(&args.uri, &args.database, Vec::new());
    config.documents = args.streams.clone();
    let session = args.session_file;
    config.credential = Credential::provider(HttpTokens::new(&args.bridge, move || {
        std::future::ready(std::fs::read_to_string(&session).map_err(TokenError::unavailable))
    })?);
    let client = SyncClient::start(config, SqliteStore::open(&args.db)?, NoEvents)?;

    for stream in args.streams {
        let summaries = client.documents::<Summary>(&stream)?;
        tokio::spawn(async move {
            if let Err(error) = show(&stream, summaries).await {
                eprintln!("{stream}: {error}");
            }
        });
    }
    let mut status = client.status();
    loop {
        let phase = status.borrow_and_update().phase.clone();
        eprintln!("{phase}");
        if let Phase::Stopped { .. } = phase {
            return Ok(ExitCode::FAILURE);
        }
        tokio::select! {
            changed = status.changed() => changed?,
            _ = tokio::signal::ctrl_c() => {
                client.stop().await;
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Prints what is there, and then what changes.
async fn show(stream: &StreamId, mut summaries: Documents<Summary>) -> Result<(), DocumentsError> {
    let mut changed = Some(Changed::Everything);
    while let Some(what) = changed {
        match what {
            Changed::Everything => summaries.all()?.iter().for_each(|summary| print(stream, summary)),
            Changed::Documents(keys) => {
                for key in keys {
                    match summaries.get(&key)? {
                        Some(summary) => print(stream, &summary),
                        None => println!("{}", json!({ "stream": stream.as_str(), "key": key, "deleted": true })),
                    }
                }
            }
        }
        changed = summaries.changed().await;
    }
    Ok(())
}

fn print(stream: &StreamId, document: &Document<Summary>) {
    let mut line = json!({ "stream": stream.as_str(), "key": document.key, "version": document.version });
    match &document.content {
        Content::Decoded(Summary { status, rest }) => {
            line["status"] = json!(status);
            line["rest"] = json!(rest);
        }
        Content::Fetching => line["fetching"] = json!(true),
        Content::NotDecoded(why) => line["not_decoded"] = json!(why.to_string()),
    }
    println!("{line}");
}
