//! The routes of the official server that this host serves.
//!
//! `tests/host/README.md` lists the routes that it lacks.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};

use crate::node::App;
use crate::{auth, call, database, identity, logs, metrics, publish, schema, sql, subscribe};

pub(crate) fn router(node: App) -> Router {
    // A module is larger than the usual limit of a request.
    let whole_module = DefaultBodyLimit::disable();
    let databases = Router::new()
        .route("/v1/database", post(publish::publish_unnamed).layer(whole_module))
        .route(
            "/v1/database/{name}",
            put(publish::publish)
                .layer(whole_module)
                .get(database::info)
                .delete(publish::delete),
        )
        .route(
            "/v1/database/{name}/pre_publish",
            post(publish::plan).layer(whole_module),
        )
        .route(
            "/v1/database/{name}/pre-publish",
            post(publish::plan).layer(whole_module),
        )
        .route("/v1/database/{name}/identity", get(database::identity))
        .route("/v1/database/{name}/names", get(database::names))
        .route("/v1/database/{name}/call/{function}", post(call::call))
        .route("/v1/database/{name}/sql", post(sql::sql))
        .route("/v1/database/{name}/schema", get(schema::schema))
        .route("/v1/database/{name}/logs", get(logs::logs))
        .route("/v1/database/{name}/subscribe", get(subscribe::subscribe))
        .route_layer(from_fn_with_state(node.clone(), auth::identify));
    Router::new()
        .route("/v1/ping", get(async || ()))
        .route("/v1/metrics", get(metrics::metrics))
        .route("/v1/identity", post(identity::create))
        .route("/v1/identity/public-key", get(identity::public_key))
        .route("/v1/identity/websocket-token", post(identity::websocket_token))
        .merge(databases)
        .with_state(node)
}
