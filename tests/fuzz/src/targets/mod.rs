//! The list of targets.

mod access;
mod answer;
mod append;
mod config;
mod document;
mod frame;
mod gate;
mod history;
mod mirror;
mod page;
mod passing;
mod request;
mod store;
mod text;
mod token;
mod trust;

use crate::target::Entry;

/// All targets.
pub const ALL: &[&Entry] = &[
    &frame::FRAME,
    &append::APPEND,
    &page::PAGE,
    &history::HISTORY,
    &document::DOCUMENT,
    &access::CLAIMS,
    &token::CREDENTIAL,
    &token::SESSION,
    &token::JWKS,
    &token::KEY,
    &store::STORE,
    &config::CONFIG,
    &request::REQUEST,
    &gate::GATE,
    &answer::ANSWER,
    &trust::SEAL,
    &trust::HEADS,
    &mirror::ANNOUNCEMENT,
    &mirror::OUTBOX,
    &passing::NOSTR,
    &passing::SIGNAL,
    &text::REFUSAL,
    &text::PATTERN,
    &text::TOPIC,
    &text::ID,
];

/// The target with this name.
pub fn named(name: &str) -> Option<&'static Entry> {
    ALL.iter().copied().find(|entry| entry.name == name)
}
