//! What objects come to, added up while room is searched for. Which objects they are is not known
//! here.

use crate::store::object_table::Object;

/// Sizes and number of some objects.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    /// Bytes of all of them.
    pub bytes: u64,
    /// How many they are.
    pub objects: usize,
    /// Bytes that count against the client's quota.
    pub own_bytes: u64,
}

impl Sums {
    /// Those of one object.
    pub fn of(object: &Object) -> Self {
        let own_bytes = if object.account.is_some() { object.size() } else { 0 };
        Self { bytes: object.size(), objects: 1, own_bytes }
    }

    /// Adds those of others.
    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.objects += other.objects;
        self.own_bytes += other.own_bytes;
    }

    /// What is left without these. Objects may have changed since they were added.
    pub const fn without(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            objects: self.objects.saturating_sub(other.objects),
            own_bytes: self.own_bytes.saturating_sub(other.own_bytes),
        }
    }
}
