//! The name of a token issuer, which is a url.

use crate::limit;

/// Whether a text can name an issuer: SpacetimeDB appends the path of the discovery document to it, and accepts no long
/// one.
pub fn check_issuer_url(url: &str) -> Result<(), String> {
    let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else {
        return Err(format!("expected http://… or https://…, found {url:?}"));
    };
    if url.len() > limit::CLAIMED_NAME_BYTES {
        let (most, found) = (limit::CLAIMED_NAME_BYTES, url.len());
        return Err(format!("expected a url of at most {most} bytes, found {found}"));
    }
    if rest.is_empty() || url.ends_with('/') || url.contains(|c: char| "?#".contains(c) || !c.is_ascii_graphic()) {
        return Err(format!(
            "expected a url without a slash at the end, a query or a fragment, found {url:?}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_a_url_to_which_a_path_can_be_appended() {
        let longest = format!("https://{}", "x".repeat(120));
        for (url, good) in [
            ("https://lane.example", true),
            (&longest, true),
            (&format!("{longest}x"), false),
            ("https://lane.example/sync", true),
            ("http://127.0.0.1:7070", true),
            ("https://lane.example/", false),
            ("https://lane.example/sync/", false),
            ("https://lane.example?a", false),
            ("https://lane.example#a", false),
            ("https://lane.example/a b", false),
            ("https://lane.example/a\n", false),
            ("https://l\u{e4}ne.example", false),
            ("https://", false),
            ("lane.example", false),
            ("ws://lane.example", false),
            ("", false),
        ] {
            assert_eq!(check_issuer_url(url).is_ok(), good, "{url:?}");
        }
    }
}
