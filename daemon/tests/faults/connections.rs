//! More connections than there is room for: those inside do not feel it, and in the end no descriptor is lost.

use bantam_daemon::settings::Settings;
use bantam_proto::v1;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{emptied, is_serving, panics};
use crate::support::served::{Served, asked, generate};
use crate::support::until;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A stream that is in the middle, and the ids of what it says when nobody disturbs it.
fn request() -> v1::GenerateRequest {
    let mut request = asked("", "Once", 120, 1);
    request.options.as_mut().unwrap().ignore_eos = true;
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_and_ten_thousand_opens_disturb_no_stream() {
    let before = panics();
    let served = Served::with(|settings| Settings { connections: 32, tokens_in_flight: 4, ..settings }).await;
    let mut client = served.generation().await;
    let expected = generate(&mut client, request()).await.unwrap().ids();
    let open = descriptors();
    let mut stream = client.generate(request()).await.unwrap().into_inner();
    let mut ids = Vec::new();
    let mut silent = Vec::new();
    // Everything in turn, so that the stream is always in the middle of it.
    for round in 0..100 {
        if let Some(v1::generate_response::Event::Token(token)) =
            stream.message().await.unwrap().unwrap().event
        {
            ids.push(token.id);
        }
        for number in 0..110 {
            let Ok(mut one) = UnixStream::connect(served.folder.socket()).await else { continue };
            if number % 10 == 0 {
                // Half open: greeted by half, for as long as the daemon bears it.
                let _ = one.write_all(b"PRI * HTTP").await;
                silent.push(one);
            }
        }
        assert!(descriptors() < open + silent.len() + 400, "round {round}: {} descriptors", descriptors());
    }
    assert!(silent.len() > 1000);
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(v1::generate_response::Event::Token(token)) = response.event {
            ids.push(token.id);
        }
    }
    assert_eq!(ids, expected, "not a token is lost or wrong");
    drop((silent, stream));
    until(|| descriptors() <= open + 8).await;
    is_serving(&served).await;
    emptied(&served).await;
    assert_eq!(panics(), before);
    served.end().await;
}

/// Many requests at once of one client: those that find no place are told when to come again, the others are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_requests_is_answered_or_refused() {
    let served = Served::with(|settings| Settings { slots: 2, queue: 16, requests: 64, ..settings }).await;
    let mut flood = Vec::new();
    let client = served.generation().await;
    for number in 0..300 {
        let mut client = client.clone();
        flood.push(tokio::spawn(
            async move { generate(&mut client, asked("qwen3", "Once", 4, number)).await },
        ));
    }
    let mut answered = 0;
    for one in flood {
        match one.await.unwrap() {
            Ok(_) => answered += 1,
            Err(refused) => {
                use tonic_types::StatusExt;
                assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
                let details = refused.get_error_details();
                assert!(details.retry_info().is_some() && details.quota_failure().is_some(), "{refused:?}");
            }
        }
    }
    assert!(answered > 0);
    emptied(&served).await;
    until(|| served.meters.streams.get() == 0).await;
    served.end().await;
}
