//! The unix socket: whose it is, who may use it, and what happens to what already lies there.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

mod support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use support::{Folder, Running, ask, channel, code, mode, open};
use tonic::Code;
use tonic_types::StatusExt;

#[tokio::test]
async fn the_socket_is_private_answers_and_goes_at_the_end() {
    let folder = Folder::new();
    let server = Running::start(folder.settings()).await;
    let socket = folder.socket();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(code(&ask(server.channel().await).await), Code::Ok);
    server.end().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_second_daemon_is_told_who_has_the_socket() {
    let folder = Folder::new();
    let server = Running::start(folder.settings()).await;
    let error = open(folder.settings()).await.unwrap_err().to_string();
    let pid = std::process::id();
    assert!(error.contains(&format!("another daemon serves this socket (process {pid})")), "{error}");
    assert_eq!(code(&ask(server.channel().await).await), Code::Ok, "the first goes on");
    server.end().await;
    open(folder.settings()).await.expect("the lock is free again");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let folder = Folder::new();
    drop(UnixListener::bind(folder.socket()).unwrap());
    let server = Running::start(folder.settings()).await;
    assert_eq!(code(&ask(server.channel().await).await), Code::Ok);
    server.end().await;
    let _living = UnixListener::bind(folder.socket()).unwrap();
    let error = open(folder.settings()).await.unwrap_err().to_string();
    assert!(error.contains("another daemon serves this socket (whose process is not known)"), "{error}");
}

#[tokio::test]
async fn only_a_socket_is_ever_removed() {
    let folder = Folder::new();
    let file = folder.file("file", "precious");
    for (what, make) in [("a file", false), ("a link", true)] {
        let _ = std::fs::remove_file(folder.socket());
        match make {
            true => symlink(&file, folder.socket()).unwrap(),
            false => std::fs::write(folder.socket(), "precious").unwrap(),
        }
        let error = open(folder.settings()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("found {what}")), "{error}");
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    // Somebody else's file in its place is not removed at the end either.
    std::fs::remove_file(folder.socket()).unwrap();
    let server = Running::start(folder.settings()).await;
    std::fs::remove_file(folder.socket()).unwrap();
    std::fs::write(folder.socket(), "new").unwrap();
    server.end().await;
    assert_eq!(std::fs::read_to_string(folder.socket()).unwrap(), "new");
}

#[tokio::test]
async fn folders_that_others_write_to_are_refused() {
    let folder = Folder::new();
    for bits in [0o770, 0o777, 0o1777] {
        mode(&folder.0, bits);
        let error = open(folder.settings()).await.unwrap_err().to_string();
        assert!(error.contains("expected a folder that nobody else can write to"), "{error}");
    }
    mode(&folder.0, 0o700);
    let inner = folder.0.join("inner");
    std::fs::create_dir(&inner).unwrap();
    mode(&folder.0, 0o777);
    let mut settings = folder.settings();
    settings.socket = inner.join("bantam.sock");
    let error = open(settings.clone()).await.unwrap_err().to_string();
    assert!(error.contains("found mode 777"), "a folder above counts too: {error}");
    mode(&folder.0, 0o700);
    settings.socket = folder.0.join("x".repeat(120));
    let error = open(settings).await.unwrap_err().to_string();
    assert!(error.contains("at most 107 bytes"), "{error}");
}

#[tokio::test]
async fn links_and_folders_of_other_users_are_refused() {
    let folder = Folder::new();
    let real = folder.0.join("real");
    std::fs::create_dir(&real).unwrap();
    mode(&real, 0o700);
    let link = folder.0.join("link");
    symlink(&real, &link).unwrap();
    let mut settings = folder.settings();
    settings.socket = link.join("bantam.sock");
    open(settings.clone()).await.expect("one's own link is fine");
    if std::os::unix::fs::lchown(&link, Some(NOBODY), None).is_err() {
        println!("skipped: only root can give files away");
        return;
    }
    let error = open(settings.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("found user {NOBODY}'s")), "{error}");
    std::os::unix::fs::chown(&real, Some(NOBODY), None).unwrap();
    settings.socket = real.join("bantam.sock");
    let error = open(settings).await.unwrap_err().to_string();
    assert!(error.contains("expected a folder of user"), "{error}");
}

const NOBODY: u32 = 65534;

/// Row 11 of the immunities: a second user gets PERMISSION_DENIED, even where the socket's mode lets it in. The peer's
/// user is that of the thread that connects.
#[tokio::test]
async fn another_user_is_told_that_it_may_not() {
    let folder = Folder::new();
    let server = Running::start(folder.settings()).await;
    mode(&folder.0, 0o711);
    mode(&folder.socket(), 0o666);
    let socket = folder.socket();
    let client = std::thread::spawn(move || {
        let nobody = rustix::thread::Uid::from_raw(NOBODY);
        if rustix::thread::set_thread_res_uid(nobody, nobody, nobody).is_err() {
            return None;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Some(runtime.block_on(async { ask(channel(&socket).await.unwrap()).await }))
    });
    let joined = tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
    let Some(answer) = joined else {
        println!("skipped: this process cannot become another user");
        return;
    };
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("found user 65534"), "{status:?}");
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "OTHER_USER");
    server.end().await;
}
