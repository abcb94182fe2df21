//! The program itself: signals while it works, a second one, and what one that was killed leaves behind.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bantam_proto::v1;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

use crate::support::served::{asked, generate};
use crate::support::{Folder, ask, channel, until};

/// A running `bantamd` with a socket in a folder, ended with the test.
struct Program(Child);

impl Program {
    fn start(folder: &Folder, more: &[&str]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_bantamd"))
            .env_clear()
            .env("HOME", &folder.0)
            .arg("--socket")
            .arg(folder.socket())
            .args(["--models-native-files", "false", "--threads", "1", "--schedule-context", "256"])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Program(program)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Its exit status, and what it wrote.
    async fn ended(&mut self) -> (Option<i32>, String) {
        let mut stderr = self.0.stderr.take().unwrap();
        // Read beside the wait: a full pipe would hold it up.
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text)
        });
        until(|| self.0.try_wait().unwrap().is_some()).await;
        (self.0.wait().unwrap().code(), reading.join().unwrap().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn connected(folder: &Folder) -> Channel {
    loop {
        if let Ok(channel) = channel(&folder.socket()).await
            && ask(channel.clone()).await.is_ok()
        {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn endless() -> v1::GenerateRequest {
    let mut request = asked("", "Once", 250, 1);
    request.options.as_mut().unwrap().ignore_eos = true;
    request
}

/// Streams that nobody reads keep nobody: they have the time that the setting gives them.
#[tokio::test]
async fn a_signal_under_load_ends_the_program_in_its_time() {
    let folder = Folder::new();
    let mut program = Program::start(&folder, &["--limits-drain", "1s", "--schedule-tokens-in-flight", "1"]);
    let channel = connected(&folder).await;
    let mut client = GenerationServiceClient::new(channel.clone());
    let expected = generate(&mut client, endless()).await.unwrap().tokens.len();
    let mut streams = Vec::new();
    for _ in 0..24 {
        streams.push(client.generate(endless()).await.unwrap().into_inner());
    }
    streams[0].message().await.unwrap().unwrap();
    program.signal(Signal::TERM);
    // Some are answered to their end, others hear why not.
    let mut reading = Vec::new();
    for mut stream in streams {
        reading.push(tokio::spawn(async move {
            let mut count = 0;
            loop {
                match stream.message().await {
                    Ok(Some(_)) => count += 1,
                    Ok(None) => return (count, None),
                    Err(status) => return (count, Some(status.code())),
                }
            }
        }));
    }
    let (code, log) = program.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    for one in reading {
        let (count, code) = one.await.unwrap();
        match code {
            None => assert!(count >= expected, "{count} messages without an error"),
            Some(code) => {
                assert!([tonic::Code::Unavailable, tonic::Code::Unknown].contains(&code), "{code:?}: {log}");
            }
        }
    }
    assert!(!folder.socket().exists(), "the socket goes with it");
}

#[tokio::test]
async fn one_daemon_per_socket_and_the_next_one_after_a_kill() {
    let folder = Folder::new();
    let mut first = Program::start(&folder, &[]);
    let channel = connected(&folder).await;
    let (code, log) = Program::start(&folder, &[]).ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("bantam.sock"), "it says which socket: {log}");
    assert!(ask(channel).await.is_ok(), "the first does not feel it");
    first.signal(Signal::KILL);
    first.ended().await;
    assert!(folder.socket().exists(), "it could not clean up");
    let mut second = Program::start(&folder, &[]);
    let mut client = GenerationServiceClient::new(connected(&folder).await);
    assert_eq!(generate(&mut client, asked("", "Once", 3, 1)).await.unwrap().tokens.len(), 3);
    second.signal(Signal::TERM);
    let (code, log) = second.ended().await;
    assert_eq!(code, Some(0), "{log}");
}

/// So little that nothing fits is said at the start, or by each request; it is never a crash.
#[tokio::test]
async fn a_machine_without_room_is_told_so() {
    let folder = Folder::new();
    let mut program = Program::start(&folder, &["--models-ram-budget", "1KiB"]);
    let mut client = GenerationServiceClient::new(connected(&folder).await);
    let refused = generate(&mut client, asked("", "Once", 3, 1)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    program.signal(Signal::INT);
    let (code, log) = program.ended().await;
    assert_eq!(code, Some(0), "{log}");
}
