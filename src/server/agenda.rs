//! Who has to be looked at by a phase of the turn, and in which order.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use foldhash::fast::FixedState;

use crate::ids::ClientId;
use crate::limits::TURN_READ_TIME;
use crate::store::request_memory::Process;

/// Who has to be looked at by a phase of the turn, in the order in which they were put down, each
/// at most once. Its memory is kept for the next turn.
///
/// A phase takes as many as there were when it began. Who is put down meanwhile has its turn in the
/// next one, so a phase ends even if everybody it looks at needs to be looked at again.
#[derive(Debug, Default)]
pub struct Agenda {
    queue: VecDeque<ClientId>,
    /// Who is really in the queue; it may also have some that were taken off.
    members: HashSet<ClientId, FixedState>,
}

impl Agenda {
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Puts a client down, if it is not there already.
    pub fn push(&mut self, client: ClientId) {
        if self.members.insert(client) {
            self.queue.push_back(client);
        }
    }

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

/// What a process has used, and which of its clients wait.
#[derive(Debug)]
struct Account {
    used: Duration,
    waiting: VecDeque<ClientId>,
}

/// Who has to be looked at by a phase of the turn. First comes the process that has used the least
/// time, and of its clients the one that was put down first. So who asks for little hardly waits
/// for those who ask for much, however many these are.
///
/// Time is not saved up: a process that was away begins with what the one that had the last turn
/// has used. One that comes for the first time begins a turn behind that, so an endless row of
/// newcomers cannot keep the others from theirs.
#[derive(Debug, Default)]
pub struct FairAgenda {
    accounts: HashMap<Process, Account, FixedState>,
    /// The processes that have clients waiting, by what they have used.
    order: BTreeSet<(Duration, Process)>,
    members: HashSet<ClientId, FixedState>,
    /// What the process that had the last turn had used before it.
    floor: Duration,
}

impl FairAgenda {
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Puts a client of a process down, if it is not there already.
    pub fn push(&mut self, client: ClientId, process: Process) {
        if !self.members.insert(client) {
            return;
        }
        let floor = self.floor;
        let newcomer = || Account { used: floor + TURN_READ_TIME, waiting: VecDeque::new() };
        let account = self.accounts.entry(process).or_insert_with(newcomer);
        if account.waiting.is_empty() {
            account.used = account.used.max(floor);
            self.order.insert((account.used, process));
        }
        account.waiting.push_back(client);
    }

    pub fn pop(&mut self) -> Option<(ClientId, Process)> {
        let (used, process) = self.order.pop_first()?;
        self.floor = used;
        let account = self.accounts.get_mut(&process).expect("those in order have accounts");
        let client = account.waiting.pop_front().expect("those in order have clients waiting");
        self.members.remove(&client);
        if !account.waiting.is_empty() {
            self.order.insert((used, process));
        }
        Some((client, process))
    }

    /// A process has used so much time.
    pub fn charge(&mut self, process: Process, time: Duration) {
        let Some(account) = self.accounts.get_mut(&process) else { return };
        let is_waiting = self.order.remove(&(account.used, process));
        account.used += time;
        if is_waiting {
            self.order.insert((account.used, process));
        }
    }

    /// Forgets a process of which no client is left.
    pub fn forget(&mut self, process: Process) {
        let Some(account) = self.accounts.remove(&process) else { return };
        self.order.remove(&(account.used, process));
        for client in account.waiting {
            self.members.remove(&client);
        }
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

    fn put_down(agenda: &mut FairAgenda, clients: &[(u64, u32)]) {
        for (client, pid) in clients {
            agenda.push(ClientId(*client), Process::Pid(*pid));
        }
    }

    /// Each uses as much time as the others.
    fn pop_all(agenda: &mut FairAgenda) -> Vec<u64> {
        let pop = || {
            let (client, process) = agenda.pop()?;
            agenda.charge(process, EACH);
            Some(client.0)
        };
        std::iter::from_fn(pop).collect()
    }

    const EACH: Duration = Duration::from_micros(10);

    #[test]
    fn processes_take_turns_however_many_clients_they_have() {
        let mut agenda = FairAgenda::default();
        put_down(&mut agenda, &[(10, 1), (11, 1), (12, 1), (10, 1), (20, 2), (13, 1), (21, 2)]);
        assert_eq!(agenda.len(), 6);
        assert_eq!(pop_all(&mut agenda), [10, 20, 11, 21, 12, 13]);
        assert!(agenda.is_empty() && agenda.order.is_empty());
    }

    #[test]
    fn who_has_used_little_goes_first_and_nobody_saves_time_up() {
        let mut agenda = FairAgenda::default();
        put_down(&mut agenda, &[(10, 1)]);
        for _ in 0..1000 {
            assert_eq!(pop_all(&mut agenda), [10]);
            put_down(&mut agenda, &[(10, 1)]);
        }
        // Somebody comes for the first time, and later once more: then he is first, but is not
        // ahead by all the time that he has not used.
        put_down(&mut agenda, &[(20, 2), (11, 1)]);
        assert_eq!(pop_all(&mut agenda), [10, 11, 20]);
        for _ in 0..1000 {
            put_down(&mut agenda, &[(10, 1)]);
            assert_eq!(pop_all(&mut agenda), [10]);
        }
        put_down(&mut agenda, &[(10, 1), (20, 2), (21, 2), (22, 2), (11, 1)]);
        assert_eq!(pop_all(&mut agenda), [20, 10, 21, 11, 22]);
    }

    #[test]
    fn an_endless_row_of_newcomers_keeps_nobody_waiting_for_ever() {
        let mut agenda = FairAgenda::default();
        put_down(&mut agenda, &[(1, 1)]);
        agenda.charge(Process::Pid(1), Duration::from_millis(1));
        let turn = (2..1000).find(|pid| {
            put_down(&mut agenda, &[(u64::from(*pid), *pid)]);
            let (client, process) = agenda.pop().expect("two wait");
            agenda.charge(process, EACH);
            client == ClientId(1)
        });
        assert!(turn.is_some(), "it never has its turn");
    }

    #[test]
    fn nothing_is_left_of_a_process_that_is_forgotten() {
        let mut agenda = FairAgenda::default();
        put_down(&mut agenda, &[(10, 1), (20, 2)]);
        agenda.forget(Process::Pid(1));
        agenda.forget(Process::Pid(3));
        assert_eq!(agenda.len(), 1);
        assert_eq!(pop_all(&mut agenda), [20]);
        assert_eq!(agenda.accounts.len(), 1);
    }
}
