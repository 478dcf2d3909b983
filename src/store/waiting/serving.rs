//! Serving the creates that wait for room. Part of [`Store`].
//!
//! The head of the queue has a search, whose state says whether there is anything to do. The head
//! is the first in the queue, except that a search which is under way is brought to its end first.
//! How room is found, and how a new object is made, is not known here.

use crate::protocol::refusal::Refusal;
use crate::store::Store;
use crate::store::space::{Progress, Search};
use crate::store::waiting::{QueuedCreate, Turn};

impl Store {
    /// Whether [`Self::serve_creates`] has something to do now. What is being freed may be enough,
    /// so no search begins before that is over.
    pub(in crate::store) fn has_room_work(&self) -> bool {
        let Some(head) = self.head() else { return false };
        match &self.search {
            Some((turn, search)) if *turn == head => {
                let may_go_on = search.is_under_way() || !self.jobs.is_freeing();
                may_go_on && self.has_search_work(search)
            }
            _ => !self.jobs.is_freeing(),
        }
    }

    /// Serves waiting creates from the head of the queue, as far as there is room, for one slice.
    pub(in crate::store) fn serve_creates(&mut self) {
        // While a put is being filled its objects cannot go, and others would instead.
        while self.steps > 0
            && self.filling.is_none()
            && let Some(turn) = self.head()
        {
            let mut search = self.search_of(turn);
            let decision = self.decide(turn, &mut search);
            self.search = Some((turn, search));
            let Some(decision) = decision else { return };
            self.end_create(turn, decision);
        }
        self.drop_search_of_nobody();
    }

    fn head(&self) -> Option<Turn> {
        let under_way = self.search.as_ref().filter(|(_, search)| search.is_under_way());
        let turn = under_way.map(|(turn, _)| *turn).filter(|turn| self.creates.contains(*turn));
        turn.or_else(|| self.creates.first())
    }

    /// The head, if it must not be refused for its deadline: it has its turn at this moment, or
    /// waits for memory in transit.
    pub(in crate::store) fn spared_from_deadlines(&self) -> Option<Turn> {
        let search = self.search.as_ref();
        let spared = search.filter(|(_, s)| s.is_under_way() || s.waits_for_transit());
        spared.map(|(turn, _)| *turn)
    }

    /// This search was begun for a create that has to wait now. It goes on, unless another one is
    /// under way.
    pub(in crate::store) fn keep_search(&mut self, turn: Turn, search: Search) {
        let is_free = !self.search.as_ref().is_some_and(|(_, other)| other.is_under_way());
        if is_free && (search.is_under_way() || self.head() == Some(turn)) {
            self.drop_search();
            self.search = Some((turn, search));
        }
    }

    fn search_of(&mut self, turn: Turn) -> Search {
        if let Some((_, search)) = self.search.take_if(|(other, _)| *other == turn) {
            return search;
        }
        self.drop_search();
        let QueuedCreate { asked, creation, evict, .. } = self.creates.get(turn);
        Search::new(asked.client, creation, *evict)
    }

    /// Goes on with the search of a create: where its objects go, or why they do not, if that is
    /// known.
    fn decide(&mut self, turn: Turn, search: &mut Search) -> Option<Result<u64, Refusal>> {
        if search.is_new()
            && let Err(refusal) = self.check_queued(turn)
        {
            return Some(Err(refusal));
        }
        match self.search_on(search) {
            Progress::More => None,
            // Its names may be taken by now, or its quota.
            Progress::Room(start) => match self.check_queued(turn) {
                Ok(()) => Some(Ok(start)),
                Err(refusal) => {
                    search.give_back(&mut self.space, start);
                    Some(Err(refusal))
                }
            },
            Progress::NoRoom if turn.is_hurried() && search.may_catch_up() && self.catch_up() => {
                search.doubt();
                None
            }
            Progress::NoRoom if turn.is_hurried() && !search.waits_for_transit() => {
                let requested = self.creates.get(turn).creation.sizes().sum();
                Some(Err(Refusal::StoreFull(self.full(requested))))
            }
            Progress::NoRoom => None,
        }
    }

    fn check_queued(&self, turn: Turn) -> Result<(), Refusal> {
        let create = self.creates.get(turn);
        self.check_create(create.asked.client, &create.creation, create.evict)
    }

    fn end_create(&mut self, turn: Turn, decision: Result<u64, Refusal>) {
        let create = self.creates.remove(turn);
        self.drop_search();
        let asked = create.asked;
        self.clients.wait_ended(asked.client, create.creation.cost());
        self.steps = self.steps.saturating_sub(create.creation.ids().count());
        let answer = decision.map(|start| self.place(asked, create.creation, start));
        self.answer(asked, answer);
    }

    fn drop_search(&mut self) {
        if let Some((_, search)) = self.search.take() {
            self.drop_slowly(search.reach);
        }
    }

    /// The create that it was for may have been taken out of the queue.
    pub(in crate::store) fn drop_search_of_nobody(&mut self) {
        if self.search.as_ref().is_some_and(|(turn, _)| !self.creates.contains(*turn)) {
            self.drop_search();
        }
    }
}
