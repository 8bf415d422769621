//! `GET /v1/metrics`: the engine's counters in the Prometheus text format.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use prometheus::core::Collector;
use prometheus::{Registry, TextEncoder};
use spacetimedb::metrics::ENGINE_METRICS;
use spacetimedb::worker_metrics::WORKER_METRICS;
use spacetimedb_datastore::db_metrics::DB_METRICS;
use spacetimedb_datastore::db_metrics::data_size::DATA_SIZE_METRICS;

use crate::error::Failure;

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let registry = Registry::new();
    let collectors: [Box<dyn Collector>; 4] = [
        Box::new(&*WORKER_METRICS),
        Box::new(&*ENGINE_METRICS),
        Box::new(&*DB_METRICS),
        Box::new(&*DATA_SIZE_METRICS),
    ];
    for collector in collectors {
        registry
            .register(collector)
            .expect("each of the engine's collectors is registered once, under its own names");
    }
    registry
});

pub(crate) async fn metrics() -> Result<Response, Failure> {
    let mut text = String::new();
    for families in [REGISTRY.gather(), prometheus::gather()] {
        TextEncoder
            .encode_utf8(&families, &mut text)
            .map_err(Failure::internal)?;
    }
    Ok(text.into_response())
}
