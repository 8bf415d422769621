//! The bounds of the contract. Every party that accepts bytes checks them itself.

/// Longest stream id, in bytes.
pub const STREAM_ID_BYTES: usize = 255;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES: usize = 512;
/// Longest kind, in bytes.
pub const KIND_BYTES: usize = 128;
/// Largest payload of one event, in bytes.
pub const PAYLOAD_BYTES: usize = 256 * 1024;
/// Most events in one frame.
pub const FRAME_EVENTS: usize = 1_000;
/// Largest encoded frame, in bytes. The largest event fits with room to spare.
pub const FRAME_BYTES: usize = 1024 * 1024;
/// Smaller frames are padded to this size. SpacetimeDB keeps a value of more than 992 bytes outside its table pages,
/// and only then does the cost of an insert not grow with the table (docs/adr/0002).
pub const FRAME_PADDED_BYTES: usize = 993;
/// Most bytes of frames in one answer of `read_events`. An answer may always hold one frame, however large.
pub const PAGE_BYTES: usize = 1024 * 1024;
/// How many events a subscription may reach ahead. A client subscribes to 4 MiB of events by default: to so many of 256 bytes.
/// More would serve only who means harm: SpacetimeDB does nothing else while it evaluates a subscription.
pub const SUBSCRIPTION_EVENTS: u64 = 16_384;
/// How many seqs a section of a stream has ([`Section`](crate::Section)). SpacetimeDB reads every frame of a section when a
/// client subscribes to a part of it, 0.2 µs each, and each section is a query of its own.
pub const SECTION_EVENTS: u64 = 8_192;
/// Most streams in one question for heads, of the bridge to the module or of a client to the bridge.
pub const HEADS: usize = 1_000;
/// Most retention classes.
pub const RETENTION_CLASSES: usize = 256;
/// Most bytes of claims that the module reads.
pub const CLAIMS_BYTES: usize = 16 * 1024;
/// Most streams and patterns of one token.
pub const TOKEN_STREAMS: usize = 256;
/// Most streams that one session sees, including those that its patterns cover.
pub const SESSION_GRANTS: usize = 10_000;
/// How many of these may come from patterns when the module takes the token: the newest streams (docs/adr/0012).
pub const PATTERN_GRANTS: usize = 9_000;
// Everything that a token names always fits, and so do the keys of the audiences that a session belongs to: its user, the
// providers and the mirrors. Some room is left for streams that are created later.
const _: () = assert!(PATTERN_GRANTS + TOKEN_STREAMS + 3 < SESSION_GRANTS);
/// How long the owner of the database may give a grant by hand, in seconds: 400 days.
pub const GRANT_SECONDS: u64 = 400 * 86_400;
/// Most streams of which one request reports that SpacetimeDB contradicts the authority.
pub const REPORTED: usize = 16;
/// Most streams that a session may list as served in its presence.
pub const PRESENCE_SERVES: usize = 16;
/// Most nodes for which the module keeps a session's presence.
pub const PRESENCE_NODES: usize = 16;
/// Most challenges for keys of Nostr that the module holds of a session.
pub const NOSTR_CHALLENGES: usize = 16;
/// Longest text of a signal, in bytes.
pub const SIGNAL_NOTE_BYTES: usize = 512;
/// Most streams whose signals a client listens to.
pub const HEARD_STREAMS: usize = 64;
/// Most capabilities of a user.
pub const CAPABILITIES: usize = 64;
/// Largest document of a capability, in bytes.
pub const CAPABILITY_BYTES: usize = 4 * 1024;
/// How long a capability may stand before it must be published anew, in seconds: a day.
pub const CAPABILITY_SECONDS: u64 = 86_400;
/// The highest price that a capability may hint at, in satoshis: all that there will ever be.
pub const PRICE_SATS: u64 = 2_100_000_000_000_000;
/// Most assignments of a requester that have not ended. With those that have, the module holds twice as many.
pub const ASSIGNMENTS: usize = 48;
/// Of so many assignments of a requester, the module knows that they were opened after it has ceased to hold them.
pub const ASSIGNMENTS_FORGOTTEN: usize = 512;
/// So many assignments that have not ended may be with a user's providers, or offered to them. What is offered ends there; as many
/// again may be taken, so that whoever fills a provider with offers keeps it from no work.
pub const PROVIDER_ASSIGNMENTS: usize = 4 * ASSIGNMENTS;
/// Largest document of an assignment, and largest report about it, in bytes.
pub const ASSIGNMENT_BYTES: usize = 4 * 1024;
/// So many more stay known until their deadline, if that comes later.
pub const ASSIGNMENTS_LINGERING: usize = 256;
/// How long an assignment may take until its deadline, in seconds: a week.
pub const ASSIGNMENT_SECONDS: u64 = 7 * 86_400;
/// How many of an assignment's newest changes are kept.
pub const ASSIGNMENT_CHANGES: u64 = 16;
/// Most bytes that the capabilities and assignments of one user take in SpacetimeDB's memory.
pub const COLLABORATION_BYTES: usize = 9 * 1024 * 1024;
const _: () = {
    // Besides documents, a row is names and fixed columns in pieces of 64 bytes, and the names again in the indexes. Of an
    // assignment there are a row and a history for the requester's sessions, and the same for the provider's.
    let (change, update, party) = (9 * NAME_BYTES, 8 * NAME_BYTES, 12 * NAME_BYTES);
    let seen = 2 * ASSIGNMENT_BYTES + 7 * NAME_BYTES + ASSIGNMENT_CHANGES as usize * change;
    let assignment = 2 * seen + ASSIGNMENT_CHANGES as usize * update + party;
    let capability = CAPABILITY_BYTES + 16 * NAME_BYTES;
    let forgotten = 8 * NAME_BYTES;
    let known = ASSIGNMENTS_FORGOTTEN + ASSIGNMENTS_LINGERING;
    let assignments = 2 * ASSIGNMENTS * assignment + known * forgotten;
    // What the authority does not keep yet has a mark each.
    let marks = (2 * ASSIGNMENTS + known + CAPABILITIES) * 8 * NAME_BYTES;
    assert!(assignments + CAPABILITIES * capability + marks < COLLABORATION_BYTES);
};
/// Most events of the outbox that were not sent.
pub const OUTBOX_PENDING: u32 = 1_024;
/// So many events of the outbox are remembered after they were sent.
pub const OUTBOX_SENT: u32 = 1_024;
/// Largest payload of an event of the outbox, in bytes.
pub const OUTBOX_BYTES: usize = 4 * 1024;
/// So many assignments and capabilities, also such as are gone again, may wait until the authority keeps them as they are. While so
/// many wait, nobody opens or publishes anything.
pub const JOURNAL_WAITING: u64 = 100_000;
/// Longest name of a node, a region, a user, a session, a device, a provider, a capability, an assignment, a change of one or an
/// event of the outbox, in bytes.
pub const NAME_BYTES: usize = 128;
/// The longest `iss` and the longest `sub` that SpacetimeDB accepts in a token, in bytes.
pub const CLAIMED_NAME_BYTES: usize = 128;
/// The allowed intervals at which the module looks for expired sessions, in milliseconds.
pub const SWEEP_MS: std::ops::RangeInclusive<u32> = 100..=60_000;
/// The most events that one step of a rewind removes, unless a single frame holds more, or cannot be cut.
pub const REWIND_STEP_EVENTS: u64 = 8_192;
/// How many steps of a rewind in a row may leave SpacetimeDB's head in place. Steps that drop the oldest events of a
/// broken log do. The bound is for a module that removes nothing.
pub const REWIND_STEPS_IN_PLACE: u32 = 1_000;
