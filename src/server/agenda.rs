//! Who has to be looked at by a phase of the turn: a queue in which everybody is at most once.
//!
//! A phase takes as many as there were when it began. Who is put down meanwhile has its turn in the
//! next one, so a phase ends even if everybody it looks at needs to be looked at again. What there
//! is to be done for somebody is not known here.

use std::collections::{HashSet, VecDeque};

use foldhash::fast::FixedState;

use crate::ids::ClientId;

/// Clients in the order in which they were put down. Its memory is kept for the next turn.
#[derive(Debug, Default)]
pub struct Agenda {
    queue: VecDeque<ClientId>,
    /// Who is really in the queue; it may also have some that were taken off.
    members: HashSet<ClientId, FixedState>,
}

impl Agenda {
    /// Number of clients.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Puts a client down, if it is not there already.
    pub fn push(&mut self, client: ClientId) {
        if self.members.insert(client) {
            self.queue.push_back(client);
        }
    }

    /// Takes the first client out.
    pub fn pop(&mut self) -> Option<ClientId> {
        while let Some(client) = self.queue.pop_front() {
            if self.members.remove(&client) {
                return Some(client);
            }
        }
        None
    }

    /// Takes off a client that is never put down again.
    pub fn remove(&mut self, client: ClientId) {
        self.members.remove(&client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_comes_once_and_in_order_and_those_removed_not_at_all() {
        let mut agenda = Agenda::default();
        for id in [3, 1, 3, 2, 1] {
            agenda.push(ClientId(id));
        }
        agenda.remove(ClientId(1));
        assert_eq!(agenda.len(), 2);
        assert_eq!(agenda.pop(), Some(ClientId(3)));
        agenda.push(ClientId(3));
        let rest: Vec<_> = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(rest, [ClientId(2), ClientId(3)]);
        assert!(agenda.is_empty() && agenda.queue.is_empty());
    }
}
