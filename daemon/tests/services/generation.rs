//! What comes over the wire is what the library makes of the same request.

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_model::embedding::{self, Pooling};
use bantam_model::engine::Engine;
use bantam_model::generate::Generation;
use bantam_model::generation::{EosSources, GenerationFlags};
use bantam_model::plan::Options;
use bantam_model::reply::Reply as Said;
use bantam_model::reply::reader::Reader;
use bantam_model::score;
use bantam_model::source::Source;
use bantam_model::template::{Conversation, Data};
use bantam_proto::v1;

use super::{Served, asked, generate, goldens};
use crate::support::until;

const GOLDENS: [&str; 2] = ["", "qwen3"];

fn source(model: &str) -> Source {
    match model {
        "" => bantam_daemon::carried::open().unwrap(),
        name => Source::open(&goldens().join(name)).unwrap(),
    }
}

/// As `bantam run --precision exact` loads it.
fn engine(source: &Source) -> Engine {
    let options = Options {
        context: 256.min(source.spec.context),
        sequences: 1,
        cache_positions: None,
        chunk: 64,
        logits_rows: 1,
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    };
    source.load(options, Cpu::detect(), 1, None, &mut |_| {}).unwrap()
}

struct Alone {
    ids: Vec<u32>,
    text: String,
    finish: &'static str,
    said: Said,
}

fn alone(source: &Source, engine: &mut Engine, ids: &[u32], flags: &GenerationFlags, is_chat: bool) -> Alone {
    let text = source.text().unwrap();
    let eos = EosSources { config: &source.spec.eos, tokenizer: text.tokenizer.eos() };
    let settings = source.generation_defaults().unwrap().settings(flags, eos).unwrap();
    let reader = match is_chat {
        true => Reader::for_chat(&text.tokenizer, text.table.clone()),
        false => Reader::plain(text.table.clone()),
    };
    let mut generation = Generation::begin(engine, Some(reader), settings, ids).unwrap();
    let mut alone = Alone { ids: Vec::new(), text: String::new(), finish: "", said: Said::default() };
    while let Some(token) = generation.next(engine).unwrap() {
        alone.ids.push(token.id);
        alone.text.push_str(token.text);
        alone.finish = token.finish.map_or(alone.finish, |finish| finish.name());
        alone.said.push(&token);
    }
    generation.end(engine);
    alone
}

fn flags(max_new_tokens: usize, seed: u64) -> GenerationFlags {
    GenerationFlags { max_new_tokens: Some(max_new_tokens), seed: Some(seed), ..GenerationFlags::default() }
}

fn name(reason: v1::FinishReason) -> &'static str {
    match reason {
        v1::FinishReason::Stop => "stop",
        v1::FinishReason::Length => "length",
        v1::FinishReason::ToolCalls => "tool_calls",
        v1::FinishReason::Unspecified => "",
    }
}

#[tokio::test]
async fn streamed_text_is_the_librarys_with_the_same_seed() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    for model in GOLDENS {
        let source = source(model);
        let mut engine = engine(&source);
        for (prompt, seed, stop) in
            [("Once upon a time", 7, None), ("The cat", 8, Some("e")), ("né 漢", 9, None)]
        {
            let prompt_ids = source.text().unwrap().tokenizer.encode(prompt, true).unwrap();
            let stop: Vec<String> = stop.into_iter().map(str::to_owned).collect();
            let flags = GenerationFlags { stop: stop.clone(), ..flags(24, seed) };
            let expected = alone(&source, &mut engine, &prompt_ids, &flags, false);
            let mut request = asked(model, prompt, 24, seed);
            request.options.as_mut().unwrap().stop = stop;
            let reply = generate(&mut client, request.clone()).await.unwrap();
            assert_eq!(reply.text(), expected.text, "{model:?} {prompt:?}");
            assert_eq!(reply.ids(), expected.ids);
            assert_eq!(name(reply.finished.reason()), expected.finish);
            assert_eq!((reply.started.seed, reply.started.prompt_tokens as usize), (seed, prompt_ids.len()));
            let usage = reply.finished.usage.unwrap();
            assert_eq!(
                (usage.prompt_tokens as usize, usage.new_tokens as usize),
                (prompt_ids.len(), reply.tokens.len())
            );
            assert!(reply.finished.reply.is_none());
            request.input = Some(v1::generate_request::Input::PromptIds(v1::TokenIds { ids: prompt_ids }));
            assert_eq!(generate(&mut client, request).await.unwrap().text(), expected.text, "by ids");
        }
    }
    assert!(served.meters.render().contains("bantam_queue_seconds_count 12"));
    served.end().await;
}

#[tokio::test]
async fn probabilities_come_where_they_are_asked_for() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let mut request = asked("", "Once upon a time", 8, 3);
    let plain = generate(&mut client, request.clone()).await.unwrap();
    assert!(
        plain.tokens.iter().all(|token| token.log_probability.is_none() && token.alternatives.is_empty())
    );
    request.options.as_mut().unwrap().log_probabilities = true;
    let with = generate(&mut client, request.clone()).await.unwrap();
    assert_eq!(with.ids(), plain.ids(), "they change nothing");
    assert!(
        with.tokens
            .iter()
            .all(|token| token.log_probability.unwrap() <= 0.0 && token.alternatives.is_empty())
    );
    request.options.as_mut().unwrap().alternatives = 5;
    let with = generate(&mut client, request).await.unwrap();
    for token in &with.tokens {
        let all: Vec<f32> = token.alternatives.iter().map(|one| one.log_probability).collect();
        assert!(all.len() == 5 && all.is_sorted_by(|a, b| a >= b), "{token:?}");
        let own = token.alternatives.iter().find(|one| one.id == token.id);
        assert!(own.is_none_or(|own| Some(own.log_probability) == token.log_probability));
    }
    served.end().await;
}

#[tokio::test]
async fn sixty_four_streams_at_once_are_each_as_alone() {
    let served = Served::with(|settings| bantam_daemon::settings::Settings { slots: 16, ..settings }).await;
    let source = source("");
    let (mut engine, text) = (engine(&source), source.text().unwrap());
    let prompts = ["Once upon a time", "The dog", "A small house stood by the river, and", "x"];
    let mut streams = Vec::new();
    for number in 0..64 {
        let mut client = served.generation().await;
        let prompt = prompts[number % prompts.len()];
        let request = asked("", prompt, 8 + number as u32 % 17, number as u64);
        streams.push((
            prompt,
            number,
            tokio::spawn(async move { generate(&mut client, request).await.unwrap() }),
        ));
    }
    for (prompt, number, stream) in streams {
        let reply = stream.await.unwrap();
        let ids = text.tokenizer.encode(prompt, true).unwrap();
        let expected = alone(&source, &mut engine, &ids, &flags(8 + number % 17, number as u64), false);
        assert_eq!((reply.ids(), reply.text()), (expected.ids, expected.text), "stream {number}");
    }
    served.end().await;
}

fn user(content: &str) -> v1::ChatMessage {
    v1::ChatMessage {
        role: "user".to_owned(),
        content: Some(content.to_owned()),
        ..v1::ChatMessage::default()
    }
}

#[tokio::test]
async fn chat_answers_as_the_library_does_and_puts_the_reply_together() {
    use v1::chat_response::Event;
    let served = Served::start().await;
    let mut client = served.generation().await;
    for model in ["", "gpt_oss-mxfp4"] {
        let source = source(model);
        let mut engine = engine(&source);
        let mut conversation = Conversation::new(vec![Data::message("user", "Tell me a story.")]);
        conversation.now = bantam_model::template::Now::parse("2025-01-31T12:34:56").unwrap();
        let rendered = source.chat_template().unwrap().unwrap().render(&conversation).unwrap();
        let ids = source.text().unwrap().tokenizer.encode(&rendered, false).unwrap();
        let expected = alone(&source, &mut engine, &ids, &flags(32, 5), true);
        let options = v1::GenerationOptions { seed: Some(5), ..v1::GenerationOptions::default() };
        let request = v1::ChatRequest {
            model: model.to_owned(),
            messages: vec![user("Tell me a story.")],
            max_new_tokens: Some(32),
            options: Some(options),
            now: Some("2025-01-31T12:34:56".to_owned()),
            ..v1::ChatRequest::default()
        };
        let mut stream = client.chat(request).await.unwrap().into_inner();
        let (mut text, mut last) = (String::new(), None);
        while let Some(response) = stream.message().await.unwrap() {
            match response.event.unwrap() {
                Event::Token(token) => text.push_str(&token.text),
                Event::Finished(finished) => last = Some(finished),
                Event::Started(started) => assert_eq!(started.prompt_tokens as usize, ids.len()),
            }
        }
        assert_eq!(text, expected.text, "{model:?}");
        let reply = last.unwrap().reply.unwrap();
        assert_eq!(reply.role, "assistant");
        assert_eq!(reply.content.unwrap(), expected.said.content());
        assert_eq!(reply.thinking.unwrap_or_default(), expected.said.thinking());
    }
    served.end().await;
}

#[tokio::test]
async fn texts_become_tokens_and_texts_again_without_an_engine() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let source = source("qwen3");
    let tokenizer = source.text().unwrap().tokenizer;
    for special in [None, Some(true), Some(false)] {
        let request = v1::TokenizeRequest {
            model: "qwen3".to_owned(),
            input: Some(v1::tokenize_request::Input::Text("Once upon".to_owned())),
            special,
            pieces: true,
            ..v1::TokenizeRequest::default()
        };
        let found = client.tokenize(request).await.unwrap().into_inner();
        assert_eq!(found.ids, tokenizer.encode("Once upon", special.unwrap_or(true)).unwrap());
        assert_eq!(found.pieces.len(), found.ids.len());
        assert!(found.rendered.is_none());
        let ids = found.ids;
        let request = v1::DetokenizeRequest { model: "qwen3".to_owned(), ids, special: false };
        assert_eq!(client.detokenize(request).await.unwrap().into_inner().text, "Once upon");
    }
    let conversation = v1::Conversation { messages: vec![user("Hi")], ..v1::Conversation::default() };
    let request = v1::TokenizeRequest {
        input: Some(v1::tokenize_request::Input::Conversation(conversation)),
        ..v1::TokenizeRequest::default()
    };
    let found = client.tokenize(request).await.unwrap().into_inner();
    assert!(found.rendered.unwrap().contains("Hi") && !found.ids.is_empty());
    let models =
        served.models().await.list(v1::ModelServiceListRequest::default()).await.unwrap().into_inner();
    assert!(models.models.iter().all(|model| model.state() == v1::ModelState::Absent), "nothing was loaded");
    served.end().await;
}

#[tokio::test]
async fn scores_and_embeddings_are_the_librarys() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    for model in GOLDENS {
        let source = source(model);
        let (mut engine, text) = (engine(&source), "Once upon a time there was a cat.");
        let ids = source.text().unwrap().tokenizer.encode(text, true).unwrap();
        for first in [None, Some(3)] {
            let expected = score::log_probabilities(&mut engine, &ids, first.unwrap_or(1) as usize).unwrap();
            let input = Some(v1::score_request::Input::Text(text.to_owned()));
            let request = v1::ScoreRequest { model: model.to_owned(), input, first_scored: first };
            let found = client.score(request).await.unwrap().into_inner();
            assert_eq!(found.ids, ids);
            let expected_rounded: Vec<f32> = expected.iter().map(|&value| value as f32).collect();
            assert_eq!(found.log_probabilities, expected_rounded, "{model:?}");
            let total: f64 = expected.iter().sum();
            assert_eq!(found.total_log_probability, total);
            assert_eq!(found.perplexity, (-total / expected.len() as f64).exp());
        }
        for (pooling, of) in [(Pooling::Mean, v1::Pooling::Unspecified), (Pooling::Last, v1::Pooling::Last)] {
            let expected = embedding::embed(&mut engine, &ids, pooling).unwrap();
            let inputs = vec![
                v1::EmbedInput { input: Some(v1::embed_input::Input::Text(text.to_owned())) },
                v1::EmbedInput {
                    input: Some(v1::embed_input::Input::Ids(v1::TokenIds { ids: ids.clone() })),
                },
            ];
            let request =
                v1::EmbedRequest { model: model.to_owned(), inputs, pooling: of.into(), normalize: false };
            let found = client.embed(request.clone()).await.unwrap().into_inner().embeddings;
            assert_eq!(found.len(), 2);
            assert!(found.iter().all(|one| one.values == expected && one.tokens as usize == ids.len()));
            let request = v1::EmbedRequest { normalize: true, ..request };
            let found = client.embed(request).await.unwrap().into_inner().embeddings;
            let length: f32 = found[0].values.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }
    served.end().await;
}

/// Dropping the call gives the place back: with one slot, the next request would otherwise wait for hours.
#[tokio::test]
async fn a_call_that_is_dropped_gives_its_place_back() {
    let served = Served::with(|settings| bantam_daemon::settings::Settings { slots: 1, ..settings }).await;
    let mut client = served.generation().await;
    let mut request = asked("", "Once", 200, 1);
    request.options.as_mut().unwrap().ignore_eos = true;
    let mut stream = client.generate(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    drop(stream);
    assert_eq!(generate(&mut client, asked("", "The cat", 2, 1)).await.unwrap().tokens.len(), 2);
    until(|| served.meters.render().contains("bantam_streams 0")).await;
    served.end().await;
}
