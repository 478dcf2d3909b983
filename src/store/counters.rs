//! What the store has done since its start. Counts only; who prints them is not known here.

/// Defines the counters with their names in one place, so that a new one cannot be left out of
/// the statistics.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Numbers that only count up.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct StoreCounters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl StoreCounters {
            /// All counters with their names.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Requests applied, refused ones included.
    requests,
    /// Requests answered with a refusal.
    refusals,
    /// Refusals that said "the store is full".
    refusals_full,
    /// Refusals that said "no more memory for requests of this process".
    refusals_request_memory,
    /// Puts refused because their bytes could not be written: the memory was not there.
    fills_failed,
    /// Objects created, by `create` or by `put`.
    objects_created,
    /// Bytes of those objects.
    bytes_created,
    /// Objects sealed.
    objects_sealed,
    /// Objects that went away unsealed: aborted, or their creator left.
    objects_aborted,
    /// Objects deleted.
    objects_deleted,
    /// Deletions that had to wait for a holder.
    deletes_deferred,
    /// Objects evicted, to make room or on request.
    objects_evicted,
    /// Bytes of those objects.
    bytes_evicted,
    /// Objects that left a quota while in use.
    objects_demoted,
    /// Times that an object was to go and readers of the directory had it pinned.
    objects_parked,
    /// Ids that the store was asked for by `get`; what clients find in the directory is not among
    /// them.
    ids_requested,
    /// Of those, found sealed at once.
    ids_hit,
    /// Requests that had to wait for objects.
    waits,
    /// Waits that ended at their deadline.
    waits_timed_out,
    /// Creates and puts that had to wait for room.
    creates_queued,
    /// Of those, how many ended at their deadline.
    creates_timed_out,
    /// Bytes of free memory given back to the system.
    bytes_trimmed,
    /// Holds given back.
    releases,
    /// Events recorded for subscribers.
    events,
    /// Subscribers that fell too far behind.
    subscribers_lagged,
    /// Clients that connected.
    clients_connected,
    /// Clients that left.
    clients_disconnected,
}
