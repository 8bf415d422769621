//! Which stream to read next, and what a page that was read means for its stream.

use std::time::Duration;

use spacetime_sync_proto::StreamId;

use super::stream::{Landed, Mode, Next, Stream};
use super::{Effect, Streams, less};
use crate::LinkId;
use crate::message::Page;

impl Streams {
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
            return self.page_failed(now, link, &stream_id);
        }
        let Some(stream) = self.page_is_read(&stream_id) else {
            return;
        };
        if !matches!(stream.mode, Mode::Flowing) {
            return;
        }
        match page {
            Page::Broken(reason) => {
                // What is in flight is sound and is waited for; what is ready before the bad page goes out first.
                stream.mode = Mode::Landing(Landed::Halt(reason));
                return self.when_landed(stream_id, out);
            }
            // Asked for before the stream was set back or forward: not what is wanted any more.
            Page::Frames(frames)
                if frames
                    .first()
                    .is_some_and(|frame| frame.row.first_seq != stream.read.next()) => {}
            Page::Frames(frames) => {
                stream.failed_pages = 0;
                if frames.is_empty() {
                    stream.wanted = stream.read;
                }
                let mut bytes = 0;
                for frame in frames {
                    bytes += frame.size();
                    stream.push(frame);
                }
                if !stream.ready.is_empty() && !stream.queued_to_send {
                    stream.queued_to_send = true;
                    self.to_send.push_back(stream_id.clone());
                }
                self.bytes += bytes;
            }
            Page::Purged => {}
        }
        self.queue_to_read(&stream_id);
    }

    /// A read is over.
    fn page_is_read(&mut self, stream_id: &StreamId) -> Option<&mut Stream> {
        less(&mut self.reads, 1);
        let stream = self.streams.get_mut(stream_id)?;
        debug_assert!(stream.reading, "a page of {stream_id} that nobody asked for");
        stream.reading = false;
        Some(stream)
    }

    /// Nothing of the stream is lost: it is read again after a rest, or when what is in flight is acknowledged.
    pub(super) fn page_failed(&mut self, now: Duration, link: LinkId, stream_id: &StreamId) {
        if self.link != Some(link) {
            return;
        }
        let Some(stream) = self.page_is_read(stream_id) else {
            return;
        };
        if matches!(stream.mode, Mode::Flowing) && !stream.is_underway() {
            let failures = stream.failed_pages;
            stream.failed_pages = failures.saturating_add(1);
            self.rest(now, stream_id, failures, Next::Flow);
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
