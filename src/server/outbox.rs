//! What has still to be sent to one peer: bytes, and the descriptors that ride with some of them.
//!
//! Frames are encoded straight into the tail, chunks are sent from the head. A chunk never runs
//! past the first byte of a frame with descriptors, so that these leave with exactly that byte. For
//! a reader that is to find whole frames only, a chunk is one frame. The memory is given back when
//! everything has been sent: thousands of connections are idle at a time, and one large reply must
//! not stay with its connection for ever. Sockets, and what the bytes mean, are not known here.

use std::collections::VecDeque;

use crate::ids::SegmentId;

/// Bytes of memory that an empty outbox keeps for the next reply.
const KEPT_BYTES_MAX: usize = 1024;

/// Which descriptor of which segment. A name, because the descriptors themselves live elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorKind {
    /// The segment that it opens.
    pub segment: SegmentId,
    /// Whether it can be mapped writable.
    pub writable: bool,
}

/// Descriptors, possibly none, and the byte that they leave with: the first one of a chunk.
#[derive(Debug)]
struct Attachment {
    /// Counted from the first byte of the connection, so that it stays valid while bytes leave.
    position: u64,
    kinds: Vec<DescriptorKind>,
}

/// Bytes and descriptors on their way to one peer.
///
/// Cursors: `bytes[..sent]` has left, `bytes[sent..]` has not; `bytes[0]` is byte number `start` of
/// the connection, and `start + sent` never passes the position of the first attachment.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    start: u64,
    attachments: VecDeque<Attachment>,
    /// Each frame that is added leaves in a chunk of its own. A socket takes a small chunk whole or
    /// not at all.
    pub is_frame_by_frame: bool,
}

impl Outbox {
    /// Bytes that have not been sent.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Bytes of memory for what has not been sent. What is kept for the next reply does not count.
    pub fn memory(&self) -> usize {
        if self.is_empty() { 0 } else { self.bytes.capacity() }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a frame: `write` appends its bytes, at least one, or fails and appends none. The
    /// descriptors leave with the first of them.
    ///
    /// # Errors
    /// That of `write`; nothing was added then.
    pub fn append<E>(
        &mut self,
        kinds: Vec<DescriptorKind>,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        // Moving the unsent half is paid for by the half that was sent before.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.start += self.sent as u64;
            self.sent = 0;
        }
        let position = self.start + self.bytes.len() as u64;
        write(&mut self.bytes)?;
        if self.is_frame_by_frame || !kinds.is_empty() {
            self.attachments.push_back(Attachment { position, kinds });
        }
        Ok(())
    }

    /// The bytes to send next, and the descriptors that must go with the first of them.
    pub fn next_chunk(&self) -> (&[u8], &[DescriptorKind]) {
        let head = self.start + self.sent as u64;
        let mut attachments = self.attachments.iter().peekable();
        let kinds = match attachments.next_if(|attachment| attachment.position == head) {
            Some(attachment) => attachment.kinds.as_slice(),
            None => &[],
        };
        let unsent = &self.bytes[self.sent..];
        let bytes = match attachments.peek() {
            Some(next) => {
                let until_next = usize::try_from(next.position - head);
                &unsent[..until_next.expect("attachments are within the bytes")]
            }
            None => unsent,
        };
        (bytes, kinds)
    }

    /// So many bytes of the last chunk have left, at least one, and its descriptors with them.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "only bytes of the outbox were sent");
        let head = self.start + self.sent as u64;
        if self.attachments.front().is_some_and(|attachment| attachment.position == head) {
            self.attachments.pop_front();
        }
        self.sent += count;
        if self.is_empty() {
            self.start += self.sent as u64;
            self.sent = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES_MAX);
            self.attachments.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITABLE: DescriptorKind = DescriptorKind { segment: SegmentId(0), writable: true };
    const READ_ONLY: DescriptorKind = DescriptorKind { segment: SegmentId(0), writable: false };

    fn append(outbox: &mut Outbox, kinds: Vec<DescriptorKind>, frame: &[u8]) {
        let write = |out: &mut Vec<u8>| {
            out.extend_from_slice(frame);
            Ok::<_, ()>(())
        };
        outbox.append(kinds, write).unwrap();
    }

    /// Sends everything in chunks of at most `count` bytes, and tells where descriptors left.
    fn send_all(outbox: &mut Outbox, count: usize) -> (Vec<u8>, Vec<(usize, DescriptorKind)>) {
        let (mut sent, mut attached) = (Vec::new(), Vec::new());
        while !outbox.is_empty() {
            let (bytes, kinds) = outbox.next_chunk();
            attached.extend(kinds.iter().map(|kind| (sent.len(), *kind)));
            let count = count.min(bytes.len());
            sent.extend_from_slice(&bytes[..count]);
            outbox.advance(count);
        }
        (sent, attached)
    }

    #[test]
    fn descriptors_leave_with_the_first_byte_of_their_frame_however_it_is_cut() {
        for count in 1..20 {
            let mut outbox = Outbox::default();
            append(&mut outbox, vec![], b"plain ");
            append(&mut outbox, vec![WRITABLE], b"created ");
            append(&mut outbox, vec![READ_ONLY], b"objects ");
            append(&mut outbox, vec![], b"last");
            let (sent, attached) = send_all(&mut outbox, count);
            assert_eq!(sent, b"plain created objects last");
            assert_eq!(attached, [(6, WRITABLE), (14, READ_ONLY)], "chunks of {count}");
        }
    }

    #[test]
    fn a_frame_added_after_a_partial_send_keeps_its_descriptors_at_its_start() {
        let mut outbox = Outbox::default();
        append(&mut outbox, vec![READ_ONLY], b"0123456789");
        outbox.advance(8);
        append(&mut outbox, vec![WRITABLE], b"ab");
        let (sent, attached) = send_all(&mut outbox, 100);
        assert_eq!(sent, b"89ab");
        assert_eq!(attached, [(2, WRITABLE)]);
    }

    #[test]
    fn frame_by_frame_a_chunk_is_a_frame() {
        let mut outbox = Outbox::default();
        append(&mut outbox, vec![], b"done");
        append(&mut outbox, vec![], b"more");
        outbox.is_frame_by_frame = true;
        append(&mut outbox, vec![], b"first event");
        append(&mut outbox, vec![], b"second");
        let mut chunks = Vec::new();
        while !outbox.is_empty() {
            let chunk = outbox.next_chunk().0.to_vec();
            outbox.advance(chunk.len());
            chunks.push(chunk);
        }
        assert_eq!(chunks, [&b"donemore"[..], b"first event", b"second"]);
    }

    #[test]
    fn a_frame_that_fails_leaves_no_descriptors_behind() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.append(vec![WRITABLE], |_| Err("too large")), Err("too large"));
        append(&mut outbox, vec![READ_ONLY], b"next");
        assert_eq!(send_all(&mut outbox, 100), (b"next".to_vec(), vec![(0, READ_ONLY)]));
    }

    #[test]
    fn a_large_reply_gives_its_memory_back() {
        let mut outbox = Outbox::default();
        append(&mut outbox, vec![], &vec![7; 1 << 20]);
        assert_eq!(outbox.len(), 1 << 20);
        send_all(&mut outbox, 100_000);
        assert!(outbox.bytes.capacity() <= KEPT_BYTES_MAX);
    }

    #[test]
    fn a_queue_that_is_never_empty_does_not_grow() {
        let mut outbox = Outbox::default();
        for _ in 0..10_000 {
            append(&mut outbox, vec![], &[1; 100]);
            while outbox.len() > 50 {
                let count = outbox.next_chunk().0.len().min(30);
                outbox.advance(count);
            }
        }
        assert!(outbox.bytes.capacity() < 1000, "{}", outbox.bytes.capacity());
    }
}
