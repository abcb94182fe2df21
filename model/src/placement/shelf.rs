//! Places of one size on a card, and which of many things stand in them: layers that are streamed, or experts. A pure
//! state machine: it says what to copy and what to give back, does neither, and allocates nothing once it is made.
//!
//! What leaves when a place is needed is the thing of the least worth that nobody uses, pins or copies; what worth is,
//! those decide who keep things here. Where the budget shrinks, idle things go at once, others when they are let go.

/// A place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub u32);

/// A copy under way. Copies of a card that was lost since are nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Where to.
    pub place: Place,
    life: u32,
}

/// What the owner of the card is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Copy this thing there, and say [`Shelf::arrived`]; the place has no memory yet where `is_new`.
    Upload {
        /// What.
        thing: u32,
        /// Where to.
        ticket: Ticket,
        /// Whether memory is to be taken for it first.
        is_new: bool,
    },
    /// Give the memory of this place back.
    Free(Place),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Without memory.
    Closed,
    Empty,
    Loading(u32),
    Ready(u32),
}

#[derive(Debug, Clone, Copy)]
struct Thing {
    place: Option<u32>,
    worth: f32,
    users: u32,
    pinned: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct Shelf {
    places: Vec<State>,
    things: Vec<Thing>,
    /// Places that may have memory.
    budget: usize,
    /// Those that do.
    open: usize,
    loading: usize,
    life: u32,
    actions: Vec<Action>,
}

impl Shelf {
    /// Nothing there, at most `places` of `things`.
    pub fn new(things: usize, places: usize) -> Shelf {
        Shelf {
            places: vec![State::Closed; places],
            things: vec![Thing { place: None, worth: 0.0, users: 0, pinned: false }; things],
            budget: places,
            open: 0,
            loading: 0,
            life: 0,
            // One event frees every place at most, or begins one copy.
            actions: Vec::with_capacity(places + 1),
        }
    }

    /// What is to be done since this was asked last.
    pub fn actions(&mut self) -> std::vec::Drain<'_, Action> {
        self.actions.drain(..)
    }

    /// Where a thing stands, ready for use.
    pub fn place(&self, thing: u32) -> Option<Place> {
        let at = self.things[thing as usize].place?;
        matches!(self.places[at as usize], State::Ready(_)).then_some(Place(at))
    }

    /// Whether it is there, or on its way.
    pub fn holds(&self, thing: u32) -> bool {
        self.things[thing as usize].place.is_some()
    }

    /// Uses a thing that is there: it stays until it is released.
    pub fn acquire(&mut self, thing: u32) -> Option<Place> {
        let place = self.place(thing)?;
        self.things[thing as usize].users += 1;
        Some(place)
    }

    /// Whether somebody uses it.
    pub fn is_used(&self, thing: u32) -> bool {
        self.things[thing as usize].users > 0
    }

    /// Ends one use; nothing where the card was lost meanwhile.
    pub fn release(&mut self, thing: u32) {
        let found = &mut self.things[thing as usize];
        found.users = found.users.saturating_sub(1);
        self.shrink();
    }

    /// Keeps a thing wherever it is, or not.
    pub fn pin(&mut self, thing: u32, pinned: bool) {
        self.things[thing as usize].pinned = pinned;
        self.shrink();
    }

    /// What it is worth to keep.
    pub fn worth(&self, thing: u32) -> f32 {
        self.things[thing as usize].worth
    }

    /// Sets that.
    pub fn set_worth(&mut self, thing: u32, worth: f32) {
        self.things[thing as usize].worth = worth;
    }

    /// Multiplies the worth of all.
    pub fn scale_worth(&mut self, factor: f32) {
        self.things.iter_mut().for_each(|thing| thing.worth *= factor);
    }

    /// What would leave if a place were needed and none were empty.
    pub fn victim(&self) -> Option<u32> {
        let ready = self.places.iter().filter_map(|place| match place {
            State::Ready(thing) => Some(*thing),
            _ => None,
        });
        let idle = ready.filter(|&thing| self.is_idle(thing));
        idle.min_by(|&a, &b| self.worth(a).total_cmp(&self.worth(b)))
    }

    /// Whether there is a place that nothing stands in.
    pub fn has_room(&self) -> bool {
        self.open <= self.budget && (self.open < self.budget || self.places.contains(&State::Empty))
    }

    /// Begins to copy a thing; `false` where it is there or on its way, or nothing may leave for it.
    pub fn fetch(&mut self, thing: u32) -> bool {
        if self.holds(thing) || self.open > self.budget {
            return false;
        }
        let Some((at, is_new)) = self.make_room() else { return false };
        self.places[at] = State::Loading(thing);
        self.things[thing as usize].place = Some(at as u32);
        self.loading += 1;
        let ticket = Ticket { place: Place(at as u32), life: self.life };
        self.actions.push(Action::Upload { thing, ticket, is_new });
        true
    }

    /// A copy is done.
    pub fn arrived(&mut self, ticket: Ticket) {
        let at = ticket.place.0 as usize;
        if ticket.life != self.life {
            return;
        }
        if let Some(State::Loading(thing)) = self.places.get(at).copied() {
            self.places[at] = State::Ready(thing);
            self.loading -= 1;
            self.shrink();
        }
    }

    /// Lets a thing go; `false` where it is used, pinned, on its way or not there.
    pub fn evict(&mut self, thing: u32) -> bool {
        let found = self.place(thing).filter(|_| self.is_idle(thing));
        if let Some(place) = found {
            self.things[thing as usize].place = None;
            self.places[place.0 as usize] = State::Empty;
        }
        found.is_some()
    }

    /// So many places may have memory from now on, of those that it was made for.
    pub fn set_budget(&mut self, places: usize) {
        self.budget = places.min(self.places.len());
        self.shrink();
    }

    /// The card is gone with all that stood there. Nothing is copied until a budget is set again.
    pub fn lost(&mut self) {
        self.places.fill(State::Closed);
        for thing in &mut self.things {
            (thing.place, thing.users) = (None, 0);
        }
        (self.open, self.loading, self.budget) = (0, 0, 0);
        self.life = self.life.wrapping_add(1);
        self.actions.clear();
    }

    /// Places that may have memory.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Places that have memory.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Copies under way.
    pub fn loading(&self) -> usize {
        self.loading
    }

    fn is_idle(&self, thing: u32) -> bool {
        let thing = &self.things[thing as usize];
        thing.users == 0 && !thing.pinned
    }

    /// An empty place, or one with new memory, or the victim's.
    fn make_room(&mut self) -> Option<(usize, bool)> {
        if let Some(at) = self.places.iter().position(|place| *place == State::Empty) {
            return Some((at, false));
        }
        if self.open < self.budget {
            let at = self.places.iter().position(|place| *place == State::Closed)?;
            self.open += 1;
            return Some((at, true));
        }
        let victim = self.victim()?;
        let at = self.things[victim as usize].place?;
        self.evict(victim);
        Some((at as usize, false))
    }

    /// Gives places back, empty ones first, as long as there are more than there may be.
    fn shrink(&mut self) {
        while self.open > self.budget {
            let empty = self.places.iter().position(|place| *place == State::Empty);
            let at = match (empty, self.victim()) {
                (Some(at), _) => at,
                (None, Some(victim)) => {
                    let place = self.place(victim).expect("a victim is there");
                    self.evict(victim);
                    place.0 as usize
                }
                (None, None) => return,
            };
            self.places[at] = State::Closed;
            self.open -= 1;
            self.actions.push(Action::Free(Place(at as u32)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    fn upload(shelf: &mut Shelf, thing: u32) -> Ticket {
        assert!(shelf.fetch(thing));
        match shelf.actions().next_back().unwrap() {
            Action::Upload { ticket, .. } => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_least_worth_leaves_and_never_what_is_used_or_pinned_or_on_its_way() {
        let mut shelf = Shelf::new(5, 3);
        for thing in 0..3 {
            let ticket = upload(&mut shelf, thing);
            shelf.set_worth(thing, thing as f32);
            assert_eq!(shelf.place(thing), None);
            shelf.arrived(ticket);
        }
        shelf.acquire(0).unwrap();
        shelf.pin(1, true);
        let ticket = upload(&mut shelf, 3);
        assert_eq!((shelf.holds(2), shelf.fetch(4)), (false, false));
        shelf.arrived(ticket);
        shelf.set_worth(3, 9.0);
        shelf.release(0);
        upload(&mut shelf, 4);
        assert_eq!([0, 1, 2, 3, 4].map(|thing| shelf.holds(thing)), [false, true, false, true, true]);
    }

    #[test]
    fn a_smaller_budget_takes_idle_things_now_and_others_as_they_are_let_go() {
        let mut shelf = Shelf::new(3, 3);
        for thing in 0..2 {
            let ticket = upload(&mut shelf, thing);
            shelf.arrived(ticket);
        }
        let late = upload(&mut shelf, 2);
        shelf.acquire(1).unwrap();
        shelf.set_budget(0);
        assert_eq!(shelf.actions().collect::<Vec<_>>(), [Action::Free(Place(0))]);
        shelf.arrived(late);
        assert_eq!(shelf.actions().collect::<Vec<_>>(), [Action::Free(Place(2))]);
        shelf.release(1);
        assert_eq!(shelf.actions().collect::<Vec<_>>(), [Action::Free(Place(1))]);
        assert_eq!(shelf.open(), 0);
    }

    #[test]
    fn copies_to_a_card_that_was_lost_are_nobodys() {
        let mut shelf = Shelf::new(2, 1);
        let late = upload(&mut shelf, 0);
        shelf.lost();
        assert!(!shelf.fetch(0));
        shelf.set_budget(1);
        let ticket = upload(&mut shelf, 1);
        shelf.arrived(late);
        assert_eq!(shelf.place(1), None);
        shelf.arrived(ticket);
        assert_eq!(shelf.place(1), Some(Place(0)));
    }
}
