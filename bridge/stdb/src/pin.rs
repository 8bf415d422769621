//! Whether SpacetimeDB leads to the right database.

use spacetime_sync_proto::DatabasePin;

use super::StdbError;
use super::admin::Admin;

/// Whether this is the pinned database, and its owner still owns it. `here` addresses the database by its identity; `name` is
/// what people call it.
pub(crate) async fn check(pin: &DatabasePin, here: &Admin, name: &str) -> Result<(), StdbError> {
    let expected = || Box::new(pin.clone());
    let found = match here.pin().await {
        Ok(found) => found,
        Err(StdbError::NoDatabase { uri, .. }) => match here.with_database(name).pin().await {
            Ok(found) => found,
            Err(StdbError::NoDatabase { .. }) => {
                return Err(StdbError::DatabaseGone {
                    uri,
                    database: name.to_owned(),
                    expected: expected(),
                });
            }
            Err(error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    if found == *pin {
        return Ok(());
    }
    Err(StdbError::AnotherDatabase {
        uri: here.uri().to_owned(),
        database: name.to_owned(),
        expected: expected(),
        found: Box::new(found),
    })
}
