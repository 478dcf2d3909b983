//! The digest of an object's bytes, as the original computed it at each seal. Here it is computed
//! when somebody asks.

use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::ObjectBuffer;

/// Data from this size on is hashed in parts, for which the original had threads.
const IN_PARTS_BYTES_MIN: usize = 1 << 20;

/// Equal parts, and behind them the rest.
const PARTS: usize = 8;

const SEED: u64 = 0;

impl ObjectBuffer {
    /// The original's digest of data and metadata: XXH64 as 8 bytes, little-endian. Data of a
    /// mebibyte or more is cut into eight parts and a rest, and their hashes are hashed.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// # let id = plasma::ObjectId::random();
    /// client.put(id, b"abc", b"d")?;
    /// let digest = client.get_one(id, None)?.expect("it was put").digest();
    /// assert_eq!(digest, [0xcc, 0x92, 0x5d, 0xd2, 0xb0, 0x27, 0x03, 0xde]);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    #[must_use]
    pub fn digest(&self) -> [u8; 8] {
        digest(self.data(), self.metadata()).to_le_bytes()
    }
}

fn digest(data: &[u8], metadata: &[u8]) -> u64 {
    let mut hasher = Xxh64::new(SEED);
    if data.len() < IN_PARTS_BYTES_MIN {
        hasher.update(data);
    } else {
        let part = data.len() / 64 / PARTS * 64;
        let (parts, rest) = data.split_at(part * PARTS);
        for part in parts.chunks_exact(part).chain([rest]) {
            hasher.update(&xxh64(part, SEED).to_le_bytes());
        }
    }
    hasher.update(metadata);
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests that the original's client gave for the same bytes.
    #[test]
    fn digests_are_the_originals() {
        for (size, expected) in ORIGINAL {
            let data: Vec<u8> = (0..=250).cycle().take(*size).collect();
            assert_eq!(&digest(&data, b"md").to_le_bytes(), expected, "{size} bytes");
        }
    }

    #[rustfmt::skip]
    const ORIGINAL: &[(usize, [u8; 8])] = &[
        (0, [0xae, 0x25, 0x48, 0x9c, 0x68, 0xf7, 0x5a, 0xff]),
        (1, [0x30, 0x9f, 0x6d, 0xd5, 0x99, 0x0d, 0xc1, 0x9a]),
        (3, [0x88, 0x2d, 0x99, 0xfd, 0xf0, 0x7f, 0x27, 0x77]),
        (1000, [0x34, 0xa9, 0xb1, 0x48, 0x2f, 0xad, 0x1d, 0x89]),
        (1048575, [0x36, 0x4c, 0xd5, 0xa9, 0x21, 0x1b, 0xe1, 0xb0]),
        (1048576, [0xba, 0xc5, 0xd0, 0x93, 0xf9, 0x19, 0x71, 0x60]),
        (1048577, [0x9d, 0xeb, 0x58, 0x53, 0xe3, 0x48, 0x38, 0xc7]),
        (1049087, [0xb1, 0x93, 0x99, 0x57, 0x93, 0x26, 0xac, 0x51]),
        (1049088, [0x82, 0x1a, 0x00, 0xa9, 0xe5, 0x4e, 0x0a, 0x1b]),
        (3000001, [0x4b, 0x3e, 0x71, 0x91, 0x16, 0x5d, 0x78, 0xa7]),
    ];
}
