//! The settings of `[gate]` that an operator leaves out.

use std::net::SocketAddr;

use spacetime_sync_proto::access::AUDIENCE;

pub(super) fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7071))
}

pub(super) fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7072))
}

pub(super) fn default_audience() -> String {
    AUDIENCE.to_owned()
}

pub(super) fn default_revocations_every_ms() -> u64 {
    250
}

pub(super) fn default_revocations_max_age_ms() -> u64 {
    30_000
}

pub(super) fn default_connect_deadline_ms() -> u64 {
    5_000
}

pub(super) fn default_connections() -> usize {
    10_000
}

pub(super) fn default_address_connections() -> usize {
    256
}

pub(super) fn default_sockets() -> usize {
    8_192
}

pub(super) fn default_address_sockets() -> usize {
    64
}

pub(super) fn default_address_failures_per_second() -> u32 {
    10
}

pub(super) fn default_address_failures_burst() -> u32 {
    100
}

pub(super) fn default_session_stream_subscriptions() -> usize {
    8
}

pub(super) fn default_buffers_bytes() -> usize {
    1024 * 1024 * 1024
}

pub(super) fn default_address_per_second() -> u32 {
    100
}

pub(super) fn default_address_burst() -> u32 {
    1_000
}

pub(super) fn default_session_connections() -> usize {
    8
}

pub(super) fn default_connects_per_second() -> u32 {
    1
}

pub(super) fn default_connects_burst() -> u32 {
    20
}

pub(super) fn default_calls_per_second() -> u32 {
    50
}

pub(super) fn default_calls_burst() -> u32 {
    500
}

pub(super) fn default_reads_per_second() -> u32 {
    50
}

pub(super) fn default_reads_burst() -> u32 {
    256
}

pub(super) fn default_subscribes_per_second() -> u32 {
    50
}

pub(super) fn default_subscribes_burst() -> u32 {
    1_024
}

pub(super) fn default_subscriptions() -> usize {
    2_048
}

pub(super) fn default_stream_subscriptions() -> usize {
    4
}

pub(super) fn default_message_bytes() -> usize {
    64 * 1024
}

pub(super) fn default_buffer_bytes() -> usize {
    4 * 1024 * 1024
}

pub(super) fn default_slow_after_ms() -> u64 {
    10_000
}

pub(super) fn default_subscription_bytes() -> usize {
    16 * 1024 * 1024
}
