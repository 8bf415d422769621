//! The memory cost of checking a frame. The module checks every frame that arrives, whoever sent it.

// Counting allocations needs an allocator of our own.
#![allow(unsafe_code)]
// A test reports a failure by panicking.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use spacetime_sync_proto::{
    ChainHash, Event, Frame, FrameError, IdempotencyKey, Kind, PayloadHash, Seq, StreamId, limit,
};

struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator. Counting allocates nothing, because the cells are constants.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        BYTES.set(BYTES.get() + layout.size());
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Number and total size of the allocations that `work` makes.
fn allocated<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = (CALLS.get(), BYTES.get());
    let result = work();
    (result, CALLS.get() - before.0, BYTES.get() - before.1)
}

fn genesis() -> ChainHash {
    ChainHash::genesis(&StreamId::new("s").unwrap())
}

fn frame(events: u64) -> Bytes {
    let payload = Bytes::from_static(&[7; 40]);
    let events: Vec<Event> = (1..=events)
        .map(|seq| Event {
            seq: Seq::ZERO.plus(seq),
            idempotency_key: IdempotencyKey::new(&format!("key-{seq}")).unwrap(),
            kind: Kind::new("test.event").unwrap(),
            payload: payload.clone(),
            payload_hash: PayloadHash::of(&payload),
            chain_hash: genesis(),
            committed_at_us: 1,
        })
        .collect();
    Frame::encode(&events, None)
}

#[test]
fn checking_a_frame_allocates_nothing_for_each_event() {
    let bytes = frame(1_000);
    let (frame, calls, _) = allocated(|| Frame::decode(1, genesis(), bytes).unwrap());
    assert_eq!(frame.last_seq().get(), 1_000);
    assert!(calls < 20, "{calls} allocations for 1,000 events");
}

/// An empty event takes two bytes, so a frame of the largest size can hold half a million.
#[test]
fn a_frame_of_too_many_events_costs_no_more_than_a_good_one() {
    let bytes = Bytes::from([0x0a, 0].repeat(limit::FRAME_BYTES / 2));
    let (refused, _, most) = allocated(|| Frame::decode(1, genesis(), bytes).map(|_| ()));
    assert_eq!(
        refused,
        Err(FrameError::EventCount {
            found: limit::FRAME_BYTES / 2
        })
    );
    assert!(most < 256 * 1024, "{most} bytes for a frame that is refused");
}
