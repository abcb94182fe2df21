//! Clients that go without a word or do not read: what they had is free again, and nobody else feels it.

use std::time::Duration;

use bantam_daemon::settings::Settings;
use bantam_proto::v1;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{emptied, is_serving, panics, released};
use crate::support::served::{Reply, Served, asked, generate};
use crate::support::{LONG, narrow_channel, until};

/// One sequence, and pauses as soon as two tokens are not read: a stream that nobody reads does not end by itself.
async fn served() -> Served {
    Served::with(|settings| Settings { slots: 1, tokens_in_flight: 2, ..settings }).await
}

async fn narrow(socket: &std::path::Path) -> GenerationServiceClient<Channel> {
    GenerationServiceClient::new(narrow_channel(socket).await)
}

fn endless() -> v1::GenerateRequest {
    let mut request = asked("", "Once", 250, 1);
    request.options.as_mut().unwrap().ignore_eos = true;
    request
}

/// A stream of which nothing but its beginning is read.
async fn stalled(client: &mut GenerationServiceClient<Channel>) -> Streaming<v1::GenerateResponse> {
    let mut stream = client.generate(endless()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    stream
}

/// The place of a client that has gone is free: there is one, so another request would wait for it.
async fn place_is_free(served: &Served) {
    let mut client = served.generation().await;
    let next = generate(&mut client, asked("", "b", 1, 1));
    tokio::time::timeout(LONG, next).await.expect("there is a place").unwrap();
    released(served).await;
    until(|| served.meters.streams.get() == 0).await;
}

/// How a connection may end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// Unread bytes are thrown away, which resets it.
    Reset,
    /// Nothing more is sent, but the connection stays.
    HalfClosed,
    /// Both directions end.
    Closed,
}

/// Between a client and the daemon: ends the daemon's side as it is told, while the client's stays.
async fn tunnel(
    socket: std::path::PathBuf,
    listener: UnixListener,
    end: tokio::sync::oneshot::Receiver<End>,
) {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut daemon = UnixStream::connect(&socket).await.unwrap();
    let ended = {
        let copying = tokio::io::copy_bidirectional(&mut client, &mut daemon);
        tokio::select! {
            _ = copying => panic!("the client ended first"),
            end = end => end.unwrap(),
        }
    };
    match ended {
        End::Closed => drop(daemon),
        End::HalfClosed => {
            daemon.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = daemon.read_to_end(&mut rest).await;
        }
        End::Reset => {
            // Something that the daemon sent lies there unread: it answers each of these.
            let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
            daemon.write_all(&ping).await.unwrap();
            daemon.readable().await.unwrap();
            drop(daemon);
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_frees_its_place_however_it_goes() {
    let before = panics();
    let served = served().await;
    // By the call alone: the connection lives on.
    let mut client = narrow(&served.folder.socket()).await;
    let stream = stalled(&mut client).await;
    drop(stream);
    place_is_free(&served).await;
    for end in [End::Reset, End::HalfClosed, End::Closed] {
        let path = served.folder.0.join("tunnel.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let tunnel = tokio::spawn(tunnel(served.folder.socket(), listener, told));
        let mut client = narrow(&path).await;
        let stream = stalled(&mut client).await;
        tell.send(end).unwrap();
        place_is_free(&served).await;
        tokio::time::timeout(LONG, tunnel).await.expect("the daemon ends its side").unwrap();
        drop((stream, client));
    }
    emptied(&served).await;
    assert_eq!(panics(), before);
    served.end().await;
}

/// Cancelled at every moment of a request's life, the load of its model included.
#[tokio::test]
async fn a_request_may_be_abandoned_at_any_moment() {
    let served = Served::with(|settings| Settings { slots: 1, ..settings }).await;
    let mut client = served.generation().await;
    for polls in 0..60_u32 {
        let mut one = client.clone();
        let mut request = Box::pin(async move { generate(&mut one, asked("qwen3", "Once", 4, 1)).await });
        for _ in 0..polls {
            tokio::select! {
                biased;
                _ = &mut request => break,
                () = tokio::task::yield_now() => {}
            }
        }
        drop(request);
        if polls % 8 == 0 {
            let unload = v1::UnloadRequest { model: "qwen3".to_owned() };
            let _ = served.models().await.unload(unload).await;
        }
    }
    assert_eq!(generate(&mut client, asked("qwen3", "Once", 4, 1)).await.unwrap().tokens.len(), 4);
    emptied(&served).await;
    until(|| served.meters.streams.get() == 0).await;
    served.end().await;
}

/// Others go on beside a reader that takes nothing; it loses its stream, its place, and its hold on the model, whether
/// it ever reads again or not.
#[tokio::test]
async fn a_reader_that_takes_nothing_loses_its_stream_and_slows_nobody() {
    let served = Served::with(|settings| Settings {
        slots: 2,
        tokens_in_flight: 2,
        slow_reader: Duration::from_millis(300),
        ..settings
    })
    .await;
    let mut other = served.generation().await;
    let alone = generate(&mut other, endless()).await.unwrap().ids();
    let mut client = narrow(&served.folder.socket()).await;
    let mut stream = stalled(&mut client).await;
    assert_eq!(generate(&mut other, endless()).await.unwrap().ids(), alone, "the same tokens beside it");
    // Nobody has read, and yet the model can leave.
    let unload = served.models().await.unload(v1::UnloadRequest { model: String::new() }).await;
    assert!(unload.is_ok(), "{unload:?}");
    emptied(&served).await;
    let mut read = Reply::default();
    let end = loop {
        match stream.message().await {
            Ok(Some(response)) => {
                if let Some(v1::generate_response::Event::Token(token)) = response.event {
                    read.tokens.push(token);
                }
            }
            Ok(None) => panic!("the stream was not lost: {} tokens", read.tokens.len()),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    assert!(end.message().contains("read the stream"), "{end:?}");
    assert_eq!(read.ids()[..], alone[..read.tokens.len()], "what was sent before is right");
    is_serving(&served).await;
    served.end().await;
}

/// A reader that takes a little now and then is slow, but not gone: it gets everything.
#[tokio::test]
async fn a_slow_reader_gets_all_of_its_text() {
    let served = served().await;
    let mut fast = served.generation().await;
    let mut request = endless();
    request.max_new_tokens = Some(60);
    let expected = generate(&mut fast, request.clone()).await.unwrap();
    let path = served.folder.0.join("drip.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let socket = served.folder.socket();
    let drip = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let daemon = UnixStream::connect(&socket).await.unwrap();
        let ((mut from_client, mut to_client), (mut from_daemon, mut to_daemon)) =
            (client.into_split(), daemon.into_split());
        let there = async { tokio::io::copy(&mut from_client, &mut to_daemon).await.map(drop) };
        let back = async {
            // A byte at a time.
            let mut byte = [0; 1];
            while from_daemon.read(&mut byte).await? > 0 {
                to_client.write_all(&byte).await?;
                tokio::task::yield_now().await;
            }
            Ok::<_, std::io::Error>(())
        };
        let _ = tokio::join!(there, back);
    });
    let mut slow = narrow(&path).await;
    let reply = generate(&mut slow, request).await.unwrap();
    assert_eq!((reply.ids(), reply.text()), (expected.ids(), expected.text()));
    drip.abort();
    drop(slow);
    released(&served).await;
    served.end().await;
}
