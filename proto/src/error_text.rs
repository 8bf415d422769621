//! Errors as text.

use std::error::Error;

/// An error and all its sources on one line, for a log.
pub fn error_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn every_source_stands_behind_its_error() {
        let inner = Layer("the disk is full", None);
        let outer = Layer("cannot write", Some(Box::new(Layer("flush", Some(Box::new(inner))))));
        assert_eq!(error_text(&outer), "cannot write: flush: the disk is full");
    }
}
