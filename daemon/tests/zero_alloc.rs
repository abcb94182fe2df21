//! The scheduler's thread allocates nothing per token: not for a step of many streams, not for what it hands to their
//! readers, not when a request gets its sequence or ends. Every call of the program's allocator counts, on all
//! threads; what requests and readers take is theirs, and stands between the counts. See `tests/zero_alloc.rs` for
//! what is below.

#[path = "../../tests/house/counting.rs"]
mod counting;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll, Waker};

use bantam_core::{Cpu, KvKind, Precision, Trits};
use bantam_daemon::scheduler::{
    Advance, Answer, Batch, ClientId, Desk, Event, Monotonic, Options, Request, Reuse, Score, Work, pair,
};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::detokenizer::ByteTable;
use bantam_model::engine::Engine;
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags};
use bantam_model::plan;
use bantam_model::reply::reader::Reader;
use bantam_model::spec::ModelSpec;
use bantam_model::tokenizer::Tokenizer;
use bantam_model::turn::{Limits, Turn};

const SEQUENCES: usize = 8;

fn engine(folder: &Path) -> Engine {
    let config = std::fs::read(folder.join("config.json")).expect("the model has a configuration");
    let spec = ModelSpec::parse(&config).expect("sound");
    let options = plan::Options {
        context: 256,
        sequences: SEQUENCES,
        cache_positions: Some(1024),
        chunk: 64,
        logits_rows: SEQUENCES,
        kv: KvKind::F16,
        precision: Precision::Fast,
        quantization: None,
        head: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    };
    let checkpoint = Checkpoint::open(folder).expect("sound");
    Engine::load(spec, &checkpoint, options, Cpu::detect(), 2).expect("the model loads")
}

/// Turns that are as different as requests can be.
struct Requests {
    tokenizer: Tokenizer,
    table: Arc<ByteTable>,
    limits: Limits,
    made: usize,
}

impl Requests {
    fn next(&mut self, desk: &Desk) -> Request {
        let i = self.made;
        self.made += 1;
        let text = "The history of the city begins with a river and a bridge. ".repeat(1 + i % 4);
        let prompt = self.tokenizer.encode(&text, true).expect("plain text");
        if i % 7 == 3 {
            let work = Score::new(&desk.limits(), &prompt, 2).expect("enough tokens");
            let client = ClientId(i as u64 % 3);
            return Request { client, work: Work::Score(work), adapter: None, timeout: None, reuse: None };
        }
        let flags = GenerationFlags {
            max_new_tokens: Some(10 + i % 50),
            temperature: Some((i % 3) as f64 * 0.6),
            top_k: Some(50),
            repetition_penalty: Some(1.1),
            seed: Some(i as u64),
            stop: vec!["\u{1F9FF} the".to_owned()],
            ..GenerationFlags::default()
        };
        let settings = GenerationDefaults::default().settings(&flags, EosSources::default());
        let reader = Some(Reader::plain(self.table.clone()));
        let turn = Turn::new(self.limits, reader, settings.expect("sound flags"), &prompt, Some(i % 5));
        Request {
            client: ClientId(i as u64 % 3),
            work: Work::Generate(Box::new(turn.expect("it fits"))),
            adapter: None,
            timeout: None,
            reuse: Some(Reuse::default()),
        }
    }
}

/// Takes what has come; whether the end came.
fn read(answer: &mut Answer, pieces: &mut usize) -> bool {
    loop {
        match answer.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Event::Piece(_))) => *pieces += 1,
            Poll::Ready(Some(Event::Ended(ended))) => {
                ended.outcome.expect("nothing goes wrong");
                return true;
            }
            Poll::Ready(None) => return true,
            Poll::Pending => return false,
        }
    }
}

/// One step, which must allocate and free nothing.
fn counted_step(batch: &mut Batch<Engine>) -> Advance {
    let before = counting::counters();
    let advance = batch.advance();
    let after = counting::counters();
    assert_eq!((after.0 - before.0, after.1 - before.1), (0, 0), "allocations and frees of a step");
    assert!(before.0 > 0 && counting::ALIVE.load(SeqCst) > 0, "the counter counts nothing");
    advance
}

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/real/llama");
    let (desk, mut batch) = pair(engine(&folder), Options::default(), Arc::new(Monotonic::default()));
    let bytes = std::fs::read(folder.join("tokenizer.json")).expect("the model has a tokenizer");
    let tokenizer = Tokenizer::from_bytes(&bytes, None, None).expect("sound");
    let table = Arc::new(ByteTable::new(&tokenizer).expect("sound"));
    let limits = Limits { context: desk.limits().context, vocab: desk.limits().vocab };
    let mut requests = Requests { tokenizer, table, limits, made: 0 };
    let mut answers = Vec::new();
    let (mut steps, mut pieces) = (0, 0);
    while requests.made < 60 || !answers.is_empty() {
        if requests.made < 60 && answers.len() < 2 * SEQUENCES {
            let request = requests.next(&desk);
            answers.push(desk.submit(request).expect("the queue has room"));
        }
        let is_idle = counted_step(&mut batch) != Advance::Stepped;
        steps += 1;
        // Some readers look seldom.
        let mut i = 0;
        answers.retain_mut(|answer| {
            i += 1;
            (i % 3 == 0 && steps % 40 != 0 && !is_idle) || !read(answer, &mut pieces)
        });
    }
    let figures = desk.figures();
    println!("{steps} steps of {figures:?}: 0 allocations, 0 frees, on all threads");
    assert_eq!((figures.finished, figures.new_tokens), (60, pieces as u64));
    assert!(figures.batch_sequences > 3 * figures.steps, "they did not run together");
}
