//! Cuts a stream of bytes into frames, and makes frames.
//!
//! ```text
//!  0        4        6        8
//!  ┌────────┬────────┬────────┬─────────────────┐
//!  │ length │ descr. │   0    │ payload         │   integers are little-endian
//!  └────────┴────────┴────────┴─────────────────┘
//! ```
//!
//! `length` counts the bytes of the payload, `descr.` the file descriptors that ride with the
//! frame. A frame that carries none thus reads as an 8-byte length and a body.
//!
//! Pure arithmetic over byte slices: no socket, no descriptor beyond their number, no message.
//! Whoever owns the socket receives into [`FrameReader::space`], says with
//! [`FrameReader::advance`] how much came, and takes out frames until there is none.

#![forbid(unsafe_code)]

use crate::limits::{FRAME_DESCRIPTORS_MAX, FRAME_PAYLOAD_BYTES_MAX};
use crate::protocol::ProtocolError;

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 8;

/// Room made at once for a frame of which little has come. Beyond, memory follows the bytes that
/// really arrive: a peer cannot make us allocate by announcing.
const STEP_BYTES: usize = 64 << 10;

/// An emptied buffer above this size is given back without being asked.
const RETAINED_BYTES_MAX: usize = 2 * STEP_BYTES;

/// Appends a frame to `out`; `write_payload` appends its payload and leaves the rest alone.
///
/// # Errors
/// If the payload is empty or larger than [`FRAME_PAYLOAD_BYTES_MAX`], or `descriptors` exceeds
/// [`FRAME_DESCRIPTORS_MAX`]. `out` is then as it was.
///
/// # Panics
/// If `write_payload` shortened `out`.
pub fn append_frame(
    out: &mut Vec<u8>,
    descriptors: u16,
    write_payload: impl FnOnce(&mut Vec<u8>),
) -> Result<(), ProtocolError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let payload_start = out.len();
    write_payload(out);
    let payload_bytes = out.len().checked_sub(payload_start).expect("a payload is appended");

    // A payload of more than 4 GiB does not fit into the error either.
    let length = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
    if let Err(error) = check(length, descriptors, FRAME_DESCRIPTORS_MAX) {
        out.truncate(start);
        return Err(error);
    }
    let header = &mut out[start..payload_start];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..6].copy_from_slice(&descriptors.to_le_bytes());
    Ok(())
}

/// A complete frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of descriptors that ride with the frame. If the peer is honest they came with its
    /// first byte, so they are here.
    pub descriptors: u16,
    /// The message. Never empty.
    pub payload: &'a [u8],
}

/// Puts frames together from whatever pieces of the stream arrive.
///
/// ```text
///  buffer   ┌──────────┬─────────────────┬───────────────┐
///           │ consumed │ not yet taken   │ room          │
///           └──────────┴─────────────────┴───────────────┘
///           0       consumed          received     buffer.len()
/// ```
///
/// Invariant: `consumed <= received <= buffer.len()`, and `consumed` is the first byte of a header.
///
/// Memory: at most twice the bytes that are not yet taken, plus 64 KiB or the room last asked for.
/// The first malformed header ends the stream: from then on [`Self::next_frame`] has the same error
/// for ever, and what still arrives is dropped.
#[derive(Debug)]
pub struct FrameReader {
    descriptors_max: u16,
    buffer: Vec<u8>,
    consumed: usize,
    received: usize,
    poison: Option<ProtocolError>,
}

impl FrameReader {
    /// A reader at the start of a stream whose frames may carry so many descriptors. Allocates
    /// nothing.
    #[must_use]
    pub const fn new(descriptors_max: u16) -> Self {
        Self { descriptors_max, buffer: Vec::new(), consumed: 0, received: 0, poison: None }
    }

    /// Room to receive into, never empty: `at_least` bytes, or fewer if they complete the frame
    /// that is being received. Often there is more. A few KiB are a good choice: a frame larger
    /// than that makes its own room.
    pub fn space(&mut self, at_least: usize) -> &mut [u8] {
        self.move_to_front();
        let at_least = at_least.max(1);
        let missing = self.missing_bytes();
        let room = self.buffer.len() - self.received;
        if room < missing.map_or(at_least, |missing| missing.min(at_least)) {
            let room = match missing {
                // Doubling keeps the copying linear, however small the pieces are.
                Some(missing) => missing.min(self.received.max(STEP_BYTES).max(2 * at_least)),
                // The rest of a header that comes byte by byte must not grow the buffer each time.
                None => at_least + HEADER_BYTES,
            };
            self.buffer.reserve_exact(self.received + room - self.buffer.len());
            self.buffer.resize(self.received + room, 0);
        }
        &mut self.buffer[self.received..]
    }

    /// As [`Self::space`], but only as much as completes the header or the frame that is being
    /// received, so that nothing of the next one is taken out of the socket.
    pub fn space_for_one(&mut self) -> &mut [u8] {
        let missing = self.missing_bytes().unwrap_or(HEADER_BYTES - self.buffered());
        let space = self.space(missing);
        let len = space.len().min(missing);
        &mut space[..len]
    }

    /// Takes note that `received` bytes came into the room that [`Self::space`] gave.
    ///
    /// # Panics
    /// If there was less room.
    pub fn advance(&mut self, received: usize) {
        assert!(received <= self.buffer.len() - self.received, "more came than there was room for");
        if self.poison.is_none() {
            self.received += received;
        }
    }

    /// The next complete frame, or `None` if more bytes have to come first.
    ///
    /// # Errors
    /// If the peer does not speak the protocol; then every later call has the same error.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        if let Some(error) = &self.poison {
            return Err(error.clone());
        }
        let header = self.header().inspect_err(|error| {
            *self = Self { poison: Some(error.clone()), ..Self::new(self.descriptors_max) };
        })?;
        let buffered = self.buffered();
        let complete = header.filter(|(payload_bytes, _)| HEADER_BYTES + payload_bytes <= buffered);
        let Some((payload_bytes, descriptors)) = complete else {
            self.shrink_above(RETAINED_BYTES_MAX);
            return Ok(None);
        };
        let payload = self.consumed + HEADER_BYTES..self.consumed + HEADER_BYTES + payload_bytes;
        self.consumed = payload.end;
        Ok(Some(Frame { descriptors, payload: &self.buffer[payload] }))
    }

    /// Bytes received that are not part of a frame taken out yet.
    #[must_use]
    pub const fn buffered(&self) -> usize {
        self.received - self.consumed
    }

    /// Bytes of memory for what has come and what is to come next.
    #[must_use]
    pub const fn memory(&self) -> usize {
        self.buffer.len()
    }

    /// What has come of the payload of an unfinished frame.
    #[must_use]
    pub fn partial_payload(&self) -> &[u8] {
        self.buffer[self.consumed..self.received].get(HEADER_BYTES..).unwrap_or_default()
    }

    /// Whether the stream, if it ended here, would end inside a frame. Meant for a reader whose
    /// complete frames have all been taken out.
    #[must_use]
    pub const fn is_mid_frame(&self) -> bool {
        self.consumed < self.received
    }

    /// Frees the memory that holds nothing. Call it when the socket has run dry, so that idle
    /// connections cost nothing; the next [`Self::space`] allocates again.
    pub fn give_back_memory(&mut self) {
        if self.is_mid_frame() {
            self.shrink_above(self.buffered());
        } else {
            self.buffer = Vec::new();
            self.consumed = 0;
            self.received = 0;
        }
    }

    /// As [`Self::give_back_memory`], but what can be used again goes to `spare`, whose content
    /// does not matter. So many readers can share one buffer, if each is emptied before the next.
    pub fn lend_memory(&mut self, spare: &mut Vec<u8>) {
        if !self.is_mid_frame() && self.buffer.len() <= STEP_BYTES {
            std::mem::swap(&mut self.buffer, spare);
        }
        self.give_back_memory();
    }

    /// Takes `spare` for what will be received, if there is no other room.
    pub fn borrow_memory(&mut self, spare: &mut Vec<u8>) {
        if self.buffer.is_empty() {
            std::mem::swap(&mut self.buffer, spare);
        }
    }

    /// The bytes of the next frame's payload and its descriptors, if its header is here and good.
    fn header(&self) -> Result<Option<(usize, u16)>, ProtocolError> {
        let unread = &self.buffer[self.consumed..self.received];
        let Some(&[l0, l1, l2, l3, d0, d1, r0, r1]) = unread.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        match u16::from_le_bytes([r0, r1]) {
            0 => {}
            reserved => return Err(ProtocolError::ReservedNotZero(reserved)),
        }
        let descriptors = u16::from_le_bytes([d0, d1]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        Ok(Some((check(length, descriptors, self.descriptors_max)?, descriptors)))
    }

    /// How much of the frame that is being received has not come, once its header says so.
    fn missing_bytes(&self) -> Option<usize> {
        let (payload_bytes, _) = self.header().ok().flatten()?;
        let end = self.consumed + HEADER_BYTES + payload_bytes;
        end.checked_sub(self.received).filter(|&missing| missing > 0)
    }

    /// A large frame has passed: its memory would otherwise stay for as long as the connection.
    fn shrink_above(&mut self, retained: usize) {
        if self.buffer.len() > retained && self.buffered() < self.buffer.len() / 4 {
            self.move_to_front();
            self.buffer.truncate(self.received);
            self.buffer.shrink_to_fit();
        }
    }

    fn move_to_front(&mut self) {
        self.buffer.copy_within(self.consumed..self.received, 0);
        self.received -= self.consumed;
        self.consumed = 0;
    }
}

/// The length of a payload, if a frame may be like this.
fn check(length: u32, descriptors: u16, descriptors_max: u16) -> Result<usize, ProtocolError> {
    let too_large =
        ProtocolError::FrameTooLarge { announced: length, limit: FRAME_PAYLOAD_BYTES_MAX };
    if length == 0 {
        Err(ProtocolError::EmptyFrame)
    } else if length > FRAME_PAYLOAD_BYTES_MAX {
        Err(too_large)
    } else if descriptors > descriptors_max {
        let (announced, limit) = (descriptors, descriptors_max);
        Err(ProtocolError::TooManyDescriptors { announced, limit })
    } else {
        usize::try_from(length).map_err(|_| too_large)
    }
}

#[cfg(test)]
mod tests;
