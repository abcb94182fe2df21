//! What comes of a generation, in the protocol's words: a stream of events that ends the request when it is dropped.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bantam_model::generate::Finish;
use bantam_model::reply::Reply;
use bantam_model::reply::part::{Channel, End, Part};
use bantam_proto::v1;
use tokio_stream::Stream;
use tonic::Status;

use crate::metrics::Meters;
use crate::models::Lease;
use crate::models::views::duration;
use crate::scheduler::{Answer, Ended, Event, Message, Piece, Work};
use crate::status::Trouble;

/// `Generate` and `Chat` say the same in messages of their own.
pub(crate) trait Says: Send + Unpin + 'static {
    /// Whether the reply is put together at the end.
    const IS_CHAT: bool;
    fn started(started: v1::Started) -> Self;
    fn token(token: v1::Token) -> Self;
    fn finished(finished: v1::Finished) -> Self;
}

macro_rules! says {
    ($response:ident, $events:ident, $is_chat:literal) => {
        impl Says for v1::$response {
            const IS_CHAT: bool = $is_chat;
            fn started(started: v1::Started) -> Self {
                v1::$response { event: Some(v1::$events::Event::Started(started)) }
            }
            fn token(token: v1::Token) -> Self {
                v1::$response { event: Some(v1::$events::Event::Token(token)) }
            }
            fn finished(finished: v1::Finished) -> Self {
                v1::$response { event: Some(v1::$events::Event::Finished(finished)) }
            }
        }
    };
}
says!(GenerateResponse, generate_response, false);
says!(ChatResponse, chat_response, true);

/// A number of tokens as the protocol has it.
pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The model of a generation, until the engine is done with it. A reader that stands still does not keep it.
#[derive(Debug, Clone)]
struct Hold(Arc<Mutex<Option<Arc<Lease>>>>);

impl Hold {
    fn until_over(lease: Arc<Lease>, answer: &Answer) -> Self {
        let (hold, over) = (Hold(Arc::new(Mutex::new(Some(lease)))), answer.over());
        let held = hold.clone();
        tokio::spawn(async move {
            over.await;
            held.end();
        });
        hold
    }

    /// Gives the model back, once. Whoever comes second finds it done.
    fn end(&self) {
        let mut lease = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lease) = lease.take()
            && lease.desk.is_broken()
        {
            lease.broke();
        }
    }
}

/// The events of one generation.
pub(crate) struct Replies<R> {
    answer: Answer,
    hold: Hold,
    meters: Arc<Meters>,
    started: Option<v1::Started>,
    reply: Reply,
    finish: Option<Finish>,
    pace: Pace,
    of: std::marker::PhantomData<R>,
}

/// When tokens came.
#[derive(Debug, Default)]
struct Pace {
    first: Option<Duration>,
    last: Option<Duration>,
    longest: Duration,
    tokens: u32,
}

impl Pace {
    fn take(&mut self, at: Duration, meters: &Meters) {
        if let Some(last) = self.last {
            let gap = at.saturating_sub(last);
            self.longest = self.longest.max(gap);
            meters.token_seconds.observe(gap.as_secs_f64());
        }
        self.first = self.first.or(Some(at));
        self.last = Some(at);
        self.tokens += 1;
    }

    /// The mean from one token to the next.
    fn mean(&self) -> Option<Duration> {
        let span = self.last?.saturating_sub(self.first?);
        (self.tokens > 1).then(|| span / (self.tokens - 1))
    }
}

impl<R: Says> Replies<R> {
    pub(super) fn new(answer: Answer, lease: Arc<Lease>, meters: Arc<Meters>, started: v1::Started) -> Self {
        Replies {
            hold: Hold::until_over(lease, &answer),
            answer,
            meters,
            started: Some(started),
            reply: Reply::default(),
            finish: None,
            pace: Pace::default(),
            of: std::marker::PhantomData,
        }
    }

    fn piece(&mut self, piece: Piece) -> R {
        self.pace.take(piece.at, &self.meters);
        self.finish = piece.finish.or(self.finish);
        if R::IS_CHAT
            && let Some(message) = &piece.message
        {
            self.reply.push_part(&part(message), &piece.text);
        }
        R::token(token(piece))
    }

    fn end(&mut self, ended: Ended) -> Result<R, Status> {
        self.hold.end();
        if let Err(failure) = ended.outcome {
            return Err(Trouble::from(failure).into());
        }
        let work = ended.work.as_ref();
        let by_turn = |work: &Work| match work {
            Work::Generate(turn) => turn.finish(),
            _ => None,
        };
        let finish = self.finish.or_else(|| work.and_then(by_turn)).unwrap_or(Finish::Length);
        let usage = v1::Usage {
            prompt_tokens: number(work.map_or(0, Work::prompt_tokens)),
            cached_tokens: number(ended.reused_tokens),
            new_tokens: number(work.map_or(0, Work::new_tokens)),
        };
        let timings = v1::Timings {
            queue: Some(duration(ended.timings.queue)),
            prefill: Some(duration(ended.timings.prefill)),
            decode: Some(duration(ended.timings.decode)),
            per_token: self.pace.mean().map(duration),
            per_token_max: self.pace.mean().map(|_| duration(self.pace.longest)),
            paused: Some(duration(ended.timings.paused)),
        };
        count(&self.meters, &ended);
        let reply = R::IS_CHAT.then(|| message(&self.reply));
        let reason = match finish {
            Finish::Stop => v1::FinishReason::Stop,
            Finish::Length => v1::FinishReason::Length,
            Finish::ToolCalls => v1::FinishReason::ToolCalls,
        };
        Ok(R::finished(v1::Finished {
            reason: reason.into(),
            usage: Some(usage),
            timings: Some(timings),
            reply,
        }))
    }
}

/// Counts a request that came to its end.
pub(super) fn count(meters: &Meters, ended: &Ended) {
    let Ended { timings, reused_tokens, work, .. } = ended;
    let (read, new) = work.as_ref().map_or((0, 0), |work| (work.prompt_tokens(), work.new_tokens()));
    meters.prompt_tokens.inc_by(read.saturating_sub(*reused_tokens) as u64);
    meters.cached_tokens.inc_by(*reused_tokens as u64);
    meters.generated_tokens.inc_by(new as u64);
    meters.queue_seconds.observe(timings.queue.as_secs_f64());
    meters.first_token_seconds.observe((timings.queue + timings.prefill).as_secs_f64());
    tracing::debug!(read, reused_tokens, new, ?timings, "answered");
}

impl<R: Says> Stream for Replies<R> {
    type Item = Result<R, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(mut started) = this.started.take() {
            let Poll::Ready(begun) = this.answer.poll_begun(context) else {
                this.started = Some(started);
                return Poll::Pending;
            };
            // A request that ends in the queue has not started.
            if let Some(begun) = begun {
                started.queue = Some(duration(begun.queue));
                started.cached_tokens = number(begun.reused_tokens);
                return Poll::Ready(Some(Ok(R::started(started))));
            }
        }
        let Some(event) = ready!(this.answer.poll_event(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(match event {
            Event::Piece(piece) => Ok(this.piece(piece)),
            Event::Ended(ended) => this.end(*ended),
        }))
    }
}

/// The words stand where a message begins, and a reply remembers them.
fn part(message: &Message) -> Part<'_> {
    let head = message.head.as_ref();
    Part {
        message: message.index,
        channel: message.channel,
        channel_name: head.map_or("", |head| &head.channel_name),
        role: head.map_or("", |head| &head.role),
        recipient: head.and_then(|head| head.recipient.as_deref()),
        content_type: head.and_then(|head| head.content_type.as_deref()),
        begins: head.is_some(),
        ends: message.ends,
    }
}

fn token(piece: Piece) -> v1::Token {
    let Piece { id, text, message, log_probability, alternatives, .. } = piece;
    let alternative = |(id, log_probability)| v1::Alternative { id, log_probability };
    let alternatives = alternatives.into_iter().map(alternative).collect();
    let Some(message) = message else {
        return v1::Token { id, text, log_probability, alternatives, ..v1::Token::default() };
    };
    let ends = match message.ends {
        None => v1::MessageEnd::Unspecified,
        Some(End::Closed) => v1::MessageEnd::Closed,
        Some(End::Return) => v1::MessageEnd::Return,
        Some(End::Call) => v1::MessageEnd::Call,
        Some(End::Cut) => v1::MessageEnd::Cut,
    };
    let channel = match message.channel {
        Channel::Analysis => v1::Channel::Analysis,
        Channel::Commentary => v1::Channel::Commentary,
        Channel::Final => v1::Channel::Final,
        Channel::Other => v1::Channel::Other,
    };
    let begins = message.head.map(|head| v1::MessageHead {
        channel: channel.into(),
        channel_name: head.channel_name,
        // Nearly always it is this one.
        role: if head.role == "assistant" { String::new() } else { head.role },
        recipient: head.recipient.unwrap_or_default(),
        content_type: head.content_type.unwrap_or_default(),
    });
    let (message, ends) = (number(message.index), ends.into());
    v1::Token { id, text, log_probability, alternatives, message, begins, ends }
}

/// A reply as the next request of the conversation takes it.
fn message(reply: &Reply) -> v1::ChatMessage {
    let thinking = reply.thinking();
    let call = |call: bantam_model::reply::ToolCall<'_>| v1::ToolCall {
        id: String::new(),
        name: call.name.to_owned(),
        arguments: call.arguments.to_owned(),
    };
    let tool_calls: Vec<_> = reply.tool_calls().map(call).collect();
    // Beside a call, templates take either words or thoughts, and refuse both.
    let has_both = !tool_calls.is_empty() && !thinking.is_empty();
    v1::ChatMessage {
        role: "assistant".to_owned(),
        content: Some(if has_both { String::new() } else { reply.content() }),
        thinking: Some(thinking).filter(|thinking| !thinking.is_empty()),
        tool_calls,
        ..v1::ChatMessage::default()
    }
}
