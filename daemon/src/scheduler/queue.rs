//! Who waits, and who comes next: clients in turn, with a bound. Pure: no clock, no lock, no engine.
//!
//! A client's requests keep their order, and a client that was served goes behind all others that wait. So a request
//! waits for at most one request of every other client before each of its own client's that stand before it, however
//! many the others have. Where the next one does not fit into the cache yet, later ones may pass it, but only
//! [`PASSES_MAX`] times: then all wait for it.

use std::time::Duration;

use super::resting::{Reuse, Whose};

/// Whose request it is: a connection, a user, a token, as the doors decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// How often later requests may pass one that does not fit yet.
pub(super) const PASSES_MAX: usize = 16;

/// Whether there is room for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It begins.
    Now,
    /// It waits for what everybody takes.
    NotYet,
    /// It waits for the room that adapters have.
    NoAdapterYet,
}

/// What is known of a request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Its number; numbers rise.
    pub(super) id: u64,
    /// Whose it is.
    pub(super) client: ClientId,
    /// Whose words it may begin with, and leave its own to.
    pub(super) reuse: Option<Reuse>,
    /// Positions of the cache that it needs.
    pub(super) positions: usize,
    /// When it came.
    pub(super) arrived: Duration,
    /// When it is too late.
    pub(super) deadline: Option<Duration>,
}

impl Wish {
    /// What it has in common with those that it shares beginnings with.
    pub(super) fn whose(&self) -> Option<Whose> {
        Some(Whose { client: self.client, reuse: self.reuse? })
    }
}

/// Which bound a request met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    /// Requests that wait.
    pub(super) waiting: usize,
    /// How many may.
    pub(super) bound: usize,
    /// Whether both numbers are this client's own.
    pub(super) is_own: bool,
}

#[derive(Debug)]
struct Entry<T> {
    wish: Wish,
    /// The place of its client.
    turn: u64,
    passed: usize,
    item: T,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    /// By turn, then number.
    entries: Vec<Entry<T>>,
    bound: usize,
    client_bound: usize,
    next_turn: u64,
}

impl<T> Waiting<T> {
    /// A queue of at most `bound`, of which one client may have `client_bound`.
    pub(super) fn new(bound: usize, client_bound: usize) -> Self {
        Waiting { entries: Vec::with_capacity(bound), bound, client_bound, next_turn: 0 }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether one more of this client may come.
    pub(super) fn admits(&self, client: ClientId) -> Result<(), Full> {
        if self.entries.len() >= self.bound {
            return Err(Full { waiting: self.entries.len(), bound: self.bound, is_own: false });
        }
        let own = self.entries.iter().filter(|entry| entry.wish.client == client).count();
        match own < self.client_bound {
            true => Ok(()),
            false => Err(Full { waiting: own, bound: self.client_bound, is_own: true }),
        }
    }

    /// Joins the queue and says how many stand before it now.
    pub(super) fn join(&mut self, wish: Wish, item: T) -> Result<usize, Full> {
        self.admits(wish.client)?;
        let own = self.entries.iter().find(|entry| entry.wish.client == wish.client);
        let turn = own.map(|entry| entry.turn).unwrap_or_else(|| self.fresh_turn());
        let place = self.entries.partition_point(|entry| (entry.turn, entry.wish.id) < (turn, wish.id));
        self.entries.insert(place, Entry { wish, turn, passed: 0, item });
        Ok(place)
    }

    fn fresh_turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    /// Leaves the queue, wherever it stands.
    pub(super) fn leave(&mut self, id: u64) -> Option<(Wish, T)> {
        let place = self.entries.iter().position(|entry| entry.wish.id == id)?;
        let entry = self.entries.remove(place);
        Some((entry.wish, entry.item))
    }

    /// Gives back one that is too late.
    pub(super) fn expired(&mut self, now: Duration) -> Option<(Wish, T)> {
        let is_late = |entry: &Entry<T>| entry.wish.deadline.is_some_and(|deadline| deadline <= now);
        let id = self.entries.iter().find(|entry| is_late(entry))?.wish.id;
        self.leave(id)
    }

    /// Gives back whoever is first: for when nobody will be served any more.
    pub(super) fn dismissed(&mut self) -> Option<(Wish, T)> {
        let id = self.entries.first()?.wish.id;
        self.leave(id)
    }

    /// When somebody will be too late.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.entries.iter().filter_map(|entry| entry.wish.deadline).min()
    }

    /// Serves the next for whom there is room, as `fits` says, which hears whether the room of adapters is another's.
    pub(super) fn take(&mut self, mut fits: impl FnMut(&Wish, &T, bool) -> Fit) -> Option<(Wish, T)> {
        let (mut place, mut is_claimed) = (None, false);
        for (index, entry) in self.entries.iter().enumerate() {
            let is_due = entry.passed >= PASSES_MAX;
            match fits(&entry.wish, &entry.item, is_claimed) {
                Fit::Now => {
                    place = Some(index);
                    break;
                }
                Fit::NotYet if is_due => break,
                Fit::NotYet => {}
                Fit::NoAdapterYet => is_claimed |= is_due,
            }
        }
        let place = place?;
        self.entries[..place].iter_mut().for_each(|entry| entry.passed += 1);
        let entry = self.entries.remove(place);
        let (client, turn) = (entry.wish.client, self.fresh_turn());
        for other in self.entries.iter_mut().filter(|other| other.wish.client == client) {
            other.turn = turn;
        }
        // Sorting in place: this may run on an engine's thread, which allocates nothing.
        self.entries.sort_unstable_by_key(|entry| (entry.turn, entry.wish.id));
        Some((entry.wish, entry.item))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    fn wish(id: u64, client: u64, positions: usize) -> Wish {
        let arrived = Duration::from_secs(id);
        Wish { id, client: ClientId(client), reuse: None, positions, arrived, deadline: None }
    }

    fn served(queue: &mut Waiting<()>, room: usize) -> Vec<u64> {
        std::iter::from_fn(|| {
            queue.take(|wish, (), _| if wish.positions <= room { Fit::Now } else { Fit::NotYet })
        })
        .map(|(wish, ())| wish.id)
        .collect()
    }

    #[test]
    fn clients_take_turns_and_keep_their_order() {
        let mut queue = Waiting::new(16, 16);
        for (id, client) in [(0, 1), (1, 1), (2, 1), (3, 2), (4, 3), (5, 2)] {
            queue.join(wish(id, client, 1), ()).unwrap();
        }
        assert_eq!(served(&mut queue, 1), [0, 3, 4, 1, 5, 2]);
    }

    #[test]
    fn a_client_that_comes_back_one_by_one_cannot_starve_another() {
        let mut queue = Waiting::new(64, 64);
        (0..8).for_each(|id| assert!(queue.join(wish(id, 1, 1), ()).is_ok()));
        let mut order = Vec::new();
        for id in 8..24 {
            if order.last() != Some(&1) {
                queue.join(wish(id, 2, 1), ()).unwrap();
            }
            order.push(queue.take(|_, (), _| Fit::Now).unwrap().0.client.0);
        }
        assert_eq!(order, [1, 2].repeat(8));
    }

    #[test]
    fn between_two_of_a_client_stands_at_most_one_of_each_other() {
        let mut random = 7_u64;
        let mut below = |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % end
        };
        let mut queue = Waiting::new(64, 32);
        let mut since = std::collections::HashMap::<ClientId, Vec<ClientId>>::new();
        let mut served = 0;
        for id in 0..100_000 {
            // One client asks for half of everything.
            let client = ClientId(below(12).saturating_sub(6));
            if queue.join(wish(id, client.0, 1), ()).is_ok() {
                since.entry(client).or_default();
            }
            if below(8) == 0 {
                continue;
            }
            let Some((wish, ())) = queue.take(|_, (), _| Fit::Now) else { continue };
            served += 1;
            for (client, others) in &mut since {
                let before = others.len();
                others.push(wish.client);
                let is_fair = *client == wish.client || !others[..before].contains(&wish.client);
                assert!(is_fair, "{:?} twice before {client:?}", wish.client);
            }
            since.remove(&wish.client);
            if queue.entries.iter().any(|entry| entry.wish.client == wish.client) {
                since.insert(wish.client, Vec::new());
            }
        }
        assert!(served > 80_000);
    }

    #[test]
    fn bounds_are_told_with_their_numbers() {
        let mut queue = Waiting::new(3, 2);
        assert_eq!(queue.join(wish(0, 1, 1), ()), Ok(0));
        assert_eq!(queue.join(wish(1, 1, 1), ()), Ok(1));
        assert_eq!(queue.join(wish(2, 1, 1), ()), Err(Full { waiting: 2, bound: 2, is_own: true }));
        assert_eq!(queue.join(wish(3, 2, 1), ()), Ok(2));
        assert_eq!(queue.join(wish(4, 3, 1), ()), Err(Full { waiting: 3, bound: 3, is_own: false }));
        assert!(queue.leave(0).is_some() && queue.leave(0).is_none());
        assert_eq!(queue.join(wish(5, 3, 1), ()), Ok(2));
    }

    #[test]
    fn a_large_request_is_passed_only_so_often() {
        let mut queue = Waiting::new(64, 64);
        queue.join(wish(0, 0, 100), ()).unwrap();
        (1..40).for_each(|id| assert!(queue.join(wish(id, id, 1), ()).is_ok()));
        assert_eq!(served(&mut queue, 10).len(), PASSES_MAX);
        assert_eq!(queue.take(|_, (), _| Fit::Now).unwrap().0.id, 0);
        assert_eq!(served(&mut queue, 10).len(), 39 - PASSES_MAX);
    }

    #[test]
    fn who_is_too_late_leaves() {
        let mut queue = Waiting::new(4, 4);
        for (id, deadline) in [(0, None), (1, Some(7)), (2, Some(5))] {
            let deadline = deadline.map(Duration::from_secs);
            queue.join(Wish { deadline, ..wish(id, 1, 1) }, ()).unwrap();
        }
        assert_eq!(queue.next_deadline(), Some(Duration::from_secs(5)));
        assert!(queue.expired(Duration::from_secs(4)).is_none());
        assert_eq!(queue.expired(Duration::from_secs(6)).unwrap().0.id, 2);
        assert!(queue.expired(Duration::from_secs(6)).is_none());
        assert_eq!(queue.dismissed().unwrap().0.id, 0);
    }

    /// Numbers from 100 on have an adapter for which there is no room as long as it is closed.
    #[test]
    fn who_waits_for_an_adapter_holds_up_none_but_those_with_adapters() {
        let mut queue = Waiting::new(200, 200);
        let is_with_adapter = |wish: &Wish| wish.positions >= 100;
        let next = |queue: &mut Waiting<()>, is_open: bool| {
            let fits = |wish: &Wish, (): &(), is_claimed: bool| match wish.positions {
                100 if !is_open => Fit::NoAdapterYet,
                101 if is_claimed => Fit::NoAdapterYet,
                _ => Fit::Now,
            };
            queue.take(fits).map(|(wish, ())| wish.id)
        };
        queue.join(wish(0, 0, 100), ()).unwrap();
        for id in 1..=2 * PASSES_MAX as u64 {
            queue.join(wish(id, id, 1), ()).unwrap();
            assert_eq!(next(&mut queue, false), Some(id), "whoever has none goes on");
        }
        // Somebody whose adapter is there has passed often enough.
        queue.join(wish(90, 90, 101), ()).unwrap();
        queue.join(wish(91, 91, 1), ()).unwrap();
        assert_eq!([(); 3].map(|()| next(&mut queue, false)), [Some(91), None, None]);
        assert!(queue.entries.iter().all(|entry| is_with_adapter(&entry.wish)));
        assert_eq!([(); 3].map(|()| next(&mut queue, true)), [Some(0), Some(90), None]);
    }
}
