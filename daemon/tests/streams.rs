//! The scheduler over a real model: what comes out of many streams at once is what each would say alone.
#![allow(clippy::unwrap_used)] // A failure is a failed test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_daemon::scheduler::{
    ClientId, Desk, Embed, Ended, Event, Options, Piece, Request, Reuse, Score, Steps, Timings, Work, Worker,
};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::detokenizer::ByteTable;
use bantam_model::embedding::{Pooling, embed};
use bantam_model::engine::Engine;
use bantam_model::generate::Generation;
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags, GenerationSettings};
use bantam_model::plan;
use bantam_model::reply::reader::Reader;
use bantam_model::score::log_probabilities;
use bantam_model::spec::ModelSpec;
use bantam_model::tokenizer::Tokenizer;
use bantam_model::turn::{Limits, Turn};

const TEXT: &str = "The history of the city begins with a river, a bridge and a market on its northern bank, where \
                    people from the hills sold wool and salt. Later came walls, a school, and a long war about them.";

fn trained() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/goldens/real/llama")
}

fn engine(sequences: usize) -> Engine {
    let folder = trained();
    let spec = ModelSpec::parse(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let options = plan::Options {
        context: 128,
        sequences,
        cache_positions: None,
        chunk: 128,
        logits_rows: sequences.min(24),
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    };
    Engine::load(spec, &Checkpoint::open(&folder).unwrap(), options, Cpu::detect(), 2).unwrap()
}

struct Text {
    tokenizer: Tokenizer,
    table: Arc<ByteTable>,
}

impl Text {
    fn open() -> Self {
        let tokenizer = std::fs::read(trained().join("tokenizer.json")).unwrap();
        let tokenizer = Tokenizer::from_bytes(&tokenizer, None, None).unwrap();
        let table = Arc::new(ByteTable::new(&tokenizer).unwrap());
        Text { tokenizer, table }
    }

    fn reader(&self) -> Reader {
        Reader::plain(self.table.clone())
    }

    /// Prompts of different lengths.
    fn prompt(&self, i: usize) -> Vec<u32> {
        let ids = self.tokenizer.encode(TEXT, true).unwrap();
        ids[i % 7..(i % 7 + 1 + (i * 5) % 30).min(ids.len())].to_vec()
    }
}

/// Every stream has its own dice, length and way to choose.
fn settings(i: usize) -> GenerationSettings {
    let flags = GenerationFlags {
        max_new_tokens: Some(4 + (i * 7) % 44),
        temperature: Some(if i.is_multiple_of(5) { 0.0 } else { 0.6 + 0.1 * (i % 8) as f64 }),
        top_k: Some(i % 3 * 20),
        repetition_penalty: Some(1.0 + 0.05 * (i % 4) as f64),
        stop: vec![" the".to_owned(); i % 2],
        seed: Some(i as u64),
        ..GenerationFlags::default()
    };
    GenerationDefaults::default().settings(&flags, EosSources::default()).unwrap()
}

fn alone(engine: &mut Engine, text: &Text, i: usize) -> (Vec<u32>, String) {
    let prompt = text.prompt(i);
    let mut generation = Generation::begin(engine, Some(text.reader()), settings(i), &prompt).unwrap();
    let mut said = String::new();
    while let Some(token) = generation.next(engine).unwrap() {
        said.push_str(token.text);
    }
    let ids = generation.ids().to_vec();
    generation.end(engine);
    (ids, said)
}

async fn listen(desk: Desk, work: Work) -> (Vec<Piece>, Work, Timings) {
    let (pieces, ended) = ended(desk, work, None).await;
    (pieces, ended.work.unwrap(), ended.timings)
}

async fn ended(desk: Desk, work: Work, reuse: Option<Reuse>) -> (Vec<Piece>, Box<Ended>) {
    let mut answer =
        desk.submit(Request { client: ClientId(1), work, adapter: None, timeout: None, reuse }).unwrap();
    let mut pieces = Vec::new();
    loop {
        match answer.next().await.unwrap() {
            Event::Piece(piece) => pieces.push(piece),
            Event::Ended(ended) => {
                assert!(ended.outcome.is_ok(), "{:?}", ended.outcome);
                return (pieces, ended);
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

fn worker(engine: Engine) -> Worker {
    Worker::start("carried", engine, Options { prefill_chunk: 24, ..Options::default() }).unwrap()
}

#[test]
fn sixty_four_streams_each_say_what_they_would_say_alone() {
    let text = Text::open();
    let mut single = engine(1);
    let expected: Vec<_> = (0..64).map(|i| alone(&mut single, &text, i)).collect();
    let worker = worker(engine(64));
    let limits = worker.desk().limits();
    let limits = Limits { context: limits.context, vocab: limits.vocab };
    runtime().block_on(async {
        let speak = |i: usize| {
            let turn = Turn::new(limits, Some(text.reader()), settings(i), &text.prompt(i), Some(i % 4));
            tokio::spawn(listen(worker.desk().clone(), Work::Generate(Box::new(turn.unwrap()))))
        };
        let streams: Vec<_> = (0..64).map(speak).collect();
        for (i, stream) in streams.into_iter().enumerate() {
            let (pieces, work, _) = stream.await.unwrap();
            let Work::Generate(turn) = work else { panic!("another work") };
            let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
            let said: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!((&ids, &said), (&expected[i].0, &expected[i].1), "stream {i}");
            assert_eq!(turn.ids(), ids);
            assert_eq!(pieces.last().unwrap().finish, turn.finish());
            let message = pieces[0].message.as_ref().unwrap();
            assert_eq!(message.head.as_ref().unwrap().role, "assistant");
            assert!(pieces.iter().all(|piece| piece.alternatives.len() == i % 4));
            assert!(pieces.iter().all(|piece| piece.log_probability.unwrap() < 0.0));
        }
    });
    let figures = worker.desk().figures();
    assert_eq!((figures.finished, figures.running), (64, 0));
    assert!(figures.batch_sequences > 4 * figures.steps, "they did not run together: {figures:?}");
}

#[test]
fn scores_and_vectors_do_not_depend_on_who_runs_beside_them() {
    let text = Text::open();
    let ids = text.tokenizer.encode(TEXT, true).unwrap();
    let crowd = |count: usize| {
        let worker = worker(engine(8));
        let limits = worker.desk().limits();
        let turns = Limits { context: limits.context, vocab: limits.vocab };
        runtime().block_on(async {
            let beside: Vec<_> = (0..count)
                .map(|i| Turn::new(turns, Some(text.reader()), settings(i), &text.prompt(i), None).unwrap())
                .map(|turn| tokio::spawn(listen(worker.desk().clone(), Work::Generate(Box::new(turn)))))
                .collect();
            let score = Score::new(&limits, &ids, 3).unwrap();
            let embedded = |pooling| Work::Embed(Embed::new(&limits, ids.clone(), pooling).unwrap());
            let (score, mean, last) = tokio::join!(
                listen(worker.desk().clone(), Work::Score(score)),
                listen(worker.desk().clone(), embedded(Pooling::Mean)),
                listen(worker.desk().clone(), embedded(Pooling::Last)),
            );
            for stream in beside {
                stream.await.unwrap();
            }
            [score.1, mean.1, last.1].map(|work| match work {
                Work::Score(score) => score.log_probabilities().to_vec(),
                Work::Embed(mut embed) => embed.vector().unwrap().iter().map(|&x| f64::from(x)).collect(),
                Work::Generate(_) => panic!("another work"),
            })
        })
    };
    let alone = crowd(0);
    assert_eq!(alone[0].len(), ids.len() - 3);
    assert!(alone[0].iter().all(|value| *value < 0.0) && alone[1] != alone[2]);
    assert_eq!(alone, crowd(12));
    let mut engine = engine(1);
    assert_eq!(alone[0], log_probabilities(&mut engine, &ids, 3).unwrap());
    let mean = embed(&mut engine, &ids, Pooling::Mean).unwrap();
    assert_eq!(alone[1], mean.into_iter().map(f64::from).collect::<Vec<_>>());
}

/// A model with one rotary table up to 64 positions, and another beyond.
fn two_tables() -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/models/phi3");
    let mut config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let factors = |factor: &str| vec![factor; 128 / 4 / 2].join(", ");
    let longer = format!(
        "\"rope_scaling\": {{\"type\": \"longrope\", \"short_factor\": [{}], \"long_factor\": [{}]}}",
        factors("1.0"),
        factors("4.0")
    );
    for (was, is) in [
        ("\"original_max_position_embeddings\": 4096", "\"original_max_position_embeddings\": 64"),
        ("\"rope_scaling\": null", &longer),
    ] {
        assert!(config.contains(was));
        config = config.replace(was, is);
    }
    let spec = ModelSpec::parse(config.as_bytes()).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    Engine::load(spec, &checkpoint, engine(3).plan().options, Cpu::detect(), 1).unwrap()
}

#[test]
fn what_was_read_with_other_rotary_tables_is_not_met() {
    let worker = worker(two_tables());
    let limits = worker.desk().limits();
    let limits = Limits { context: limits.context, vocab: limits.vocab };
    let tokens: Vec<u32> = (0..100).map(|i| i * i % 199).collect();
    runtime().block_on(async {
        // The last two are below the border and above it when their replies end.
        for (prompt, new, known) in
            [(40, 4, 0), (50, 4, 40), (84, 4, 0), (40, 4, 39), (100, 4, 84), (60, 12, 40)]
        {
            let say = |reuse| {
                let flags = GenerationFlags {
                    max_new_tokens: Some(new),
                    temperature: Some(0.0),
                    ignore_eos: true,
                    ..GenerationFlags::default()
                };
                let settings = GenerationDefaults::default().settings(&flags, EosSources::default());
                let turn = Turn::new(limits, None, settings.unwrap(), &tokens[..prompt], None).unwrap();
                ended(worker.desk().clone(), Work::Generate(Box::new(turn)), reuse)
            };
            let (warm, cold) = (say(Some(Reuse::default())).await, say(None).await);
            let ids = |pieces: &[Piece]| pieces.iter().map(|piece| piece.id).collect::<Vec<_>>();
            assert_eq!(ids(&warm.0), ids(&cold.0), "{prompt} tokens");
            assert_eq!((warm.1.reused_tokens, cold.1.reused_tokens), (known, 0), "{prompt} tokens");
        }
    });
}

#[test]
fn what_the_scheduler_needs_of_an_engine_is_what_was_planned() {
    let mut engine = engine(3);
    let limits = Steps::limits(&engine);
    assert_eq!((limits.sequences, limits.positions), (3, 3 * 128));
    assert_eq!(Steps::free_positions(&engine), limits.positions);
    let sequence = Steps::open_for(&mut engine, 100).unwrap();
    assert_eq!(Steps::free_positions(&engine), limits.positions - 128, "whole pages");
    Steps::close(&mut engine, sequence);
    assert_eq!(Steps::free_positions(&engine), limits.positions);
}
