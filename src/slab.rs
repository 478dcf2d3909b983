//! Values by small numbers, in chunks that never move.
//!
//! A vector that doubles copies everything it has in one go, which takes milliseconds when there
//! are a million values. Here growing costs one chunk, however many there are. What the values are
//! is not known here.

/// Values in one chunk, a power of two: enough that the list of chunks stays short.
const CHUNK: usize = 1024;

/// A vector in chunks. A number that was never set has the default.
#[derive(Debug, Clone, Default)]
pub struct Slab<T> {
    chunks: Vec<Box<[T]>>,
}

impl<T: Default> Slab<T> {
    /// A slab without values.
    pub const fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// The value of this number, if its chunk is there.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / CHUNK).map(|chunk| &chunk[index % CHUNK])
    }

    /// The value of this number, to be changed, if its chunk is there.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index / CHUNK).map(|chunk| &mut chunk[index % CHUNK])
    }

    /// The value of this number, to be changed; its chunk is made if need be.
    pub fn entry(&mut self, index: usize) -> &mut T {
        while self.chunks.len() <= index / CHUNK {
            self.chunks.push(std::iter::repeat_with(T::default).take(CHUNK).collect());
        }
        &mut self.chunks[index / CHUNK][index % CHUNK]
    }

    /// All values whose chunks are there, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_where_they_are_while_others_are_added() {
        let mut slab = Slab::new();
        *slab.entry(3) = 7;
        let place = std::ptr::from_ref(slab.get(3).unwrap());
        *slab.entry(CHUNK * 500) = 8;
        assert!(std::ptr::eq(place, slab.get(3).unwrap()));
        assert_eq!((slab.get(3), slab.get(CHUNK)), (Some(&7), Some(&0)));
        assert_eq!((slab.get(CHUNK * 500), slab.get(CHUNK * 501)), (Some(&8), None));
        assert_eq!(slab.get_mut(CHUNK * 501), None);
        assert_eq!((slab.iter().count(), slab.iter().sum::<i32>()), (CHUNK * 501, 15));
    }
}
