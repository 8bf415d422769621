//! Decides which stream to read next, and what a page means for its stream.

use std::time::Duration;

use spacetime_sync_proto::{Position, StreamId};

use super::stream::{Landed, Mode, Next, Stream};
use super::{Effect, ReadyFrame, Streams, less};
use crate::LinkId;
use crate::message::Page;

impl Streams {
    /// Asks for pages, a stream after the other, within the limits.
    pub(super) fn read(&mut self, out: &mut Vec<Effect>) {
        let Some(link) = self.link else { return };
        while !self.draining && self.reads < self.limits.reads && self.bytes < self.limits.bytes {
            let Some(stream_id) = self.to_read.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&stream_id) else {
                continue;
            };
            stream.queued_to_read = false;
            if stream.wants_page() {
                stream.reading = true;
                self.reads += 1;
                let (after, base_chain) = (stream.read, stream.read_chain);
                out.push(Effect::Read {
                    link,
                    stream_id,
                    after,
                    base_chain,
                });
            }
        }
    }

    pub(super) fn page(&mut self, now: Duration, link: LinkId, stream_id: StreamId, page: Page, out: &mut Vec<Effect>) {
        if self.link != Some(link) {
            return;
        }
        if matches!(page, Page::Purged) {
            // Another bridge has published these events, or the authority purged them during a refill.
            return self.has_no_page(now, link, &stream_id, Next::Compare);
        }
        let Some(stream) = self.page_is_read(&stream_id) else {
            return;
        };
        if !matches!(stream.mode, Mode::Flowing) {
            return;
        }
        match page {
            Page::Broken(reason) => {
                // Everything before the bad page is sound: the stream sends and publishes it first.
                stream.mode = Mode::Landing(Landed::Halt(reason));
                return self.when_landed(stream_id, out);
            }
            // The page was requested before the stream was set back or forward, and is of no use now.
            Page::Frames(frames)
                if frames
                    .first()
                    .is_some_and(|frame| frame.row.first_seq != stream.read.next()) => {}
            Page::Frames(frames) => {
                stream.failed_pages = 0;
                if frames.is_empty() {
                    stream.wanted = stream.read;
                }
                self.take(stream_id.clone(), frames);
            }
            Page::Purged => {}
        }
        self.queue_to_read(&stream_id);
    }

    /// Takes frames that continue what was read of a stream. They are sent next.
    pub(super) fn take(&mut self, stream_id: StreamId, frames: Vec<ReadyFrame>) {
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        for frame in frames {
            self.bytes += frame.size();
            stream.push(frame);
        }
        if !stream.ready.is_empty() && !stream.queued_to_send {
            stream.queued_to_send = true;
            self.to_send.push_back(stream_id);
        }
    }

    /// The streams that sent something lately and now rest, each with the position up to which it is read. A look brings
    /// their next events, so a lone event needs no question for its page.
    pub(crate) fn read_up_to(&self) -> Vec<(StreamId, Position)> {
        if self.draining || self.bytes >= self.limits.bytes {
            return Vec::new();
        }
        let at = |stream_id: &StreamId| Some((stream_id.clone(), self.streams.get(stream_id)?.rests_at()?));
        self.lively.iter().filter_map(at).collect()
    }

    /// Counts a read as done.
    fn page_is_read(&mut self, stream_id: &StreamId) -> Option<&mut Stream> {
        less(&mut self.reads, 1);
        let stream = self.streams.get_mut(stream_id)?;
        debug_assert!(stream.reading, "nobody asked for this page of {stream_id}");
        stream.reading = false;
        Some(stream)
    }

    /// Reads the page again after a rest, or when a call that is in flight is acknowledged.
    pub(super) fn page_failed(&mut self, now: Duration, link: LinkId, stream_id: &StreamId) {
        self.has_no_page(now, link, stream_id, Next::Flow);
    }

    fn has_no_page(&mut self, now: Duration, link: LinkId, stream_id: &StreamId, next: Next) {
        if self.link != Some(link) {
            return;
        }
        let Some(stream) = self.page_is_read(stream_id) else {
            return;
        };
        if matches!(stream.mode, Mode::Flowing) && !stream.is_underway() {
            let failures = stream.failed_pages;
            stream.failed_pages = failures.saturating_add(1);
            self.rest(now, stream_id, failures, next);
        }
    }

    pub(super) fn queue_to_read(&mut self, stream_id: &StreamId) {
        if let Some(stream) = self.streams.get_mut(stream_id)
            && stream.wants_page()
            && !stream.queued_to_read
        {
            stream.queued_to_read = true;
            self.to_read.push_back(stream_id.clone());
        }
    }
}
