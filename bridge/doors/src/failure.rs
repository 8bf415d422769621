//! Which refusals count against whoever shows a credential or a token.

use spacetime_sync_proto::RefusalCode;

/// Whether a refusal means that somebody shows what is not good. What has expired was good once, what is not valid yet will
/// be, and an old client has something good.
pub fn is_failure(code: RefusalCode) -> bool {
    !matches!(
        code,
        RefusalCode::RateLimited
            | RefusalCode::SyncTokenUnavailable
            | RefusalCode::TokenExpired
            | RefusalCode::TokenNotYetValid
            | RefusalCode::TokenTooOld
            | RefusalCode::InvalidClientBuild
            | RefusalCode::UnsupportedProtocolVersion
            | RefusalCode::UnsupportedSchemaVersion
            | RefusalCode::UnsupportedClientBuild
            | RefusalCode::UpgradeRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_good_once_or_will_be_is_no_failure() {
        for (code, failure) in [
            (RefusalCode::InvalidToken, true),
            (RefusalCode::MissingJti, true),
            (RefusalCode::Forbidden, true),
            (RefusalCode::TokenExpired, false),
            (RefusalCode::TokenNotYetValid, false),
            (RefusalCode::UpgradeRequired, false),
        ] {
            assert_eq!(is_failure(code), failure, "{code:?}");
        }
    }
}
