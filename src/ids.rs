//! Names of things: objects, clients, segments, and where an object lies in memory.
//!
//! Every identity is a type of its own and none of them is a file descriptor or a pointer, because
//! the system reuses those. [`ClientId`], [`Ticket`] and [`SegmentId`] only
//! count up. A [`Slot`] is the one
//! name here that comes back after use: it is a place in the store's tables.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// Bytes in an [`ObjectId`], as in the original.
pub const OBJECT_ID_BYTES: usize = 20;

/// The name of an object: 20 bytes that the creator chose. Printed as 40 hexadecimal digits.
///
/// ```
/// use plasma::ObjectId;
/// let id = ObjectId::from([b'a'; 20]);
/// assert_eq!(id.to_string(), "6161616161616161616161616161616161616161");
/// assert_eq!(id.to_string().parse::<ObjectId>().unwrap(), id);
/// assert_ne!(ObjectId::random(), ObjectId::random());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId([u8; OBJECT_ID_BYTES]);

/// As two numbers and without its length, which is always the same: a third of the time that it
/// takes to hash a slice.
impl Hash for ObjectId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [head @ .., t0, t1, t2, t3] = self.0;
        state.write_u128(u128::from_le_bytes(head));
        state.write_u32(u32::from_le_bytes([t0, t1, t2, t3]));
    }
}

impl ObjectId {
    /// A new id from the system's random source; two of them never meet in practice.
    ///
    /// # Panics
    /// If the system has no random source.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; OBJECT_ID_BYTES];
        getrandom::fill(&mut bytes).expect("the system has a random source");
        Self(bytes)
    }

    /// The 20 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; OBJECT_ID_BYTES] {
        &self.0
    }
}

impl From<[u8; OBJECT_ID_BYTES]> for ObjectId {
    fn from(bytes: [u8; OBJECT_ID_BYTES]) -> Self {
        Self(bytes)
    }
}

/// An object id must be exactly 20 bytes, or 40 hexadecimal digits when it is text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an object id is {OBJECT_ID_BYTES} bytes (40 hexadecimal digits), not {0}")]
pub struct InvalidObjectId(String);

impl TryFrom<&[u8]> for ObjectId {
    type Error = InvalidObjectId;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        <[u8; OBJECT_ID_BYTES]>::try_from(bytes)
            .map(Self)
            .map_err(|_| InvalidObjectId(format!("{} bytes", bytes.len())))
    }
}

impl FromStr for ObjectId {
    type Err = InvalidObjectId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || InvalidObjectId(format!("{text:?}"));
        let digits = text.as_bytes();
        if digits.len() != 2 * OBJECT_ID_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let mut bytes = [0; OBJECT_ID_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

/// A connection, as the store sees it. Counts up from 1; a client that reconnects is a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Outside work that the store has started. Counts up from 1; the one who does it reports under
/// this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A piece of shared memory, which is mapped as a whole. Counts up from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// Not a segment of objects: the directory.
    pub const DIRECTORY: Self = Self(u32::MAX - 1);

    /// Not a segment of objects: the table of the client that is told so.
    pub const CLIENT_TABLE: Self = Self(u32::MAX);

    /// Not a segment of objects: the file by which the store sees whether anybody is left who has
    /// what this client was given.
    pub const LIFE: Self = Self(u32::MAX - 2);
}

/// The place of an object in the store's tables. Reused after the object is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an index into a table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where the creator of an object tells that it is sealed: the word of this slot in its own table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealPlace {
    /// The object's slot.
    pub slot: Slot,
    /// What the word has to say. No other object ever has the same.
    pub generation: u64,
}

/// A range of bytes in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The segment that holds the range.
    pub segment: SegmentId,
    /// First byte, counted from the start of the segment.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Where an object lies: its data, and its metadata directly behind, without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The segment that holds the object.
    pub segment: SegmentId,
    /// First byte of the data, a multiple of 64 counted from the start of the segment.
    pub offset: u64,
    /// Bytes of data.
    pub data_size: u64,
    /// Bytes of metadata.
    pub metadata_size: u64,
}

impl Location {
    /// The bytes of the object, data and metadata together. The store refuses sizes whose sum does
    /// not fit, so this sum always does.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.data_size + self.metadata_size
    }

    /// The range of the data.
    #[must_use]
    pub const fn data(&self) -> Extent {
        Extent { segment: self.segment, offset: self.offset, len: self.data_size }
    }

    /// The range of the metadata.
    #[must_use]
    pub const fn metadata(&self) -> Extent {
        let offset = self.offset + self.data_size;
        Extent { segment: self.segment, offset, len: self.metadata_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_id_text_must_be_forty_hex_digits() {
        for wrong in ["", "61", &"g".repeat(40), &"+1".repeat(20), &"a".repeat(41)] {
            assert!(wrong.parse::<ObjectId>().is_err(), "{wrong:?} was accepted");
        }
        assert!("é".repeat(20).parse::<ObjectId>().is_err());
    }

    #[test]
    fn object_id_from_a_slice_names_the_wrong_length() {
        let error = ObjectId::try_from(&b"short"[..]).unwrap_err();
        assert!(error.to_string().contains("5 bytes"), "{error}");
    }
}
