//! Models come and go over the wire.

use std::time::Duration;

use bantam_daemon::settings::Settings;
use bantam_proto::v1;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use bantam_proto::v1::watch_residency_response::Event;
use tonic::Code;
use tonic_types::StatusExt;

use super::{Served, asked, fields, generate, goldens};
use crate::support::{LONG, narrow_channel};

fn load(model: &str, options: v1::LoadOptions) -> v1::LoadRequest {
    v1::LoadRequest { model: model.to_owned(), options: Some(options) }
}

/// Loads a model; the last message is it.
async fn loaded(served: &Served, request: v1::LoadRequest) -> Result<v1::Model, tonic::Status> {
    use v1::load_response::Event;
    let mut stream = served.models().await.load(request).await?.into_inner();
    let mut last = None;
    while let Some(response) = stream.message().await? {
        assert!(last.is_none(), "nothing comes after the model");
        if let Some(Event::Loaded(model)) = response.event {
            last = Some(model);
        }
    }
    Ok(last.expect("the model comes last"))
}

async fn listed(served: &Served) -> Vec<v1::Model> {
    let list = served.models().await.list(v1::ModelServiceListRequest::default()).await;
    list.unwrap().into_inner().models
}

async fn find(served: &Served, name: &str) -> v1::Model {
    listed(served).await.into_iter().find(|model| model.name == name).unwrap()
}

/// Waits until a model is in a state.
async fn until_state(served: &Served, name: &str, state: v1::ModelState) {
    let waiting = async {
        while find(served, name).await.state() != state {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("the model comes to this state");
}

#[tokio::test]
async fn a_plan_is_what_a_load_takes() {
    let served = Served::start().await;
    let options = v1::LoadOptions { slots: Some(2), context: Some(128), ..v1::LoadOptions::default() };
    let request = v1::PlanRequest { model: "qwen3".to_owned(), options: Some(options.clone()) };
    let plan = served.models().await.plan(request).await.unwrap().into_inner();
    assert!(plan.fits && plan.leaving.is_empty());
    assert_eq!(plan.lines.iter().map(|line| line.bytes).sum::<u64>(), plan.bytes[0].total_bytes);
    let model = loaded(&served, load("qwen3", options)).await.unwrap();
    assert_eq!(model.state(), v1::ModelState::Resident);
    assert_eq!((model.name.as_str(), &model.bytes, &model.options), ("qwen3", &plan.bytes, &plan.options));
    assert_eq!(model.path, goldens().join("qwen3").display().to_string());
    let devices =
        served.models().await.set_budget(v1::SetBudgetRequest::default()).await.unwrap().into_inner().devices;
    assert_eq!(devices[0].used_bytes, plan.bytes[0].total_bytes);
    assert_eq!((devices[0].referenced_bytes, devices[0].pinned_bytes), (0, 0));
    // By its handle, its name and its path it is the same.
    for name in [&model.id, &model.path, "qwen3"] {
        assert_eq!(loaded(&served, load(name, v1::LoadOptions::default())).await.unwrap().id, model.id);
    }
    let other = v1::LoadOptions { slots: Some(3), ..v1::LoadOptions::default() };
    let refused = loaded(&served, load("qwen3", other)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("slots"), "{refused:?}");
    served.end().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_its_line_before_anything_is_taken() {
    let served = Served::start().await;
    let budgets = vec![v1::DeviceBudget { device: "ram".to_owned(), bytes: 100_000 }];
    served.models().await.set_budget(v1::SetBudgetRequest { budgets }).await.unwrap();
    let request = v1::PlanRequest { model: "qwen3".to_owned(), options: None };
    assert!(!served.models().await.plan(request).await.unwrap().into_inner().fits);
    let refused = loaded(&served, load("qwen3", v1::LoadOptions::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let (_, details) = fields(&refused);
    let quota = &details.quota_failure().unwrap().violations[0];
    assert!(!quota.subject.is_empty() && quota.description.contains("raise the budget by"), "{quota:?}");
    let refused = generate(&mut served.generation().await, asked("", "a", 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    served.end().await;
}

/// Reads changes until one is found.
async fn until(
    stream: &mut tonic::Streaming<v1::WatchResidencyResponse>,
    is_it: impl Fn(&Event) -> bool,
) -> Vec<Event> {
    let mut all = Vec::new();
    let reading = async {
        while let Some(change) = stream.message().await.unwrap() {
            let event = change.event.unwrap();
            let found = is_it(&event);
            all.push(event);
            if found {
                return;
            }
        }
        panic!("it never came: {all:?}");
    };
    tokio::time::timeout(LONG, reading).await.expect("it comes in time");
    all
}

#[tokio::test]
async fn a_watcher_sees_models_come_and_go() {
    let served = Served::start().await;
    let request = v1::WatchResidencyRequest { figures_every: None };
    let mut stream = served.models().await.watch_residency(request).await.unwrap().into_inner();
    let first = until(&mut stream, |_| true).await;
    assert!(matches!(&first[..], [Event::Snapshot(all)] if all.devices.len() == 1), "{first:?}");
    let model =
        loaded(&served, load("qwen3", v1::LoadOptions { pin: Some(true), ..v1::LoadOptions::default() }))
            .await;
    let model = model.unwrap();
    let events = until(&mut stream, |event| matches!(event, Event::Pinned(_))).await;
    let is_of = |event: &Event, of: &str| match event {
        Event::Hit(hit) => of == "miss" && !hit.resident,
        Event::Loading(_) => of == "loading",
        Event::Moved(moved) => of == "moved" && moved.bytes == model.bytes[0].weight_bytes,
        Event::Loaded(loaded) => of == "loaded" && loaded.model.as_ref().unwrap().id == model.id,
        Event::Pinned(pinned) => of == "pinned" && pinned.pinned,
        _ => false,
    };
    for (event, of) in events.iter().zip(["miss", "loading", "moved", "loaded", "pinned"]) {
        assert!(is_of(event, of), "{of}: {events:?}");
    }
    generate(&mut served.generation().await, asked("qwen3", "a", 1, 1)).await.unwrap();
    until(&mut stream, |event| matches!(event, Event::Hit(hit) if hit.resident)).await;
    let request = v1::UnloadRequest { model: model.id.clone() };
    let unloaded = served.models().await.unload(request.clone()).await.unwrap().into_inner();
    assert_eq!(unloaded.freed, model.bytes);
    assert_eq!(unloaded.model.unwrap().state(), v1::ModelState::Absent);
    let events = until(&mut stream, |event| matches!(event, Event::Evicted(_))).await;
    assert!(
        matches!(events.last(), Some(Event::Evicted(evicted)) if evicted.reason() == v1::LeaveReason::Asked)
    );
    let again = served.models().await.unload(request).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    served.end().await;
}

/// Room for one: the idle one leaves for the next, and comes again on demand as it was loaded.
#[tokio::test]
async fn an_idle_model_makes_room_and_is_loaded_again_on_demand() {
    let served = Served::start().await;
    let options = v1::LoadOptions { slots: Some(2), ..v1::LoadOptions::default() };
    let first = loaded(&served, load("qwen3", options)).await.unwrap();
    let second = loaded(&served, load("llama-tied", v1::LoadOptions::default())).await.unwrap();
    let bytes = first.bytes[0].total_bytes.max(second.bytes[0].total_bytes);
    let budgets = vec![v1::DeviceBudget { device: "ram".to_owned(), bytes }];
    served.models().await.set_budget(v1::SetBudgetRequest { budgets }).await.unwrap();
    let mut client = served.generation().await;
    for name in ["qwen3", "llama-tied", "qwen3"] {
        generate(&mut client, asked(name, "Once", 2, 1)).await.unwrap();
        let model = find(&served, name).await;
        assert_eq!(model.state(), v1::ModelState::Resident);
        assert!(model.last_used.is_some());
    }
    assert_eq!(find(&served, "qwen3").await.options.unwrap().slots, Some(2));
    assert_eq!(find(&served, "llama-tied").await.state(), v1::ModelState::Absent);
    served.end().await;
}

#[tokio::test]
async fn no_more_models_than_places() {
    let served = Served::with(|settings| Settings { max_models: 1, ..settings }).await;
    let mut client = served.generation().await;
    for (name, other) in [("qwen3", "llama-tied"), ("llama-tied", "qwen3"), ("qwen3", "llama-tied")] {
        generate(&mut client, asked(name, "Once", 2, 1)).await.unwrap();
        let state = async |name| find(&served, name).await.state();
        assert_eq!(
            (state(name).await, state(other).await),
            (v1::ModelState::Resident, v1::ModelState::Absent)
        );
    }
    let pinned = v1::LoadOptions { pin: Some(true), ..v1::LoadOptions::default() };
    loaded(&served, load("qwen3", pinned)).await.unwrap();
    let refused = generate(&mut client, asked("llama-tied", "Once", 2, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("1 place of `models.max`"), "{}", refused.message());
    let details = refused.get_error_details();
    assert_eq!(details.quota_failure().unwrap().violations[0].subject, "models.max");
    assert!(details.retry_info().is_none(), "waiting does not help");
    served.end().await;
}

#[tokio::test]
async fn a_checkpoint_is_inspected_and_a_broken_one_says_why() {
    let served = Served::start().await;
    let request = v1::InspectRequest { model: String::new(), tensors: true };
    let found = served.models().await.inspect(request).await.unwrap().into_inner();
    assert!(found.parameters > 0 && found.layers > 0 && !found.tensors.is_empty());
    let broken = served.folder.0.join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("config.json"), "{}").unwrap();
    let model = broken.display().to_string();
    let request = v1::InspectRequest { model: model.clone(), tensors: false };
    let refused = served.models().await.inspect(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let refused = loaded(&served, load(&model, v1::LoadOptions::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    served.end().await;
}

/// Many clients load, unload and generate what they like: nothing hangs, nothing is lost, answers are right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_loads_and_unloads_ends_with_nothing_held() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let names = ["", "qwen3", "llama-tied"];
    let mut expected = Vec::new();
    for name in names {
        expected.push(generate(&mut client, asked(name, "Once", 4, 9)).await.unwrap().ids());
    }
    let mut storm = Vec::new();
    for number in 0..12 {
        let (mut generation, mut models) = (served.generation().await, served.models().await);
        let expected = expected.clone();
        storm.push(tokio::spawn(async move {
            for step in 0..6 {
                let at = (number + step) % names.len();
                let model = names[at].to_owned();
                if (number + step) % 4 == 0 {
                    let _ = models.unload(v1::UnloadRequest { model: model.clone() }).await;
                }
                match generate(&mut generation, asked(&model, "Once", 4, 9)).await {
                    Ok(reply) => assert_eq!(reply.ids(), expected[at], "{model:?}"),
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
                }
            }
        }));
    }
    for one in storm {
        tokio::time::timeout(LONG, one).await.expect("nothing hangs").unwrap();
    }
    for name in names {
        let _ = served.models().await.unload(v1::UnloadRequest { model: name.to_owned() }).await;
    }
    let devices =
        served.models().await.set_budget(v1::SetBudgetRequest::default()).await.unwrap().into_inner().devices;
    assert_eq!((devices[0].used_bytes, devices[0].referenced_bytes), (0, 0));
    assert!(listed(&served).await.iter().all(|model| model.references == 0));
    served.end().await;
}

/// Waits until the memory in use is as `is_it` says.
async fn until_used(served: &Served, is_it: impl Fn(&v1::DeviceUse) -> bool) {
    let waiting = async {
        loop {
            let request = v1::SetBudgetRequest::default();
            let devices = served.models().await.set_budget(request).await.unwrap().into_inner().devices;
            if is_it(&devices[0]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("the memory comes to this");
}

/// A model that drains for another one, is asked for with other options, and is no longer in anybody's way: nobody
/// can name it any more, so it leaves with its last user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_model_that_was_replaced_leaves_though_its_room_is_not_needed() {
    let served = Served::with(|settings| Settings { tokens_in_flight: 1, ..settings }).await;
    let bytes = loaded(&served, load("llama-tied", v1::LoadOptions::default())).await.unwrap().bytes;
    served.models().await.unload(v1::UnloadRequest { model: "llama-tied".to_owned() }).await.unwrap();
    let mut endless = asked("qwen3", "Once", 400, 9);
    endless.options.as_mut().unwrap().ignore_eos = true;
    let mut unread = GenerationServiceClient::new(narrow_channel(&served.folder.socket()).await);
    let stream = unread.generate(endless).await.unwrap();
    let budget = async |bytes| {
        let budgets = vec![v1::DeviceBudget { device: "ram".to_owned(), bytes }];
        served.models().await.set_budget(v1::SetBudgetRequest { budgets }).await.unwrap();
    };
    let used = find(&served, "qwen3").await.bytes[0].total_bytes;
    let with_three = v1::LoadOptions { slots: Some(3), ..v1::LoadOptions::default() };
    let plan = v1::PlanRequest { model: "qwen3".to_owned(), options: Some(with_three.clone()) };
    let with_three_bytes = served.models().await.plan(plan).await.unwrap().into_inner().bytes[0].total_bytes;
    budget(used.max(bytes[0].total_bytes).max(with_three_bytes)).await;
    let (mut generation, mut models) = (served.generation().await, served.models().await);
    let claims =
        tokio::spawn(async move { generate(&mut generation, asked("llama-tied", "Once", 4, 9)).await });
    until_state(&served, "qwen3", v1::ModelState::Leaving).await;
    let replaces = tokio::spawn(async move {
        let mut loading = models.load(load("qwen3", with_three)).await.unwrap().into_inner();
        while let Ok(Some(_)) = loading.message().await {}
    });
    // Under its name there is now what waits to be loaded.
    until_state(&served, "qwen3", v1::ModelState::Waiting).await;
    for task in [claims.abort_handle(), replaces.abort_handle()] {
        task.abort();
    }
    assert!(claims.await.is_err() && replaces.await.is_err());
    for name in ["qwen3", "llama-tied"] {
        until_state(&served, name, v1::ModelState::Absent).await;
    }
    budget(1 << 30).await;
    until_used(&served, |device| device.used_bytes == used).await;
    drop(stream);
    until_used(&served, |device| device.used_bytes == 0).await;
    served.end().await;
}
