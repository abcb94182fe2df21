//! What the next step reads: how many tokens of which sequence. A pure decision.
//!
//! Every reply that can go on gets its token in every step. What is left of the step reads prompts: all of it while
//! nobody waits for a token, else `prefill_chunk`, so that nobody waits longer than for one such chunk. Half of it
//! belongs to the prompt that came first, so that each ends; the other half to the one that ends soonest, so that short
//! prompts do not wait for long ones.
//!
//! A step is computed with one set of weights: the model alone, or the model with one adapter. Sets take turns, step by
//! step, as long as somebody of theirs can go on: so nobody waits for more steps than there are other sets.

/// A sequence as this decision sees it. They stand in the order of their arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// Tokens that it has still to read before one can be chosen: at least one.
    pub(super) unread: usize,
    /// Somebody has begun to read its reply.
    pub(super) is_replying: bool,
    /// Its reader does not keep up: it gets nothing.
    pub(super) is_paused: bool,
    /// What it is computed with.
    pub(super) set: usize,
}

impl View {
    fn can_read(&self) -> bool {
        !self.is_paused && self.unread > 0
    }
}

/// The set whose turn it is after `last`.
pub(super) fn next_set(views: &[View], last: usize) -> usize {
    let sets = || views.iter().filter(|view| view.can_read()).map(|view| view.set);
    sets().filter(|&set| set > last).min().or_else(|| sets().min()).unwrap_or(last)
}

/// How much a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Tokens in all; at least as many as there are sequences.
    pub(super) chunk: usize,
    /// Tokens of prompts while a reply is running.
    pub(super) prefill_chunk: usize,
}

/// Writes to `tokens` how many each sequence of a set reads; says how many in all.
pub(super) fn share(views: &[View], set: usize, budget: Budget, tokens: &mut [usize]) -> usize {
    assert_eq!(views.len(), tokens.len(), "one number for every sequence");
    assert!(views.len() <= budget.chunk, "a step holds a token of every sequence");
    tokens.fill(0);
    let can_read = |view: &View| view.set == set && view.can_read();
    let mut used = 0;
    for (view, tokens) in views.iter().zip(tokens.iter_mut()) {
        if can_read(view) && view.unread == 1 {
            *tokens = 1;
            used += 1;
        }
    }
    // Replies of other sets wait as well.
    let is_awaited = views.iter().any(|view| view.can_read() && view.is_replying);
    let most = if is_awaited { budget.prefill_chunk.max(1) } else { budget.chunk };
    let mut left = most.min(budget.chunk - used);
    let prompts = || (0..views.len()).filter(|&i| can_read(&views[i]) && views[i].unread > 1);
    let mut give = |i: usize, most: usize, left: &mut usize| {
        let given = most.min(*left).min(views[i].unread - tokens[i]);
        tokens[i] += given;
        *left -= given;
        used += given;
    };
    if let Some(first) = prompts().next() {
        give(first, left.div_ceil(2), &mut left);
    }
    // The shortest first, by repeated search: there are few, and nothing is allocated here.
    let mut last = None;
    while left > 0 {
        let next = prompts().map(|i| (views[i].unread, i)).filter(|&at| last < Some(at)).min();
        let Some((unread, i)) = next else { break };
        give(i, unread, &mut left);
        last = next;
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(views: &[(usize, bool, bool)], chunk: usize, prefill_chunk: usize) -> Vec<usize> {
        let of_base = |&(unread, is_replying, is_paused): &(usize, bool, bool)| View {
            unread,
            is_replying,
            is_paused,
            set: 0,
        };
        of_set(&views.iter().map(of_base).collect::<Vec<_>>(), 0, chunk, prefill_chunk)
    }

    fn of_set(views: &[View], set: usize, chunk: usize, prefill_chunk: usize) -> Vec<usize> {
        let mut tokens = vec![9; views.len()];
        let used = share(views, set, Budget { chunk, prefill_chunk }, &mut tokens);
        assert_eq!(used, tokens.iter().sum::<usize>());
        assert!(used <= chunk);
        tokens
    }

    #[test]
    fn replies_go_on_beside_a_prompt_which_gets_one_chunk() {
        assert_eq!(shared(&[(1, true, false), (1000, false, false), (1, true, false)], 512, 64), [1, 64, 1]);
        assert_eq!(shared(&[(1000, false, false)], 512, 64), [512]);
        // Nobody waits for a token of one that is paused.
        assert_eq!(shared(&[(1, true, true), (1000, false, false)], 512, 64), [0, 512]);
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one_which_goes_on() {
        assert_eq!(shared(&[(1000, false, false), (40, false, false)], 512, 64), [472, 40]);
        assert_eq!(
            shared(&[(1000, false, false), (40, false, false), (1, true, false)], 512, 64),
            [32, 32, 1]
        );
        assert_eq!(shared(&[(20, false, false), (1000, false, false)], 512, 64), [20, 492]);
    }

    #[test]
    fn a_step_is_never_too_long() {
        assert_eq!(shared(&[(1, true, false), (1, true, false), (5, false, false)], 3, 64), [1, 1, 1]);
        assert_eq!(shared(&[(1, true, false), (7, false, false)], 2, 0), [1, 1]);
        assert_eq!(shared(&[], 4, 4), [0; 0]);
        assert_eq!(shared(&[(0, false, false)], 4, 4), [0]);
    }

    #[test]
    fn sets_take_turns_and_a_step_has_one() {
        let view = |unread, set, is_paused| View { unread, is_replying: unread == 1, is_paused, set };
        let views = [view(1, 0, false), view(900, 2, false), view(1, 2, false), view(1, 5, false)];
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push(next_set(&views, order.last().copied().unwrap_or(5)));
        }
        assert_eq!(order, [0, 2, 5, 0, 2, 5]);
        assert_eq!(of_set(&views, 0, 512, 64), [1, 0, 0, 0]);
        assert_eq!(of_set(&views, 2, 512, 64), [0, 64, 1, 0], "others wait for their tokens meanwhile");
        assert_eq!(of_set(&views, 5, 512, 64), [0, 0, 0, 1]);
        // Who cannot go on has no turn.
        let paused = [view(1, 0, true), view(1, 3, false), view(0, 4, false)];
        assert_eq!([0, 3, 9].map(|last| next_set(&paused, last)), [3, 3, 3]);
        assert_eq!(next_set(&[], 7), 7);
    }

    #[test]
    fn a_reply_that_is_read_again_counts_as_awaited() {
        assert_eq!(shared(&[(1000, true, false)], 512, 64), [64]);
    }
}
