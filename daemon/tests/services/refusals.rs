//! Requests are untrusted: what is wrong is named, and nothing is loaded for it.

use bantam_proto::v1;
use tonic::{Code, Request};

use super::{Served, asked, fields, generate};

type Change = Box<dyn Fn(&mut v1::GenerationOptions)>;

/// Every number of a generation with values that are not in its range.
fn wrong() -> Vec<(&'static str, Change)> {
    macro_rules! wrong {
        ($($field:ident: $($value:expr),+;)+) => {
            vec![$($((stringify!($field), Box::new(|options: &mut v1::GenerationOptions| {
                options.$field = $value;
            }) as Change)),+),+]
        };
    }
    const NAN: Option<f64> = Some(f64::NAN);
    const INF: Option<f64> = Some(f64::INFINITY);
    const LESS: Option<f64> = Some(-1.0);
    const MAX: Option<f64> = Some(f64::MAX);
    wrong! {
        temperature: NAN, INF, LESS, MAX, Some(1e-80);
        top_p: NAN, INF, LESS, MAX, Some(1.5);
        min_p: NAN, INF, LESS, MAX, Some(1.5);
        typical_p: NAN, INF, LESS, MAX, Some(0.0);
        repetition_penalty: NAN, INF, LESS, MAX, Some(0.0);
        presence_penalty: NAN, INF, MAX;
        frequency_penalty: NAN, INF, MAX, Some(f64::NEG_INFINITY);
        logit_bias: bias(&[(1, f32::NAN)]), bias(&[(1, f32::INFINITY)]), bias(&[(1, 1.0), (1, 2.0)]),
            bias(&[(0, 0.0); 1025]), bias(&[(u32::MAX, 0.0)]);
        stop: vec![String::new()], vec!["x".repeat(257)], vec!["x".to_owned(); 65], vec!["x".repeat(10_000); 10_000];
        alternatives: 65, u32::MAX;
    }
}

fn bias(all: &[(u32, f32)]) -> Vec<v1::LogitBias> {
    all.iter().map(|&(id, bias)| v1::LogitBias { id, bias }).collect()
}

#[tokio::test]
async fn numbers_out_of_range_are_refused_by_their_field() {
    let served = Served::with(|settings| bantam_daemon::settings::Settings {
        message_bytes: bantam_daemon::settings::Bytes(200 << 20),
        ..settings
    })
    .await;
    let mut client = served.generation().await.max_encoding_message_size(usize::MAX);
    for (number, (name, change)) in wrong().into_iter().enumerate() {
        let mut request = asked("", "Once", 4, 1);
        change(request.options.as_mut().unwrap());
        let refused = generate(&mut client, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}, case {number}: {refused:?}");
        assert_eq!(fields(&refused).0, [format!("options.{name}")], "{refused:?}");
        assert!(refused.message().contains("expected") && refused.message().contains("found"), "{refused:?}");
    }
    for (max_new_tokens, is_right) in [(0, false), (u32::MAX, false), (1, true), (1 << 31, true)] {
        let mut request = asked("", "Once", max_new_tokens, 1);
        request.options.as_mut().unwrap().stop = vec!["e".to_owned()];
        let answer = generate(&mut client, request).await;
        match is_right {
            true => drop(answer.unwrap()),
            false => assert_eq!(fields(&answer.unwrap_err()).0, ["max_new_tokens"]),
        }
    }
    served.end().await;
}

#[tokio::test]
async fn prompts_that_cannot_be_answered_are_refused() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    use v1::generate_request::Input;
    for (input, field) in [
        (None, "prompt"),
        (Some(Input::Prompt(String::new())), "prompt"),
        (Some(Input::Prompt("word ".repeat(5000))), "prompt"),
        (Some(Input::PromptIds(v1::TokenIds { ids: Vec::new() })), "prompt_ids"),
        (Some(Input::PromptIds(v1::TokenIds { ids: vec![u32::MAX] })), "prompt_ids"),
        (Some(Input::PromptIds(v1::TokenIds { ids: vec![1; 300] })), "prompt_ids"),
    ] {
        let request = v1::GenerateRequest { input, ..asked("", "", 4, 1) };
        let refused = generate(&mut client, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert_eq!(fields(&refused).0, [field], "{refused:?}");
    }
    let refused = client.chat(v1::ChatRequest::default()).await.unwrap_err();
    assert_eq!(fields(&refused).0, ["messages"]);
    let empty = v1::EmbedRequest { inputs: vec![v1::EmbedInput::default()], ..v1::EmbedRequest::default() };
    assert_eq!(fields(&client.embed(empty).await.unwrap_err()).0, ["inputs[0].text"]);
    let ids = Some(v1::score_request::Input::Ids(v1::TokenIds { ids: vec![1, 2] }));
    for (first_scored, field) in
        [(Some(0), "first_scored"), (Some(2), "first_scored"), (Some(u32::MAX), "first_scored")]
    {
        let request = v1::ScoreRequest { input: ids.clone(), first_scored, ..v1::ScoreRequest::default() };
        assert_eq!(fields(&client.score(request).await.unwrap_err()).0, [field]);
    }
    let request = v1::DetokenizeRequest { ids: vec![0, u32::MAX], ..v1::DetokenizeRequest::default() };
    assert_eq!(fields(&client.detokenize(request).await.unwrap_err()).0, ["ids"]);
    served.end().await;
}

#[tokio::test]
async fn loads_out_of_range_are_refused_and_nothing_is_taken() {
    let served = Served::start().await;
    let mut client = served.models().await;
    let with = v1::LoadOptions::default;
    for (options, field) in [
        (v1::LoadOptions { context: Some(0), ..with() }, "context"),
        (v1::LoadOptions { context: Some(u32::MAX), ..with() }, "context"),
        (v1::LoadOptions { context: Some(1 << 29), ..with() }, "context"),
        (v1::LoadOptions { slots: Some(0), ..with() }, "slots"),
        (v1::LoadOptions { slots: Some(u32::MAX), ..with() }, "slots"),
        (v1::LoadOptions { chunk: Some(0), ..with() }, "chunk"),
        (v1::LoadOptions { chunk: Some(u32::MAX), ..with() }, "chunk"),
        (v1::LoadOptions { threads: Some(0), ..with() }, "threads"),
        (v1::LoadOptions { threads: Some(u32::MAX), ..with() }, "threads"),
        (v1::LoadOptions { cache_positions: Some(0), ..with() }, "cache_positions"),
        (v1::LoadOptions { cache_positions: Some(1), ..with() }, "cache_positions"),
        (v1::LoadOptions { cache_positions: Some(u64::MAX), ..with() }, "cache_positions"),
        (v1::LoadOptions { precision: 99, ..with() }, "precision"),
        (v1::LoadOptions { kv: -1, ..with() }, "kv"),
        (v1::LoadOptions { quantization: Some("q9".to_owned()), ..with() }, "quantization"),
        (v1::LoadOptions { head: Some(String::new()), ..with() }, "head"),
        (v1::LoadOptions { ttl: Some(prost_types::Duration { seconds: -1, nanos: 0 }), ..with() }, "ttl"),
        (
            v1::LoadOptions { ttl: Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }), ..with() },
            "ttl",
        ),
        (
            v1::LoadOptions { ttl: Some(prost_types::Duration { seconds: 0, nanos: i32::MAX }), ..with() },
            "ttl",
        ),
    ] {
        let request = v1::PlanRequest { model: String::new(), options: Some(options.clone()) };
        let refused = client.plan(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{options:?}: {refused:?}");
        assert_eq!(fields(&refused).0, [format!("options.{field}")], "{refused:?}");
        let request = v1::LoadRequest { model: String::new(), options: Some(options.clone()) };
        let refused = match client.load(request).await {
            Err(refused) => refused,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("{options:?} was loaded"),
                        Err(refused) => break refused,
                    }
                }
            }
        };
        assert_eq!(fields(&refused).0, [format!("options.{field}")], "{refused:?}");
    }
    let budgets = |device: &str, bytes| vec![v1::DeviceBudget { device: device.to_owned(), bytes }];
    for budgets in [budgets("ram", 0), budgets("gpu0", 1), [budgets("ram", 1), budgets("ram", 2)].concat()] {
        let refused = client.set_budget(v1::SetBudgetRequest { budgets }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let every = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    let refused =
        client.watch_residency(v1::WatchResidencyRequest { figures_every: every }).await.unwrap_err();
    assert_eq!(fields(&refused).0, ["figures_every"]);
    let devices = client.set_budget(v1::SetBudgetRequest::default()).await.unwrap().into_inner().devices;
    assert_eq!((devices[0].budget_bytes, devices[0].used_bytes), (1 << 30, 0));
    served.end().await;
}

#[tokio::test]
async fn unknown_models_are_not_found_and_names_lead_nowhere() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    for (model, code) in [
        ("none", Code::NotFound),
        ("@99", Code::NotFound),
        ("@-1", Code::NotFound),
        ("/nonexistent/model", Code::NotFound),
        ("../goldens/models/qwen3", Code::InvalidArgument),
        ("qwen3/../../models/qwen3", Code::InvalidArgument),
    ] {
        let refused = generate(&mut client, asked(model, "a", 1, 1)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{model}: {refused:?}");
        if code == Code::NotFound {
            let (_, details) = fields(&refused);
            assert!(details.resource_info().is_some(), "{refused:?}");
        }
    }
    served.end().await;
}

#[tokio::test]
async fn what_is_not_yet_says_so() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let changes: [fn(&mut v1::GenerationOptions); 4] = [
        |options| options.structured_output = Some(v1::StructuredOutput::default()),
        |options| {
            let keep = Some(prost_types::Duration { seconds: 1, nanos: 0 });
            options.prefix_cache = Some(v1::PrefixCache { keep, ..v1::PrefixCache::default() });
        },
        |options| options.speculation = Some(v1::Speculation::default()),
        |options| options.priority = v1::Priority::High.into(),
    ];
    for change in changes {
        let mut request = asked("", "a", 1, 1);
        change(request.options.as_mut().unwrap());
        let refused = generate(&mut client, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("not yet"), "{refused:?}");
    }
    let mut jobs = v1::job_service_client::JobServiceClient::new(served.channel().await);
    let refused = jobs.quantize(v1::QuantizeRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = client.session(tokio_stream::empty::<v1::SessionRequest>()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    served.end().await;
}

#[tokio::test]
async fn a_deadline_ends_a_stream_and_frees_its_place() {
    let served = Served::with(|settings| bantam_daemon::settings::Settings { slots: 1, ..settings }).await;
    let mut client = served.generation().await;
    generate(&mut client, asked("", "a", 1, 1)).await.unwrap();
    // The stream reads nothing, so it pauses long before it is done; then its time is over.
    let mut request = asked("", "Once", 200, 1);
    request.options.as_mut().unwrap().ignore_eos = true;
    let mut first = client.generate(request.clone()).await.unwrap().into_inner();
    first.message().await.unwrap();
    let mut late = Request::new(asked("", "b", 1, 1));
    late.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let mut second = client.clone();
    let refused = match second.generate(late).await {
        Err(refused) => refused,
        Ok(stream) => {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    // The first was quicker than its deadline.
                    Ok(None) => return served.end().await,
                    Err(refused) => break refused,
                }
            }
        }
    };
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    drop(first);
    served.end().await;
}
