//! Which adapters stand where in the room that a loaded model has for them, and who leaves for whom. Pure: places are
//! numbers, there is no memory and no clock, and after it is made nothing is allocated.
//!
//! Whoever comes takes the first hole that is large enough. Where there is none, those may leave that nobody uses, the
//! least recently used first, until there is one; of these only those leave whose bytes are taken, and as few as
//! possible. Whoever is in use stays, and who has no room yet waits. Nothing is moved: filling a place again costs a
//! read of its adapter's file.

use bantam_core::arena::ALIGNMENT;

/// Adapters that can stand in a room at once.
pub(crate) const PLACES_MOST: usize = 64;

/// Why somebody gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Those that are there are in use.
    NotYet,
    /// It is larger than the room.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    offset: usize,
    bytes: usize,
    uses: usize,
    /// When it was last taken into use, or given up.
    used_at: u64,
}

impl Place {
    fn end(&self) -> usize {
        self.offset + self.bytes
    }

    fn overlaps(&self, other: &Place) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// The room.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: usize,
    places: [Option<Place>; PLACES_MOST],
    uses: u64,
}

impl Room {
    /// An empty room.
    pub(crate) fn new(bytes: usize) -> Self {
        Room { bytes, places: [None; PLACES_MOST], uses: 0 }
    }

    fn there(&self) -> impl Iterator<Item = (usize, &Place)> {
        self.places.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)))
    }

    /// Whether [`Room::take`] would find a place.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.place(bytes).is_ok()
    }

    /// Where so many bytes would stand, those gone that are in the way.
    fn place(&self, bytes: usize) -> Result<Place, Full> {
        let bytes = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(Full::Never)?;
        if bytes > self.bytes {
            return Err(Full::Never);
        }
        // Who was used last up to this may go.
        let mut up_to = None;
        loop {
            if let Some(place) = self.fit(bytes, up_to) {
                return Ok(place);
            }
            up_to = Some(self.next_idle(up_to).ok_or(Full::NotYet)?);
        }
    }

    /// Takes a place of so many bytes into use; `leaves` is told of everybody who leaves for it.
    pub(crate) fn take(&mut self, bytes: usize, mut leaves: impl FnMut(usize)) -> Result<usize, Full> {
        let place = self.place(bytes)?;
        for at in 0..PLACES_MOST {
            if self.places[at].is_some_and(|other| other.overlaps(&place)) {
                self.places[at] = None;
                leaves(at);
            }
        }
        let at = self.places.iter().position(Option::is_none).expect("a place that fits has a number");
        self.places[at] = Some(place);
        self.hold(at);
        Ok(at)
    }

    /// The first place of so many bytes, were those gone that are idle and were last used up to some time.
    fn fit(&self, bytes: usize, up_to: Option<u64>) -> Option<Place> {
        let stays = |place: &&Place| place.uses > 0 || up_to.is_none_or(|up_to| place.used_at > up_to);
        let staying = || self.there().map(|(_, place)| place).filter(stays);
        let place = |offset: usize| Place { offset, bytes, uses: 0, used_at: 0 };
        let is_free = |at: &Place| at.end() <= self.bytes && !staying().any(|other| other.overlaps(at));
        let gone = |at: &Place| self.there().filter(|(_, other)| other.overlaps(at)).count();
        // Numbers may be scarcer than bytes: then somebody leaves for one.
        let has_number = self.places.iter().any(Option::is_none);
        let offsets = self.there().flat_map(|(_, place)| [place.offset, place.end()]).chain([0]);
        let all = offsets.map(place).filter(is_free).filter(|at| has_number || gone(at) > 0);
        all.min_by_key(|at| (gone(at), at.offset))
    }

    /// When that was used last which comes after `up_to` among those that nobody uses.
    fn next_idle(&self, up_to: Option<u64>) -> Option<u64> {
        let idle = self.there().filter(|(_, place)| place.uses == 0).map(|(_, place)| place.used_at);
        idle.filter(|&used_at| up_to.is_none_or(|up_to| used_at > up_to)).min()
    }

    /// Somebody more uses a place.
    pub(crate) fn hold(&mut self, at: usize) {
        self.touch(at).uses += 1;
    }

    /// Somebody uses it no more; it stays until others need its bytes.
    pub(crate) fn release(&mut self, at: usize) {
        let place = self.touch(at);
        place.uses = place.uses.checked_sub(1).expect("who releases has held");
    }

    fn touch(&mut self, at: usize) -> &mut Place {
        self.uses += 1;
        let place = self.places[at].as_mut().expect("a place that was taken");
        place.used_at = self.uses;
        place
    }

    /// Gives a place up that nobody uses.
    pub(crate) fn leave(&mut self, at: usize) {
        assert_eq!(self.places[at].map(|place| place.uses), Some(0), "nobody uses what leaves");
        self.places[at] = None;
    }

    /// Where a place begins.
    pub(crate) fn offset(&self, at: usize) -> usize {
        self.places[at].expect("a place that was taken").offset
    }

    /// How many use a place.
    pub(crate) fn uses(&self, at: usize) -> usize {
        self.places[at].map_or(0, |place| place.uses)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(room: &mut Room, units: usize) -> (Result<usize, Full>, Vec<usize>) {
        let mut gone = Vec::new();
        (room.take(units * ALIGNMENT, |at| gone.push(at)), gone)
    }

    #[test]
    fn the_least_recently_used_leaves_and_only_it() {
        let mut room = Room::new(10 * ALIGNMENT);
        let [a, b, c] = [4, 3, 3].map(|units| take(&mut room, units).0.unwrap());
        assert_eq!(take(&mut room, 1), (Err(Full::NotYet), vec![]));
        assert_eq!(take(&mut room, 11), (Err(Full::Never), vec![]));
        [b, a, c].into_iter().for_each(|at| room.release(at));
        assert_eq!(take(&mut room, 3), (Ok(b), vec![b]), "the least recently used one has room enough");
        room.release(b);
        room.hold(a);
        // `b` and `c` are neighbours; `a` is in use.
        assert_eq!(take(&mut room, 7), (Err(Full::NotYet), vec![]));
        let (taken, gone) = take(&mut room, 6);
        assert!(taken.is_ok());
        assert_eq!((gone, room.uses(a)), (vec![b, c], 1));
    }

    #[test]
    fn who_stands_elsewhere_stays() {
        let mut room = Room::new(10 * ALIGNMENT);
        let [a, b, c] = [2, 5, 3].map(|units| take(&mut room, units).0.unwrap());
        [a, b, c].into_iter().for_each(|at| room.release(at));
        let (taken, gone) = take(&mut room, 5);
        assert!(taken.is_ok());
        assert_eq!(gone, [b], "the one that was used longest ago has no room for it");
        assert!(room.places[a].is_some() && room.places[c].is_some());
    }

    #[test]
    fn numbers_run_out_before_bytes() {
        let mut room = Room::new(1000 * ALIGNMENT);
        let all: Vec<usize> = (0..PLACES_MOST).map(|_| take(&mut room, 1).0.unwrap()).collect();
        assert_eq!(take(&mut room, 1), (Err(Full::NotYet), vec![]));
        room.release(all[7]);
        assert_eq!(take(&mut room, 1), (Ok(all[7]), vec![all[7]]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn whatever_happens_places_are_apart_and_users_stay(
            units in 4..40usize,
            events in prop::collection::vec((0..3u8, 1..24usize, 0..64usize), 1..2000),
        ) {
            let mut room = Room::new(units * ALIGNMENT);
            // What a user of each place counts for itself.
            let mut uses = [None; PLACES_MOST];
            for (event, size, which) in events {
                let there: Vec<usize> = (0..PLACES_MOST).filter(|&at| uses[at].is_some()).collect();
                let one = there.get(which % there.len().max(1)).copied();
                match (event, one) {
                    (0, _) => {
                        let before = room.places;
                        let (taken, gone) = take(&mut room, size);
                        prop_assert!(gone.iter().all(|&at| uses[at] == Some(0)), "one in use has left");
                        prop_assert_eq!(taken == Err(Full::Never), size > units);
                        match taken {
                            Ok(at) => {
                                gone.iter().for_each(|&at| uses[at] = None);
                                let place = room.places[at].unwrap();
                                let needed = |at: &usize| before[*at].unwrap().overlaps(&place);
                                prop_assert!(gone.iter().all(needed), "one has left for nothing");
                                prop_assert!(uses[at].is_none());
                                uses[at] = Some(1);
                            }
                            Err(_) => prop_assert!(gone.is_empty() && room.places == before),
                        }
                    }
                    (1, Some(at)) => {
                        room.hold(at);
                        uses[at] = uses[at].map(|uses| uses + 1);
                    }
                    (2, Some(at)) if uses[at] > Some(0) => {
                        room.release(at);
                        uses[at] = uses[at].map(|uses: usize| uses - 1);
                    }
                    (2, Some(at)) => {
                        room.leave(at);
                        uses[at] = None;
                    }
                    _ => {}
                }
                let places: Vec<Place> = room.there().map(|(_, place)| *place).collect();
                prop_assert!(places.iter().all(|place| place.end() <= units * ALIGNMENT));
                for (n, place) in places.iter().enumerate() {
                    prop_assert!(!places[..n].iter().any(|other| other.overlaps(place)));
                }
                prop_assert!((0..PLACES_MOST).all(|at| room.uses(at) == uses[at].unwrap_or(0)));
            }
            for (at, uses) in uses.iter().enumerate() {
                (0..uses.unwrap_or(0)).for_each(|_| room.release(at));
            }
            prop_assert!(take(&mut room, units).0.is_ok(), "all the room is one hole again");
        }
    }
}
