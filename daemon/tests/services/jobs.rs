//! Training over the wire: begun, watched, ended, listed.

use bantam_proto::v1;
use bantam_proto::v1::JobState;
use bantam_proto::v1::job_service_client::JobServiceClient;
use bantam_proto::v1::watch_response::Event;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{Served, asked, fields, generate, goldens};
use crate::support::until;

/// What to train, in a folder with rows of ids.
fn request(served: &Served, output: &str, more: &[(&str, &str)]) -> v1::TrainRequest {
    let row = |row: usize| {
        let ids: Vec<usize> = (0..16).map(|at| 5 + (row * 31 + at * 7) % 90).collect();
        format!("{{\"input_ids\": {ids:?}}}\n")
    };
    served.folder.file("rows.jsonl", &(0..8).map(row).collect::<String>());
    let overrides = more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    v1::TrainRequest {
        // A name of a model folder, and paths that begin at the client's.
        yaml: format!(
            "model_name_or_path: llama-tied\ndataset_path: rows.jsonl\ndataset_type: tokenized\noutput_dir: {output}\n\
             per_device_train_batch_size: 1\nlearning_rate: 0.01\nlogging_steps: 1\nval_size: 2\n"
        ),
        overrides: overrides.collect(),
        folder: served.folder.0.display().to_string(),
    }
}

async fn jobs(served: &Served) -> JobServiceClient<Channel> {
    JobServiceClient::new(served.channel().await)
}

async fn train(client: &mut JobServiceClient<Channel>, request: v1::TrainRequest) -> v1::Job {
    client.train(request).await.unwrap().into_inner().job.unwrap()
}

async fn watch(client: &mut JobServiceClient<Channel>, job: &v1::Job) -> Streaming<v1::WatchResponse> {
    client.watch(v1::WatchRequest { job_id: job.id.clone() }).await.unwrap().into_inner()
}

/// All that happens until a job is over, and how it stands then.
async fn over(mut stream: Streaming<v1::WatchResponse>) -> (Vec<Event>, v1::Job) {
    let (mut events, mut last) = (Vec::new(), None);
    while let Some(response) = stream.message().await.unwrap() {
        let event = response.event.unwrap();
        if let Event::Job(job) = &event {
            last = Some(job.clone());
        }
        events.push(event);
    }
    (events, last.unwrap())
}

#[tokio::test]
async fn a_run_is_watched_to_its_end_while_others_are_served() {
    let served = Served::start().await;
    let mut client = jobs(&served).await;
    let strategy = [("max_steps", "8"), ("eval_strategy", "steps"), ("eval_steps", "4")];
    let job = train(&mut client, request(&served, "out", &strategy)).await;
    assert_eq!((job.kind(), job.model.as_str()), (v1::JobKind::Train, "llama-tied"));
    let stream = watch(&mut client, &job).await;
    let reply = generate(&mut served.generation().await, asked("", "Once", 4, 1)).await.unwrap();
    assert_eq!(reply.tokens.len(), 4);
    let (events, last) = over(stream).await;
    assert_eq!((last.state(), last.error.as_str()), (JobState::Done, ""));
    assert!(matches!(&events[0], Event::Job(first) if first.id == job.id));
    let progress = last.progress.unwrap();
    assert_eq!((progress.done, progress.total), (8, 8));
    assert!(["loss", "eval_loss", "learning_rate"].iter().all(|name| progress.figures.contains_key(*name)));
    assert!(last.ended_at.is_some());
    let output = served.folder.0.join("out");
    assert_eq!(last.output, output.display().to_string());
    assert!(output.join("adapter_model.safetensors").exists() && output.join("eval_results.json").exists());
    // Who comes later learns how it ended.
    let (events, again) = over(watch(&mut client, &job).await).await;
    assert_eq!((events.len(), again.state()), (1, JobState::Done));
    served.end().await;
}

#[tokio::test]
async fn jobs_wait_in_line_and_end_when_they_are_told() {
    let served = Served::start().await;
    let mut client = jobs(&served).await;
    let endless = [("max_steps", "100000"), ("save_strategy", "no")];
    let first = train(&mut client, request(&served, "first", &endless)).await;
    let mut stream = watch(&mut client, &first).await;
    let is_training = |event: &Event| matches!(event, Event::Progress(progress) if progress.done > 1);
    while !is_training(&stream.message().await.unwrap().unwrap().event.unwrap()) {}
    let second = train(&mut client, request(&served, "second", &endless)).await;
    assert_eq!(second.state(), JobState::Waiting);
    let list = |states: Vec<i32>| v1::JobServiceListRequest { kinds: Vec::new(), states };
    let listed = client.list(list(Vec::new())).await.unwrap().into_inner().jobs;
    let ids: Vec<&str> = listed.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids, [second.id.as_str(), first.id.as_str()], "the youngest first");
    let running = client.list(list(vec![JobState::Running.into()])).await.unwrap().into_inner().jobs;
    assert_eq!(running.len(), 1);
    let cancel = |job: &v1::Job| v1::CancelRequest { job_id: job.id.clone() };
    let cancelled = client.cancel(cancel(&second)).await.unwrap().into_inner().job.unwrap();
    assert_eq!(cancelled.state(), JobState::Cancelled, "what waits ends at once");
    client.cancel(cancel(&first)).await.unwrap();
    let (events, last) = over(stream).await;
    assert_eq!(last.state(), JobState::Cancelled);
    let saved = |event: &Event| matches!(event, Event::Log(line) if line.contains("resume_from_checkpoint="));
    assert!(events.iter().any(saved));
    let is_saved = || {
        let entries = std::fs::read_dir(served.folder.0.join("first")).unwrap();
        entries.filter_map(Result::ok).any(|entry| entry.path().join("optimizer.safetensors").exists())
    };
    assert!(is_saved() && !served.folder.0.join("second").exists());
    // A third is under way when the daemon ends: that saves too.
    let third = train(&mut client, request(&served, "third", &endless)).await;
    let log = served.folder.0.join("third/trainer_log.jsonl");
    until(|| log.exists()).await;
    assert_eq!(third.id, "job-3");
    let folder = served.folder.0.join("third");
    drop(client);
    let kept = |folder: &std::path::Path| {
        let entries = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("checkpoint-")).count()
    };
    served.drain.ask();
    served.drain.ask();
    until(|| kept(&folder) == 1).await;
    served.ended().await;
}

#[tokio::test]
async fn a_run_takes_its_memory_from_the_models() {
    let served = Served::start().await;
    let mut client = jobs(&served).await;
    let mut models = served.models().await;
    generate(&mut served.generation().await, asked("", "Once", 1, 1)).await.unwrap();
    let budget =
        |bytes| v1::SetBudgetRequest { budgets: vec![v1::DeviceBudget { device: "ram".to_owned(), bytes }] };
    models.set_budget(budget(1000)).await.unwrap();
    let job = train(&mut client, request(&served, "small", &[("max_steps", "1")])).await;
    let (_, last) = over(watch(&mut client, &job).await).await;
    assert!(last.state() == JobState::Failed && last.error.contains("at most 1000 bytes"), "{}", last.error);
    // Enough for the run, and for no model beside it.
    let bytes = last.error.split("that takes ").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
    models.set_budget(budget(bytes)).await.unwrap();
    let endless = [("max_steps", "100000"), ("save_strategy", "no")];
    let job = train(&mut client, request(&served, "out", &endless)).await;
    let mut stream = watch(&mut client, &job).await;
    let is_training = |event: &Event| matches!(event, Event::Progress(progress) if progress.done > 0);
    while !is_training(&stream.message().await.unwrap().unwrap().event.unwrap()) {}
    let refused = generate(&mut served.generation().await, asked("", "Once", 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    client.cancel(v1::CancelRequest { job_id: job.id }).await.unwrap();
    over(stream).await;
    models.set_budget(budget(bytes + (1 << 30))).await.unwrap();
    generate(&mut served.generation().await, asked("", "Once", 1, 1)).await.unwrap();
    served.end().await;
}

#[tokio::test]
async fn what_cannot_be_trained_is_refused_by_its_field() {
    let served = Served::start().await;
    let mut client = jobs(&served).await;
    for (change, field, words) in [
        (&[("learning_rat", "1")][..], "yaml", "did you mean learning_rate"),
        (&[("lora_rank", "many")], "yaml", "lora_rank"),
        (&[("stage", "dpo")], "yaml", "pt or sft"),
    ] {
        let refused = client.train(request(&served, "out", change)).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(words), "{refused:?}");
        assert_eq!(fields(&refused).0, [field]);
    }
    let somewhere = v1::TrainRequest { folder: "here".to_owned(), ..request(&served, "out", &[]) };
    assert_eq!(fields(&client.train(somewhere).await.unwrap_err()).0, ["folder"]);
    let nothing = request(&served, "out", &[("model_name_or_path", "none")]);
    assert_eq!(client.train(nothing).await.unwrap_err().code(), Code::NotFound);
    // What is wrong with data is found by the job.
    let job = train(&mut client, request(&served, "out", &[("dataset_path", "none.jsonl")])).await;
    let (_, last) = over(watch(&mut client, &job).await).await;
    assert!(last.state() == JobState::Failed && last.error.contains("none.jsonl"), "{last:?}");
    for id in ["job-99", ""] {
        let asked = v1::WatchRequest { job_id: id.to_owned() };
        assert_eq!(client.watch(asked).await.map(drop).unwrap_err().code(), Code::NotFound);
    }
    assert!(goldens().join("llama-tied").exists());
    served.end().await;
}
