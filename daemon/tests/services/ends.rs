//! The daemon ends while it has work.

use tonic::Code;

use super::{Served, asked};

#[tokio::test]
async fn a_drain_lets_streams_go_on_and_then_ends_them() {
    let served = Served::with(|settings| bantam_daemon::settings::Settings {
        drain: std::time::Duration::from_millis(50),
        tokens_in_flight: 1,
        ..settings
    })
    .await;
    let mut client = served.generation().await;
    let mut request = asked("", "Once", 250, 1);
    request.options.as_mut().unwrap().ignore_eos = true;
    let mut stream = client.generate(request.clone()).await.unwrap().into_inner();
    stream.message().await.unwrap();
    served.drain.ask();
    let refused = loop {
        match client.generate(request.clone()).await {
            Err(refused) => break refused,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    // All of the stream, or the word that the daemon ends.
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(ended) => {
                assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
                break;
            }
        }
    }
    drop((stream, client));
    served.ended().await;
}
