//! Requests that take more than one slice. Part of [`Store`].
//!
//! A request is begun when it comes. What of it does not fit into that slice is the *task* of its
//! client, which is *busy* until it is done. Meanwhile nothing else is asked in the client's name:
//! so the requests of one connection are carried out one after the other, and a client has one task
//! at most. Others are served in between. So a request that names several objects comes to one
//! after the other, each as it is at that moment.
//!
//! Requests that wait for others are no tasks, but see `waiting` and `jobs`.

use std::collections::BTreeMap;
use std::vec::IntoIter;

use crate::ids::{ClientId, ObjectId, Slot};
use crate::protocol::message::{DeleteOutcome, ObjectState, Reply, Request};
use crate::store::awaiting::{Ending, Gathering};
use crate::store::told::Next;
use crate::store::using::Releasing;
use crate::store::{Answer, Asked, Effects, Store};
use crate::time::Timestamp;

/// Clients with tasks.
pub type Busy = BTreeMap<ClientId, (Asked, Task)>;

/// What is left of a request.
#[derive(Debug)]
pub enum Task {
    /// All that is being created is looked at from here on, and then the request is served.
    Look {
        request: Request,
        next: Next,
    },
    States {
        ids: IntoIter<ObjectId>,
        states: Vec<ObjectState>,
    },
    Delete {
        ids: IntoIter<ObjectId>,
        outcomes: Vec<DeleteOutcome>,
    },
    Refresh {
        ids: IntoIter<ObjectId>,
        objects: u32,
    },
    Unpinned {
        slots: IntoIter<Slot>,
    },
    Release(Releasing),
    Gather(Gathering),
    End(Ending),
    /// Somebody wants it to end.
    Cancel(Ending),
}

impl Store {
    /// Whether a client has a request that is still being served. It may have no other one served
    /// until [`Store::go_on`] has come to its end.
    #[must_use]
    pub fn is_busy(&self, client: ClientId) -> bool {
        self.busy.contains_key(&client)
    }

    /// Goes on with the request of a busy client, for one slice.
    pub fn go_on(&mut self, client: ClientId, now: Timestamp, effects: &mut Effects) {
        let Some((asked, task)) = self.busy.remove(&client) else { return };
        self.told(now, effects, |store| {
            store.begin_slice();
            let answer = store.serve_task(asked, task);
            store.answer(asked, answer);
            store.finish();
        });
    }

    /// Serves a request for one slice. What is left is its client's task.
    pub(super) fn serve_task(&mut self, asked: Asked, mut task: Task) -> Answer {
        if let Task::Look { request, next } = task {
            match self.settle_from(next) {
                None => return self.serve_now(asked, request),
                Some(next) => task = Task::Look { request, next },
            }
        }
        while self.steps > 0 {
            self.steps -= 1;
            if let Some(answer) = self.step_on(asked, &mut task) {
                return answer;
            }
        }
        self.busy.insert(asked.client, (asked, task));
        Ok(None)
    }

    /// One step of a task; the answer if it was the last one.
    fn step_on(&mut self, asked: Asked, task: &mut Task) -> Option<Answer> {
        let reply = match task {
            Task::Look { .. } => return None,
            Task::States { ids, states } => {
                if let Some(id) = ids.next() {
                    states.push(self.state(&id));
                    return None;
                }
                Reply::States(std::mem::take(states))
            }
            Task::Delete { ids, outcomes } => {
                if let Some(id) = ids.next() {
                    outcomes.push(self.delete(&id));
                    return None;
                }
                Reply::Deleted(std::mem::take(outcomes))
            }
            Task::Refresh { ids, objects } => {
                if let Some(id) = ids.next() {
                    *objects += u32::from(self.refresh(&id));
                    return None;
                }
                Reply::Refreshed { objects: *objects }
            }
            Task::Unpinned { slots } => {
                if let Some(slot) = slots.next() {
                    self.unpinned(asked.client, slot);
                    return None;
                }
                Reply::Done
            }
            Task::Release(releasing) => return self.release_on(asked.client, releasing),
            Task::Gather(_) => return self.gather_on(task),
            Task::End(ending) => return self.end_on(ending).then_some(Ok(None)),
            Task::Cancel(ending) => {
                if !self.end_on(ending) {
                    return None;
                }
                Reply::Done
            }
        };
        Some(Ok(Some(reply)))
    }

    /// How many objects of the request of a busy client have been looked at.
    #[cfg(test)]
    pub(super) fn looks(&self, task: &Task) -> usize {
        match task {
            Task::States { states, .. } => states.len(),
            Task::Delete { outcomes, .. } => outcomes.len(),
            Task::Gather(gathering) => self.waits.get(gathering.waiter).places().len(),
            _ => 0,
        }
    }
}
