//! Looks for an order of operations that explains what everybody saw: Wing and Gong's search, with
//! a memory of what has been tried.
//!
//! Between two operations objects may go by themselves: idle ones while something is under way that
//! may evict, and those whose deletion was deferred. An eviction goes through the store in slices,
//! so it is not one moment but all moments of its operation.

use std::collections::HashSet;

use super::spec::{NAMES, Object, Operation, What, World};
use crate::protocol::message::Request;

/// What of a history has had its place, which objects there are then, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    done: u128,
    world: World,
    floor: u64,
}

/// The right order of these operations, as their numbers; nothing if there is none.
pub fn find_order(history: &[Operation], capacity: usize, names: u64) -> Option<Vec<usize>> {
    assert!(history.len() <= 128, "one bit each");
    assert!(names <= NAMES as u64);
    let start = Node { done: 0, world: World::default(), floor: 0 };
    let mut search = Search { history, capacity, tried: HashSet::new(), order: Vec::new() };
    search.is_right_from(start).then_some(search.order)
}

struct Search<'a> {
    history: &'a [Operation],
    capacity: usize,
    tried: HashSet<Node>,
    order: Vec<usize>,
}

impl Search<'_> {
    fn is_right_from(&mut self, node: Node) -> bool {
        let history = self.history;
        let left = || (0..history.len()).filter(|index| node.done & (1 << index) == 0);
        let Some(first_end) = left().map(|index| history[index].completed).min() else {
            return true;
        };
        if first_end < node.floor || !self.tried.insert(node) {
            return false;
        }
        let is_next_part = |index: &usize| {
            !left().any(|other| history[other].is_before_in_request(&history[*index]))
        };
        let may_be_next = left().filter(|index| history[*index].begun <= first_end);
        let mut may_be_next = may_be_next.filter(is_next_part);
        // Nearly always it was the one that the store came to first.
        if may_be_next.next().is_some_and(|index| self.is_right_with(node, index)) {
            return true;
        }
        for index in 0..NAMES {
            if let Some(floor) = self.may_go(node, first_end, node.world.objects[index]) {
                let mut next = Node { floor, ..node };
                next.world.objects[index] = Object::Absent;
                if self.is_right_from(next) {
                    return true;
                }
            }
        }
        may_be_next.any(|index| self.is_right_with(node, index))
    }

    fn is_right_with(&mut self, node: Node, index: usize) -> bool {
        let operation = &self.history[index];
        let floor = node.floor.max(operation.begun);
        let mut next = Node { done: node.done | 1 << index, floor, ..node };
        if !next.world.apply(operation, self.capacity) {
            return false;
        }
        self.order.push(index);
        self.is_right_from(next) || {
            self.order.pop();
            false
        }
    }

    /// Whether an object may go by itself before the first of the others has its end, and when at
    /// the earliest.
    fn may_go(&self, node: Node, first_end: u64, object: Object) -> Option<u64> {
        if object.is_going() {
            return Some(node.floor);
        }
        let evicting = self.history.iter().filter(|operation| {
            operation.begun <= first_end && operation.completed >= node.floor && evicts(operation)
        });
        let begun = evicting.map(|operation| operation.begun.max(node.floor)).min();
        begun.filter(|_| object.is_idle())
    }
}

fn evicts(operation: &Operation) -> bool {
    match &operation.what {
        What::Asked(Request::Evict { .. }, _) => true,
        What::Asked(Request::Create { room, .. } | Request::Put { room, .. }, _) => room.evict,
        _ => false,
    }
}
