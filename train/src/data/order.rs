//! In which order examples come: as PyTorch's `randperm` has it for the same seed.
//!
//! `transformers` shuffles every epoch with a generator of its own, seeded with the seed plus the epoch's number, so
//! the order of a run is the same there and here. The same Mersenne Twister is NumPy's older generator, with which
//! `num_samples` is drawn; its newer one, for `val_size` and `interleave_probs`, is in `pcg.rs`.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The Mersenne Twister of 32 bits, as it is usually seeded.
pub(crate) struct Twister {
    state: [u32; SIZE],
    next: usize,
}

impl Twister {
    pub(crate) fn new(seed: u64) -> Self {
        // PyTorch takes the lower half of a seed.
        let mut state = [seed as u32; SIZE];
        for index in 1..SIZE {
            let before = state[index - 1];
            state[index] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
        }
        Self { state, next: SIZE }
    }

    fn refill(&mut self) {
        for index in 0..SIZE {
            let joined = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % SIZE] & 0x7fff_ffff);
            let twisted = (joined >> 1) ^ if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % SIZE] ^ twisted;
        }
        self.next = 0;
    }

    pub(crate) fn bits32(&mut self) -> u32 {
        if self.next == SIZE {
            self.refill();
        }
        let mut bits = self.state[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    /// A number up to `most`, which fits 32 bits, as NumPy draws it: bits are drawn until they fit.
    pub(super) fn up_to(&mut self, most: usize) -> usize {
        let mask = most.checked_ilog2().map_or(0, |bits| u32::MAX >> (31 - bits.min(31)));
        loop {
            let drawn = (self.bits32() & mask) as usize;
            if drawn <= most {
                return drawn;
            }
        }
    }

    /// All numbers below `count` as NumPy shuffles them.
    pub(super) fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        for index in (1..count).rev() {
            numbers.swap(index, self.up_to(index));
        }
        numbers
    }

    /// All numbers below `count` as PyTorch orders them.
    fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        for index in 0..count.saturating_sub(1) {
            let other = index + self.bits32() as usize % (count - index);
            numbers.swap(index, other);
        }
        numbers
    }
}

/// The order of `count` examples in an epoch, counted from 0.
pub fn epoch_order(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    Twister::new(seed.wrapping_add(epoch)).permutation(count)
}

/// An order in which examples of about one length stand together, as transformers' LengthGroupedSampler has it: pieces
/// of some batches are sorted, the longest first, and the longest of all leads.
pub(crate) fn grouped(order: Vec<usize>, length: impl Fn(usize) -> usize, batch: usize) -> Vec<usize> {
    const BATCHES_MAX: usize = 50;
    let batches = (order.len() / batch.saturating_mul(4).max(1)).clamp(1, BATCHES_MAX);
    let size = batches.saturating_mul(batch).max(1);
    let mut order = order;
    order.chunks_mut(size).for_each(|piece| piece.sort_by_key(|&at| std::cmp::Reverse(length(at))));
    let longest = (0..order.len()).step_by(size).rev().max_by_key(|&at| length(order[at]));
    if let Some(longest) = longest {
        order.swap(0, longest);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_randperm() {
        // torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        assert_eq!(epoch_order(10, 42, 0), [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]);
        assert_eq!(epoch_order(10, 42, 1), [8, 4, 9, 0, 5, 1, 6, 7, 2, 3]);
        let long = epoch_order(1000, 7, 0);
        assert_eq!(long[..8], [615, 284, 599, 580, 347, 92, 383, 891]);
        assert_eq!(epoch_order(1, 1, 0), [0]);
        assert!(epoch_order(0, 1, 0).is_empty());
    }

    #[test]
    fn samples_are_those_of_numpy() {
        // numpy.random.seed(42); numpy.random.permutation(10), numpy.random.choice(10, 5)
        let mut generator = Twister::new(42);
        assert_eq!(generator.shuffled(10), [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]);
        let chosen: Vec<usize> = (0..5).map(|_| generator.up_to(9)).collect();
        assert_eq!(chosen, [2, 6, 7, 4, 3]);
        assert_eq!(generator.up_to(0), 0);
    }

    #[test]
    fn examples_of_one_length_stand_together() {
        // Computed with get_length_grouped_indices of transformers 4.57.
        let lengths = [3, 9, 1, 4, 9, 2, 7, 5, 8, 6];
        let order = vec![2, 0, 5, 3, 6, 9, 7, 1, 8, 4];
        assert_eq!(grouped(order.clone(), |at| lengths[at], 1), [1, 2, 3, 5, 6, 9, 0, 7, 4, 8]);
        assert_eq!(grouped(order, |at| lengths[at], 4), [1, 0, 5, 2, 3, 6, 9, 7, 4, 8]);
        assert!(grouped(vec![], |at| lengths[at], 4).is_empty());
    }
}
