//! What concerns the whole process: signals, descriptors, a service manager. One after the other.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

mod support;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use bantam_daemon::doors::Inherited;
use bantam_daemon::server::hear_signals;
use bantam_daemon::settings::Settings;
use rustix::process::{Pid, Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
use support::{Folder, LONG, Running, Stream, ask, channel, code, until};
use tonic::Code;

static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Streams go on for the time they have, then hear why they end; new requests hear it at once.
#[tokio::test]
async fn a_signal_drains_and_a_second_one_does_not_wait() {
    let _alone = ALONE.lock().await;
    for (signal, patience, twice) in
        [(Signal::TERM, Duration::from_millis(50), false), (Signal::INT, Duration::from_secs(3600), true)]
    {
        let folder = Folder::new();
        let server = Running::start(Settings { drain: patience, ..folder.settings() }).await;
        let hearing = tokio::spawn(hear_signals(server.drain.clone()));
        let mut stream = Stream::start(server.channel().await).await.unwrap();
        let health = watch(server.channel().await).await;
        // A signal before anybody listens would end the test.
        tokio::task::yield_now().await;
        kill_process(getpid(), signal).unwrap();
        server.drain.begun().cancelled().await;
        health.await.unwrap();
        if twice {
            stream.again().await.expect("a stream goes on while it may").expect("an answer");
            kill_process(getpid(), signal).unwrap();
        } else {
            let end = stream.from.message().await.unwrap_err();
            assert_eq!(end.code(), Code::Unavailable, "{end:?}");
            assert!(end.message().contains("the daemon is ending"), "{end:?}");
        }
        tokio::time::timeout(LONG, server.ended()).await.unwrap();
        assert!(!folder.socket().exists());
        hearing.await.unwrap().unwrap();
    }
}

/// A watcher of health, done when it saw the end.
async fn watch(channel: tonic::transport::Channel) -> tokio::task::JoinHandle<()> {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let request = HealthCheckRequest { service: "bantam.v1.Test".to_owned() };
    let mut watching = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    let first = watching.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    tokio::spawn(async move {
        let next = watching.message().await.unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
        assert!(watching.message().await.unwrap().is_none());
    })
}

/// RUSTSEC-2024-0376: no descriptors left is no reason to stop accepting.
#[tokio::test]
async fn the_doors_survive_that_descriptors_run_out() {
    let _alone = ALONE.lock().await;
    let folder = Folder::new();
    let server = Running::start(folder.settings()).await;
    let inside = server.channel().await;
    assert_eq!(code(&ask(inside.clone()).await), Code::Ok);
    let before = getrlimit(Resource::Nofile);
    let mut taken = Vec::new();
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), ..before }).unwrap();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    // One for the client's end; there is none for ours.
    drop(taken.pop());
    let outside = std::os::unix::net::UnixStream::connect(folder.socket()).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err(), "the descriptors have run out");
    assert_eq!(code(&ask(inside.clone()).await), Code::Ok, "those inside do not feel it");
    drop((outside, taken));
    let fresh = channel(&folder.socket()).await.unwrap();
    assert_eq!(code(&ask(fresh).await), Code::Ok, "and the door works again");
    setrlimit(Resource::Nofile, before).unwrap();
    server.end().await;
}

const CHILD: &str = "DOORS_TEST_CHILD";

/// The child of the next test: a server at what the manager gave. Nothing happens when it is run as a test.
#[test]
fn activated_child() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let inherited = Inherited::take().unwrap();
    assert_eq!((inherited.unix.len(), inherited.tcp.len()), (1, 0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = std::path::Path::new(&folder).join("unused.sock");
        let server =
            Running::with(Settings { socket: socket.clone(), ..Settings::default() }, inherited).await;
        assert!(server.socket.is_none() && !socket.exists(), "the manager's socket stands for the settings'");
        hear_signals(server.drain.clone()).await.unwrap();
        server.ended().await;
    });
}

#[tokio::test]
async fn a_service_manager_gives_the_socket_and_is_told() {
    let _alone = ALONE.lock().await;
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let told = UnixDatagram::bind(folder.0.join("notify")).unwrap();
    told.set_read_timeout(Some(LONG)).unwrap();
    let script =
        "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=bantam exec \"$0\" --exact activated_child";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, &folder.0)
        .env("NOTIFY_SOCKET", folder.0.join("notify"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let hear = || {
        let mut bytes = [0; 64];
        let length = told.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1");
    assert_eq!(code(&ask(channel(&folder.socket()).await.unwrap()).await), Code::Ok);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(hear(), "STOPPING=1");
    until(|| child.try_wait().unwrap().is_some()).await;
    assert!(child.wait().unwrap().success());
    assert!(folder.socket().exists(), "the manager's socket is the manager's to remove");
}
