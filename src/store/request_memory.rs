//! Bytes of the store's own memory that requests of clients keep: how many, whose they are, and
//! whether there may be more.
//!
//! A process may have a quarter of all, and at most half of what the others leave. So however many
//! processes take what they can get, the sum stays within the limit. A little is always granted, so
//! that a small request gets in whatever others do. What the bytes are for is not known here.

use std::collections::BTreeMap;

use crate::ids::ClientId;
use crate::limits::{REQUEST_MEMORY_LEAST, REQUEST_MEMORY_PROCESS_DIVISOR};
use crate::protocol::refusal::Refusal;

/// Whose bytes are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Process {
    /// A process that can be told from others.
    Pid(u32),
    /// A connection of a process outside of our namespace: all of these have the same number.
    Outside(ClientId),
}

impl Process {
    /// The process that has this number, as the socket says, at the other end of a connection.
    #[must_use]
    pub const fn new(pid: u32, client: ClientId) -> Self {
        if pid == 0 { Self::Outside(client) } else { Self::Pid(pid) }
    }
}

/// What is kept for all processes, in bytes.
#[derive(Debug)]
pub struct RequestMemory {
    limit: u64,
    used: u64,
    processes: BTreeMap<Process, u64>,
}

impl Default for RequestMemory {
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl RequestMemory {
    /// Nothing is kept, and so many bytes may be.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { limit, used: 0, processes: BTreeMap::new() }
    }

    /// What is kept now.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Whether a process may have so many bytes more. A process that has too much may not have
    /// anything more.
    ///
    /// # Errors
    /// How much it may have.
    pub fn check(&self, process: Process, more: u64) -> Result<(), Refusal> {
        let used = self.processes.get(&process).copied().unwrap_or(0);
        let left_by_others = self.limit.saturating_sub(self.used - used);
        let allowed = (self.limit / REQUEST_MEMORY_PROCESS_DIVISOR).min(left_by_others / 2);
        let allowed = allowed.max(REQUEST_MEMORY_LEAST);
        if used.saturating_add(more) <= allowed {
            return Ok(());
        }
        Err(Refusal::OverRequestMemory(allowed))
    }

    /// What was kept for a process is so much now.
    pub fn change(&mut self, process: Process, before: u64, now: u64) {
        if before == now {
            return;
        }
        let used = self.processes.entry(process).or_default();
        *used = *used - before + now;
        if *used == 0 {
            self.processes.remove(&process);
        }
        self.used = self.used - before + now;
    }

    /// Checks that the total is the sum.
    pub fn check_invariants(&self) {
        assert_eq!(self.used, self.processes.values().sum::<u64>(), "the total is the sum");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn take_all(memory: &mut RequestMemory, process: Process, step: u64) -> u64 {
        let mut taken = 0;
        while memory.check(process, step).is_ok() {
            memory.change(process, 0, step);
            taken += step;
        }
        taken
    }

    #[test]
    fn one_process_gets_a_quarter() {
        let mut memory = RequestMemory::new(LIMIT);
        assert_eq!(take_all(&mut memory, Process::Pid(1), 1024), LIMIT / 4);
        let refused = memory.check(Process::Pid(1), 1);
        assert_eq!(refused, Err(Refusal::OverRequestMemory(LIMIT / 4)));
        memory.change(Process::Pid(1), 1024, 24);
        assert_eq!(memory.check(Process::Pid(1), 1000), Ok(()));
    }

    #[test]
    fn however_many_take_all_they_can_the_next_one_gets_something() {
        for greedy in 1..200 {
            let mut memory = RequestMemory::new(LIMIT);
            for pid in 1..=greedy {
                assert!(take_all(&mut memory, Process::Pid(pid), 64) > 0);
            }
            let others = Process::Outside(ClientId(1));
            let taken = take_all(&mut memory, others, 64);
            assert!(taken >= REQUEST_MEMORY_LEAST, "{taken} bytes beside {greedy} greedy ones");
            let least = u64::from(greedy + 1) * REQUEST_MEMORY_LEAST;
            assert!(memory.used() <= LIMIT + least);
            memory.check_invariants();
        }
    }

    #[test]
    fn those_of_other_namespaces_are_told_apart_by_connection() {
        let processes = [1, 2].map(|client| Process::new(0, ClientId(client)));
        assert_ne!(processes[0], processes[1]);
        assert_eq!(Process::new(7, ClientId(1)), Process::new(7, ClientId(2)));
    }
}
