//! Whoever attacks a daemon, and whatever breaks: clients that vanish or stall, floods, storms, messages that lie,
//! numbers out of range. Always the same is expected: an answer that names what is wrong, nobody else feels it, nothing
//! is kept.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod connections;
mod immunity;
mod mapped;
mod messages;
mod numbers;
mod process;
mod raw;
mod sequences;
mod storm;

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bantam_proto::v1;
use support::LONG;
use support::served::Served;
use tonic::Status;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts the panics of the daemon's threads and tasks from the first call on; those of tests are none of it.
fn panics() -> usize {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_ours = panic.location().is_none_or(|at| !at.file().contains("tests/"));
            PANICS.fetch_add(usize::from(is_ours), Ordering::Relaxed);
            usual(panic);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

/// What a daemon holds at a moment: its models by handle with their state and references, its budget and its use.
#[derive(Debug, Clone, PartialEq)]
struct Holdings {
    models: Vec<(String, v1::ModelState, u32)>,
    devices: Vec<v1::DeviceUse>,
}

impl Holdings {
    async fn of(served: &Served) -> Self {
        let mut client = served.models().await;
        let listed = client.list(v1::ModelServiceListRequest::default()).await.unwrap().into_inner();
        let mut models: Vec<_> =
            listed.models.iter().map(|model| (model.id.clone(), model.state(), model.references)).collect();
        models.sort_by(|a, b| a.0.cmp(&b.0));
        let devices = client.set_budget(v1::SetBudgetRequest::default()).await.unwrap().into_inner().devices;
        Holdings { models, devices }
    }

    fn references(&self) -> u32 {
        self.models.iter().map(|(_, _, references)| references).sum()
    }

    fn used(&self) -> u64 {
        self.devices.iter().map(|device| device.used_bytes).sum()
    }
}

/// Waits until nobody uses a model any more.
async fn released(served: &Served) -> Holdings {
    let waiting = async {
        loop {
            let holdings = Holdings::of(served).await;
            if holdings.references() == 0 {
                return holdings;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("references end")
}

/// Takes every model out of memory; then nothing is left of them.
async fn emptied(served: &Served) {
    let mut client = served.models().await;
    let listed = client.list(v1::ModelServiceListRequest::default()).await.unwrap().into_inner();
    for model in listed.models {
        let unloading = client.unload(v1::UnloadRequest { model: model.id });
        let _ = tokio::time::timeout(LONG, unloading).await.expect("an unload ends");
    }
    let holdings = released(served).await;
    assert_eq!(holdings.used(), 0, "{holdings:?}");
    assert!(holdings.models.iter().all(|(_, state, _)| *state == v1::ModelState::Absent), "{holdings:?}");
}

async fn is_serving(served: &Served) {
    assert!(support::ask(served.channel().await).await.is_ok(), "health");
}

/// Whether a refusal can be understood: what was expected, what was found.
fn explains(status: &Status) -> bool {
    ["expected", "found"].iter().all(|word| status.message().contains(word))
}
