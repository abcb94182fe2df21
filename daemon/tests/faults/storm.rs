//! Many clients that load, unload, pin, generate and change the budget at random: nothing hangs, no answer comes from
//! another model, and in the end nothing is held.

use bantam_daemon::settings::Settings;
use bantam_proto::v1;
use bantam_proto::v1::model_service_client::ModelServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use super::sequences::Random;
use super::{emptied, is_serving, panics};
use crate::support::LONG;
use crate::support::served::{Served, asked, generate};

const MODELS: [&str; 4] = ["", "qwen3", "llama-tied", "mistral"];

/// What a client may hear in a storm: its model was in the way, was sent away, or has other options.
fn is_expected(status: &tonic::Status) -> bool {
    use Code::{Cancelled, DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted, Unavailable};
    [Cancelled, DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted, Unavailable]
        .contains(&status.code())
}

async fn load(
    served: &mut ModelServiceClient<Channel>,
    model: &str,
    random: &mut Random,
) -> Result<(), tonic::Status> {
    let options = v1::LoadOptions {
        slots: [None, Some(1), Some(3)][random.below(3)],
        pin: [None, None, Some(true), Some(false)][random.below(4)],
        ttl: (random.below(3) == 0).then_some(prost_types::Duration { seconds: 0, nanos: 3_000_000 }),
        ..Default::default()
    };
    let request = v1::LoadRequest { model: model.to_owned(), options: Some(options) };
    let mut stream = served.load(request).await?.into_inner();
    // Some do not wait for it.
    let most = [1, 400][random.below(2)];
    for _ in 0..most {
        if stream.message().await?.is_none() {
            break;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_every_kind_ends_with_nothing_held() {
    let before = panics();
    let served = Served::with(|settings| Settings { slots: 2, context: 64, ..settings }).await;
    let mut golden = Vec::new();
    for model in MODELS {
        golden
            .push(generate(&mut served.generation().await, asked(model, "Once", 5, 9)).await.unwrap().ids());
    }
    let request = v1::WatchResidencyRequest { figures_every: None };
    let mut watching = served.models().await.watch_residency(request).await.unwrap().into_inner();
    let mut storm = Vec::new();
    for seed in 1..=16 {
        let (mut generation, mut models) = (served.generation().await, served.models().await);
        let golden = golden.clone();
        storm.push(tokio::spawn(async move {
            let mut random = Random::new(seed);
            for step in 0..25 {
                let at = random.below(MODELS.len());
                let model = MODELS[at].to_owned();
                let result = match random.below(10) {
                    0 => models.unload(v1::UnloadRequest { model }).await.map(drop),
                    1 | 2 => load(&mut models, &model, &mut random).await,
                    3 => {
                        let bytes = [1 << 30, 1 << 30, 4 << 20, 1][random.below(4)];
                        let budgets = vec![v1::DeviceBudget { device: "ram".to_owned(), bytes }];
                        models.set_budget(v1::SetBudgetRequest { budgets }).await.map(drop)
                    }
                    4 => generation.generate(asked(&model, "Once", 30, 9)).await.map(drop),
                    _ => generate(&mut generation, asked(&model, "Once", 5, 9)).await.map(|reply| {
                        assert_eq!(reply.ids(), golden[at], "seed {seed}, step {step}: {model:?}");
                    }),
                };
                if let Err(status) = result {
                    assert!(is_expected(&status), "seed {seed}, step {step}: {status:?}");
                }
            }
        }));
    }
    for one in storm {
        tokio::time::timeout(LONG, one).await.expect("no deadlock").unwrap();
    }
    let budgets = vec![v1::DeviceBudget { device: "ram".to_owned(), bytes: 1 << 30 }];
    served.models().await.set_budget(v1::SetBudgetRequest { budgets }).await.unwrap();
    for (model, expected) in MODELS.iter().zip(&golden) {
        let reply = generate(&mut served.generation().await, asked(model, "Once", 5, 9)).await.unwrap();
        assert_eq!(reply.ids(), *expected, "{model:?}");
    }
    emptied(&served).await;
    // Whoever watched was told everything, or that something is missing; the numbers rise.
    let mut last = 0;
    let mut evicted = 0;
    while let Ok(Ok(Some(change))) =
        tokio::time::timeout(std::time::Duration::from_millis(100), watching.message()).await
    {
        assert!(change.sequence >= last, "{} after {last}", change.sequence);
        last = change.sequence;
        evicted += usize::from(matches!(change.event, Some(v1::watch_residency_response::Event::Evicted(_))));
    }
    assert!(last > 0 && evicted > 0);
    is_serving(&served).await;
    assert_eq!(panics(), before);
    served.end().await;
}
