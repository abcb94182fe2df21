//! Floods and silence: what one client may take, and that others do not feel it.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

mod support;

use std::time::Duration;

use bantam_daemon::metrics::{ByDoor, ByReason};
use bantam_daemon::settings::{Bytes, Settings};
use support::{Folder, Running, Stream, ask, ask_with, code, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Code;
use tonic_types::StatusExt;

#[tokio::test]
async fn headers_beyond_the_limit_are_refused_and_the_connection_lives() {
    let folder = Folder::new();
    let server = Running::start(Settings { header_bytes: Bytes(4 << 10), ..folder.settings() }).await;
    let channel = server.channel().await;
    let long = "x".repeat(8 << 10);
    let answer = ask_with(channel.clone(), Some(("x-long", &long))).await;
    assert_ne!(code(&answer), Code::Ok);
    assert_eq!(code(&ask(channel).await), Code::Ok);
    server.end().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let folder = Folder::new();
    let server = Running::start(Settings { connections: 2, ..folder.settings() }).await;
    let first = server.channel().await;
    let second = server.channel().await;
    assert_eq!(code(&ask(first.clone()).await), Code::Ok);
    assert_eq!(code(&ask(second.clone()).await), Code::Ok);
    let status = ask(server.channel().await).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("limits.connections"), "{status:?}");
    let details = status.get_error_details();
    assert!(details.retry_info().is_some() && details.quota_failure().is_some(), "{details:?}");
    assert_eq!(code(&ask(first).await), Code::Ok, "those inside do not feel it");
    drop(second);
    let count = || server.meters.connections.get_or_create(&ByDoor { door: "unix" }).get();
    until(|| count() <= 1).await;
    assert_eq!(code(&ask(server.channel().await).await), Code::Ok);
    server.end().await;
}

#[tokio::test]
async fn a_thousand_connections_take_no_more_than_their_place() {
    let folder = Folder::new();
    let server = Running::start(Settings { connections: 4, ..folder.settings() }).await;
    let inside = server.channel().await;
    assert_eq!(code(&ask(inside.clone()).await), Code::Ok);
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(UnixStream::connect(folder.socket()).await.unwrap());
    }
    let dropped = || {
        let reason = ByReason { reason: "TOO_MANY_CONNECTIONS" };
        server.meters.connections_dropped.get_or_create(&reason).get()
    };
    until(|| dropped() >= 200 - 4 - 16).await;
    assert_eq!(code(&ask(inside).await), Code::Ok);
    server.end().await;
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_for_a_place() {
    let folder = Folder::new();
    let server = Running::start(Settings { requests: 2, ..folder.settings() }).await;
    let first = Stream::start(server.channel().await).await.unwrap();
    let second = Stream::start(server.channel().await).await.unwrap();
    let status = ask(server.channel().await).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("limits.requests"), "{status:?}");
    drop((first, second));
    until(|| server.meters.streams.get() == 0).await;
    assert_eq!(code(&ask(server.channel().await).await), Code::Ok);
    server.end().await;
}

/// Time is not waited for: it passes when nothing else is to do.
#[tokio::test(start_paused = true)]
async fn silent_connections_are_ended() {
    let folder = Folder::new();
    let server = Running::start(Settings { handshake: Duration::from_secs(5), ..folder.settings() }).await;
    let began = tokio::time::Instant::now();
    for said in [&b""[..], b"PRI * HTTP"] {
        let mut half = UnixStream::connect(folder.socket()).await.unwrap();
        half.write_all(said).await.unwrap();
        let mut rest = Vec::new();
        half.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    }
    assert!(began.elapsed() < Duration::from_secs(30), "by their own time, and not by another's");
    let reason = ByReason { reason: "HANDSHAKE_TOO_SLOW" };
    assert_eq!(server.meters.connections_dropped.get_or_create(&reason).get(), 2);
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn connections_that_show_no_token_are_ended() {
    let folder = Folder::new();
    let tcp_tokens = folder.file("tokens", "ann: 0123456789abcdef\n");
    let tcp_listen = vec![([127, 0, 0, 1], 0).into()];
    let settings = Settings { tcp_tokens, tcp_listen, keep_alive: Duration::ZERO, ..folder.settings() };
    let server = Running::start(settings).await;
    let mut idle = tokio::net::TcpStream::connect(server.addresses[0]).await.unwrap();
    // The greeting and empty settings: as far as a client comes without a request.
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    assert!(!rest.is_empty(), "it was greeted back");
    until(|| server.meters.connections.get_or_create(&ByDoor { door: "tcp" }).get() == 0).await;
    server.end().await;
}

/// CVE-2023-44487: streams that are opened and reset at once end the connection, and nobody else's.
#[tokio::test]
async fn rapid_resets_end_their_connection_alone() {
    let folder = Folder::new();
    let server = Running::start(folder.settings()).await;
    let inside = server.channel().await;
    assert_eq!(code(&ask(inside.clone()).await), Code::Ok);
    let mut hostile = UnixStream::connect(folder.socket()).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1u32..4000).step_by(2) {
        // HEADERS with ":method: POST", ":scheme: http", ":path: /" from the static table; then RST_STREAM.
        bytes.extend([0, 0, 3, 1, 4]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend([0x83, 0x86, 0x84]);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(8u32.to_be_bytes());
    }
    // The connection may be ended while this is still being written.
    let _ = hostile.write_all(&bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(support::LONG, hostile.read_to_end(&mut answer)).await.expect("it is ended");
    assert_eq!(code(&ask(inside).await), Code::Ok);
    server.end().await;
}
