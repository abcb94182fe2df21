//! What the daemon is measured against: a server of tonic alone that sends messages which were made before. A thread
//! hands them over at the pace of the engine, one to every open stream per step, through tokio's own queue.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread;

use bantam_daemon::scheduler::paced::Beat;
use bantam_proto::v1;
use bantam_proto::v1::generation_service_server::GenerationService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Empty, Stream};
use tonic::{Request, Response, Status, Streaming};

type Message = Result<v1::GenerateResponse, Status>;

/// Messages that may be on their way to a stream: as many as the daemon's setting has it.
const IN_FLIGHT: usize = 64;

/// The server.
pub(crate) struct Bare {
    messages: Arc<Vec<v1::GenerateResponse>>,
    streams: std_mpsc::Sender<mpsc::Sender<Message>>,
    /// Streams are not fed by the thread: all messages are ready at once.
    is_ready: Arc<AtomicBool>,
}

impl Bare {
    /// Every stream gets these messages: one before the first step, then one for each, and the last one at once.
    pub(crate) fn new(
        messages: Vec<v1::GenerateResponse>,
        beat: Arc<dyn Beat>,
        is_ready: Arc<AtomicBool>,
    ) -> Self {
        let (messages, (streams, opened)) = (Arc::new(messages), std_mpsc::channel());
        let fed = messages.clone();
        thread::spawn(move || feed(&fed, &*beat, &opened));
        Bare { messages, streams, is_ready }
    }
}

/// As the engine's thread does: waits while nobody asks, else makes steps.
fn feed(
    messages: &[v1::GenerateResponse],
    beat: &dyn Beat,
    opened: &std_mpsc::Receiver<mpsc::Sender<Message>>,
) {
    let mut open: Vec<(mpsc::Sender<Message>, usize)> = Vec::new();
    loop {
        if open.is_empty() {
            match opened.recv() {
                Ok(stream) => open.push((stream, 0)),
                Err(_) => return,
            }
        }
        open.extend(opened.try_iter().map(|stream| (stream, 0)));
        beat.beat();
        open.retain_mut(|(stream, at)| {
            let begin = *at;
            *at += if begin == 0 { 2 } else { 1 };
            *at += usize::from(*at + 1 == messages.len());
            let sent =
                messages[begin..*at].iter().all(|message| stream.blocking_send(Ok(message.clone())).is_ok());
            sent && *at < messages.len()
        });
    }
}

fn none<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the bare server only generates"))
}

#[tonic::async_trait]
impl GenerationService for Bare {
    type GenerateStream = Pin<Box<dyn Stream<Item = Message> + Send>>;

    async fn generate(
        &self,
        _: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        if self.is_ready.load(Ordering::Relaxed) {
            let messages = (*self.messages).clone();
            return Ok(Response::new(Box::pin(tokio_stream::iter(messages.into_iter().map(Ok)))));
        }
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        self.streams.send(sender).map_err(|_| Status::internal("its thread has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ChatStream = Empty<Result<v1::ChatResponse, Status>>;

    async fn chat(&self, _: Request<v1::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        none()
    }

    type SessionStream = Empty<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        _: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        none()
    }

    async fn tokenize(
        &self,
        _: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        none()
    }

    async fn detokenize(
        &self,
        _: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        none()
    }

    async fn score(&self, _: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        none()
    }

    async fn embed(&self, _: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        none()
    }
}
