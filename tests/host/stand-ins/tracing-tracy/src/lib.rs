//! Stands in for the layer that reports to the Tracy profiler, which the engine adds only when it is started for that.

use tracing_core::Subscriber;
use tracing_subscriber::Layer;

/// Reports nothing.
pub struct TracyLayer(());

impl TracyLayer {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(())
    }
}

impl<S: Subscriber> Layer<S> for TracyLayer {}
