//! Documents: JSON that has one canonical text.

use anyhow::ensure;
use serde_json::Value;
use spacetime_sync_proto::canonical::{DEPTH, canonical_json, document_hash};

use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const DOCUMENT: Entry = Entry {
    name: "document",
    about: "documents: each has one canonical text, which says the same and is canonical itself",
    dictionary: &[
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\"",
        b"\\",
        b"\\u0000",
        b"\\ud83d",
        b"\\ude00",
        b"\\/",
        b"null",
        b"true",
        b"-",
        b"0",
        b"9007199254740991",
        b"1e2",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        "\u{e000}".as_bytes(),
        "\u{10000}".as_bytes(),
    ],
    most: 4 * 1024,
    open: || Ok(Box::new(Documents)),
    seeds: || {
        let deep = format!("{}1{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
        Ok(vec![
            Seed::new("names", r#"{"\ue000":1,"\ud83d\ude00":2,"b":3,"a":[],"":{}}"#),
            Seed::new("texts", r#"["\b\t\n\f\r\"\\\/\u001f\u007f","é","\ud834\udd1e"]"#),
            Seed::new("numbers", "[0,-1,9007199254740991,-9007199254740991]"),
            Seed::new(
                "blanks",
                " {\n\t\"run_id\" : \"42\" ,\r\"steps\" : [ 1 , 2 ] , \"done\" : null }\n",
            ),
            Seed::new("deep", deep),
            Seed::new("twice", r#"{"a":1,"a":1}"#),
        ])
    },
};

struct Documents;

impl Target for Documents {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        match canonical_json(input) {
            Ok(text) => {
                ensure!(
                    canonical_json(text.as_bytes()).as_ref() == Ok(&text),
                    "{text:?} is not canonical"
                );
                ensure!(
                    document_hash(text.as_bytes()) == document_hash(input),
                    "{text:?} has another hash"
                );
                let [found, expected] = [text.as_bytes(), input].map(serde_json::from_slice::<Value>);
                ensure!(found? == expected?, "{text:?} says something else");
                Ok(Verdict::Taken)
            }
            Err(refused) => {
                ensure!(refused.at <= input.len(), "{refused} is past the end");
                Ok(Verdict::Refused)
            }
        }
    }
}
