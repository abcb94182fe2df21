//! The bounded queue from an engine's thread to the reader of one stream. All its memory is taken when it is made; the
//! engine's side copies and never waits for more than the reader's side takes to copy one piece.
//!
//! A stream whose queue is full pauses: the engine leaves it out until half of the queue is empty again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bantam_model::generate::{Finish, Token};
use bantam_model::reply::part::{Channel, End, Part};

use super::bell::Bell;
use super::work::{Failure, Work};

/// What comes out of a stream.
#[derive(Debug)]
pub enum Event {
    /// A token and its text.
    Piece(Piece),
    /// The last thing that comes.
    Ended(Box<Ended>),
}

/// One token, as the model's thread made it.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// The text that it made certain: whole characters, possibly none.
    pub text: String,
    /// The message that the text belongs to.
    pub message: Option<Message>,
    /// Set on the last one of a reply that came to its end.
    pub finish: Option<Finish>,
    /// Where it was asked for.
    pub log_probability: Option<f32>,
    /// The most probable tokens in its place, as many as were asked for.
    pub alternatives: Vec<(u32, f32)>,
    /// When it was chosen, by the scheduler's clock.
    pub at: Duration,
}

/// A message of a reply, see [`Part`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Counted from 0.
    pub index: usize,
    /// What it is for.
    pub channel: Channel,
    /// The words of its header, where it begins.
    pub head: Option<Head>,
    /// Set where it ends.
    pub ends: Option<End>,
}

/// The words of a header, as the model wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Who speaks.
    pub role: String,
    /// Empty where none was.
    pub channel_name: String,
    /// Who is spoken to.
    pub recipient: Option<String>,
    /// What the text is.
    pub content_type: Option<String>,
}

/// How a request ended.
#[derive(Debug)]
pub struct Ended {
    /// What was asked for, with what was found; or why there is nothing, or no more.
    pub outcome: Result<(), Failure>,
    /// The work, as far as it came; nothing where the engine's thread has ended without a word.
    pub work: Option<Work>,
    /// Tokens of the prompt that were there already.
    pub reused_tokens: usize,
    /// Where its time went.
    pub timings: Timings,
}

/// How a request got its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// It waited for so long.
    pub queue: Duration,
    /// Tokens of the prompt that were there already.
    pub reused_tokens: usize,
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Until it had a sequence.
    pub queue: Duration,
    /// From there to its first token or its result.
    pub prefill: Duration,
    /// From there to its end.
    pub decode: Duration,
    /// The part of `decode` in which it waited for its reader.
    pub paused: Duration,
}

/// A piece without its words, which lie in `bytes` in this order: the four of a header, the text.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id: u32,
    finish: Option<Finish>,
    log_probability: Option<f32>,
    at: Duration,
    alternatives: usize,
    part: Option<SlotPart>,
    text: usize,
}

#[derive(Debug, Clone, Copy)]
struct SlotPart {
    index: usize,
    channel: Channel,
    ends: Option<End>,
    begins: bool,
    words: [Option<usize>; 4],
}

#[derive(Debug)]
struct Inner {
    slots: VecDeque<Slot>,
    bytes: VecDeque<u8>,
    alternatives: VecDeque<(u32, f32)>,
    begun: Option<Begun>,
    ended: Option<Box<Ended>>,
    is_over: bool,
    /// The engine has left the stream out.
    is_paused: bool,
    /// Pieces taken since the beginning.
    taken: u64,
    waker: Option<Waker>,
    /// Of who waits for the end alone.
    watcher: Option<Waker>,
}

#[derive(Debug)]
struct Ring {
    inner: Mutex<Inner>,
    /// The reader has gone.
    is_dropped: AtomicBool,
    /// Pieces at most.
    tokens: usize,
    /// Bytes at most, and how many of them one piece may need.
    bytes: usize,
    piece_bytes: usize,
}

/// What a stream may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Pieces.
    pub(super) tokens: usize,
    /// Bytes of words that one piece may have.
    pub(super) piece_bytes: usize,
    /// Alternatives of one piece.
    pub(super) alternatives: usize,
}

/// Bytes that are held for each piece beside room for one longest: tokens are seldom longer.
const BYTES_PER_TOKEN: usize = 32;

/// Makes a queue. The bell is rung when the reader has made room, or has gone.
pub(super) fn ring(room: Room, bell: Arc<Bell>) -> (Writer, Reader) {
    let tokens = room.tokens.max(1);
    let bytes = room.piece_bytes + tokens * BYTES_PER_TOKEN;
    let inner = Inner {
        slots: VecDeque::with_capacity(tokens),
        bytes: VecDeque::with_capacity(bytes),
        alternatives: VecDeque::with_capacity(tokens * room.alternatives),
        begun: None,
        ended: None,
        is_over: false,
        is_paused: false,
        taken: 0,
        waker: None,
        watcher: None,
    };
    let is_dropped = AtomicBool::new(false);
    let inner = Mutex::new(inner);
    let ring = Arc::new(Ring { inner, is_dropped, tokens, bytes, piece_bytes: room.piece_bytes });
    (Writer { ring: ring.clone() }, Reader { ring, bell })
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing here leaves half a piece behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn has_room(&self, ring: &Ring) -> bool {
        self.slots.len() < ring.tokens && self.bytes.len() + ring.piece_bytes <= ring.bytes
    }

    /// Who is to be woken by what comes next.
    fn wake(&mut self, context: &Context<'_>) {
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
            self.waker = Some(context.waker().clone());
        }
    }

    fn word(&mut self, length: usize) -> String {
        let bytes: Vec<u8> = self.bytes.drain(..length).collect();
        String::from_utf8(bytes).expect("words go in whole")
    }

    fn pop(&mut self) -> Option<Piece> {
        let slot = self.slots.pop_front()?;
        let message = slot.part.map(|part| {
            let [role, channel_name, recipient, content_type] =
                part.words.map(|word| word.map(|length| self.word(length)));
            let head = part.begins.then(|| Head {
                role: role.unwrap_or_default(),
                channel_name: channel_name.unwrap_or_default(),
                recipient,
                content_type,
            });
            Message { index: part.index, channel: part.channel, head, ends: part.ends }
        });
        let text = self.word(slot.text);
        let alternatives = self.alternatives.drain(..slot.alternatives).collect();
        self.taken += 1;
        let Slot { id, finish, log_probability, at, .. } = slot;
        Some(Piece { id, text, message, finish, log_probability, alternatives, at })
    }
}

/// The engine's side. Dropped without an end, it says that the engine is gone.
#[derive(Debug)]
pub(super) struct Writer {
    ring: Arc<Ring>,
}

/// Whether a stream can take a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// It can.
    Open,
    /// It cannot: so many wait, and so many were taken since the beginning.
    Paused {
        /// Pieces that wait.
        tokens: usize,
        /// Pieces that were taken.
        taken: u64,
    },
}

impl Writer {
    /// Whether the next piece has room. Once it had none, half of the queue must be empty.
    pub(super) fn flow(&self) -> Flow {
        let mut inner = self.ring.lock();
        inner.is_paused |= !inner.has_room(&self.ring);
        match inner.is_paused {
            false => Flow::Open,
            true => Flow::Paused { tokens: inner.slots.len(), taken: inner.taken },
        }
    }

    /// Whether the reader has gone.
    pub(super) fn is_dropped(&self) -> bool {
        self.ring.is_dropped.load(Ordering::Acquire)
    }

    /// It has its sequence.
    pub(super) fn begin(&self, begun: Begun) {
        let mut inner = self.ring.lock();
        inner.begun = Some(begun);
        let waker = inner.waker.take();
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Hands a token over. There must be room, or memory is taken.
    pub(super) fn push(&self, token: &Token, at: Duration) {
        let waker = {
            let mut inner = self.ring.lock();
            let part = token.part.map(|part| inner.take_part(&part));
            inner.bytes.extend(token.text.as_bytes());
            inner.alternatives.extend(token.alternatives);
            let Token { id, finish, log_probability, .. } = *token;
            let (alternatives, text) = (token.alternatives.len(), token.text.len());
            inner.slots.push_back(Slot { id, finish, log_probability, at, alternatives, part, text });
            inner.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// The last word; the work goes with it, so that the reader's side frees its memory.
    pub(super) fn end(self, ended: Box<Ended>) {
        let mut inner = self.ring.lock();
        inner.ended = Some(ended);
        self.close(inner);
    }

    fn close(&self, mut inner: MutexGuard<Inner>) {
        inner.is_over = true;
        let wakers = [inner.waker.take(), inner.watcher.take()];
        drop(inner);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let inner = self.ring.lock();
        if !inner.is_over {
            self.close(inner);
        }
    }
}

impl Inner {
    fn take_part(&mut self, part: &Part) -> SlotPart {
        let words = match part.begins {
            false => [None; 4],
            true => [Some(part.role), Some(part.channel_name), part.recipient, part.content_type],
        };
        let words = words.map(|word| {
            word.map(|word| {
                self.bytes.extend(word.as_bytes());
                word.len()
            })
        });
        let Part { message: index, channel, ends, begins, .. } = *part;
        SlotPart { index, channel, ends, begins, words }
    }
}

/// The reader's side. Dropping it cancels the request.
#[derive(Debug)]
pub(super) struct Reader {
    ring: Arc<Ring>,
    bell: Arc<Bell>,
}

/// What a reader finds.
#[derive(Debug)]
pub(super) enum Found {
    /// A piece or the end.
    Event(Event),
    /// The engine went away without an end.
    Gone,
}

/// Sees the engine's end of a stream, whether its reader reads or not.
#[derive(Debug)]
pub(super) struct Watch {
    ring: Arc<Ring>,
}

impl Watch {
    /// Whether the engine is done with it; the task is woken then. One task watches a stream.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.ring.lock();
        if inner.is_over {
            return Poll::Ready(());
        }
        inner.watcher = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Reader {
    pub(super) fn watch(&self) -> Watch {
        Watch { ring: self.ring.clone() }
    }

    /// How it got its sequence; nothing where it ended without one. The task is woken when that is known.
    pub(super) fn poll_begun(&mut self, context: &mut Context<'_>) -> Poll<Option<Begun>> {
        let mut inner = self.ring.lock();
        if inner.begun.is_some() || inner.is_over {
            return Poll::Ready(inner.begun);
        }
        inner.wake(context);
        Poll::Pending
    }

    /// The next event; the task is woken when there is one.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Found> {
        let mut inner = self.ring.lock();
        if let Some(piece) = inner.pop() {
            // The engine sleeps while all its streams are paused.
            let is_half_empty = inner.slots.len() <= self.ring.tokens / 2 && inner.has_room(&self.ring);
            let resumes = inner.is_paused && is_half_empty;
            inner.is_paused &= !resumes;
            drop(inner);
            if resumes {
                self.bell.ring();
            }
            return Poll::Ready(Found::Event(Event::Piece(piece)));
        }
        if let Some(ended) = inner.ended.take() {
            return Poll::Ready(Found::Event(Event::Ended(ended)));
        }
        if inner.is_over {
            return Poll::Ready(Found::Gone);
        }
        inner.wake(context);
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.ring.is_dropped.store(true, Ordering::Release);
        if !self.ring.lock().is_over {
            self.bell.ring();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    const ROOM: Room = Room { tokens: 4, piece_bytes: 40, alternatives: 2 };

    fn made() -> (Writer, Reader) {
        ring(ROOM, Arc::new(Bell::default()))
    }

    fn part(begins: bool) -> Part<'static> {
        Part {
            message: 1,
            channel: Channel::Commentary,
            channel_name: "commentary",
            role: "assistant",
            recipient: Some("functions.é"),
            content_type: None,
            begins,
            ends: None,
        }
    }

    fn push(writer: &Writer, id: u32, text: &str, part: Option<Part>) {
        let alternatives = &[(id, -0.5), (9, -1.0)][..];
        let log_probability = Some(-0.5);
        let token = Token { id, text, part, finish: None, log_probability, alternatives };
        writer.push(&token, Duration::from_secs(id.into()));
    }

    fn found(reader: &mut Reader) -> Option<Piece> {
        match reader.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Found::Event(Event::Piece(piece))) => Some(piece),
            Poll::Pending => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pieces_come_out_as_they_went_in_and_no_memory_is_taken() {
        let (writer, mut reader) = made();
        let capacities = |writer: &Writer| {
            let inner = writer.ring.lock();
            (inner.slots.capacity(), inner.bytes.capacity(), inner.alternatives.capacity())
        };
        let before = capacities(&writer);
        for id in 0..1000 {
            assert_eq!(writer.flow(), Flow::Open);
            push(&writer, id, "né", (id % 3 > 0).then(|| part(id % 3 == 1)));
            if id % 4 < 2 {
                continue;
            }
            (0..2).for_each(|_| drop(found(&mut reader).unwrap()));
        }
        assert_eq!(found(&mut reader), None);
        push(&writer, 7, "", Some(part(true)));
        let piece = found(&mut reader).unwrap();
        let message = piece.message.unwrap();
        let head = message.head.unwrap();
        assert_eq!((piece.id, piece.text.as_str(), piece.at), (7, "", Duration::from_secs(7)));
        assert_eq!(piece.alternatives, [(7, -0.5), (9, -1.0)]);
        assert_eq!((head.role.as_str(), head.channel_name.as_str()), ("assistant", "commentary"));
        assert_eq!((head.recipient.as_deref(), head.content_type), (Some("functions.é"), None));
        push(&writer, 8, "né", Some(part(false)));
        let piece = found(&mut reader).unwrap();
        assert_eq!((piece.text.as_str(), piece.message.unwrap().head), ("né", None));
        assert_eq!(capacities(&writer), before);
    }

    #[test]
    fn a_full_queue_pauses_until_half_of_it_is_empty() {
        let (writer, mut reader) = made();
        (0..4).for_each(|id| push(&writer, id, "a", None));
        assert_eq!(writer.flow(), Flow::Paused { tokens: 4, taken: 0 });
        found(&mut reader).unwrap();
        assert_eq!(writer.flow(), Flow::Paused { tokens: 3, taken: 1 });
        found(&mut reader).unwrap();
        assert_eq!(writer.flow(), Flow::Open);
    }

    #[test]
    fn long_words_fill_it_too() {
        let (writer, mut reader) = ring(Room { piece_bytes: 100, ..ROOM }, Arc::new(Bell::default()));
        let long = "x".repeat(100);
        (0..2).for_each(|id| push(&writer, id, &long, None));
        assert_eq!(writer.flow(), Flow::Paused { tokens: 2, taken: 0 });
        found(&mut reader).unwrap();
        assert_eq!(writer.flow(), Flow::Open);
    }

    #[test]
    fn a_watch_sees_the_end_that_nobody_reads() {
        let (writer, reader) = made();
        let watch = reader.watch();
        push(&writer, 1, "a", None);
        assert!(watch.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(writer);
        assert!(watch.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        drop(reader);
    }

    #[test]
    fn either_side_learns_that_the_other_has_gone() {
        let (writer, reader) = made();
        assert!(!writer.is_dropped());
        drop(reader);
        assert!(writer.is_dropped());
        let (writer, mut reader) = made();
        push(&writer, 1, "a", None);
        drop(writer);
        assert!(found(&mut reader).is_some());
        let gone = reader.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(gone, Poll::Ready(Found::Gone)));
    }
}
