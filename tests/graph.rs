//! The operations that a decoder asks for, recorded instead of carried out: the graph of every golden model, as text
//! that a reviewer reads, and the rule that no operation reads what this step has not written.
//!
//! The recorder sees slots, not the memory behind them; what the kernels themselves touch (the prepared input of a
//! product, padding) is checked by running a step over memory full of NaN.

use std::collections::HashMap;
use std::fmt::Write;

use bantam_core::{
    Activation, Attention, Backend, Batch, Cpu, Feed, Heads, KvCache, KvKind, Matrix, Norm, Precision,
    Product, Region, Rope, Routed, RowPer, Slot,
};
use bantam_model::decoder::Decoder;
use bantam_model::engine::{Chunk, stored};
use bantam_model::formats::on_load::way;
use bantam_model::plan::{Fill, Options, Plan};
use bantam_tests::{MODELS, Noise, load, model_folder, open, options, repository};

/// A backend that writes down what it is asked.
struct Trace {
    /// Names by region and offset.
    names: HashMap<(u8, usize), String>,
    lines: Vec<String>,
    /// By offset in the work region: bytes that this step has written, from the slot's start.
    written: HashMap<usize, usize>,
    /// Reads of what nobody had written.
    faults: Vec<String>,
}

impl Trace {
    fn new(plan: &Plan) -> Self {
        let mut names = HashMap::new();
        let mut name = |slot: Slot, name: String| {
            // A tied head stands where the embedding is: the first name holds.
            names.entry((slot.region as u8, slot.offset)).or_insert(name);
        };
        // Slots of no bytes share an offset with their neighbour.
        for (work, slot) in plan.work.named().into_iter().filter(|(_, slot)| slot.bytes > 0) {
            name(slot, work.to_owned());
        }
        for (layer, cache) in plan.caches.iter().enumerate() {
            name(cache.slot, format!("cache {layer}"));
        }
        for fill in &plan.fills {
            match fill {
                Fill::Matrix { matrix, origin, cut, .. } => {
                    name(matrix.slot, format!("{}{cut}", origin.tensors()[0]));
                }
                Fill::Vector { slot, tensor, cut, .. } => name(*slot, format!("{tensor}{cut}")),
                Fill::Values { slot, .. } => name(*slot, "frequencies".to_owned()),
                Fill::Low(low) => name(low.slot, format!("adapter's {:?}", low.side)),
            }
        }
        Trace { names, lines: Vec::new(), written: HashMap::new(), faults: Vec::new() }
    }

    fn name(&self, slot: Slot) -> &str {
        let name = self.names.get(&(slot.region as u8, slot.offset));
        name.map_or("a slot outside the plan", String::as_str)
    }

    fn reads(&mut self, slot: Slot, floats: usize) {
        let written = self.written.get(&slot.offset).copied().unwrap_or(0);
        if floats * 4 > written {
            let fault = format!(
                "operation {} reads {} floats of {}, {} are written",
                self.lines.len(),
                floats,
                self.name(slot),
                written / 4
            );
            self.faults.push(fault);
        }
    }

    fn writes(&mut self, slot: Slot, floats: usize) {
        assert!(
            slot.region == Region::Work && floats * 4 <= slot.bytes,
            "{} holds {} bytes",
            self.name(slot),
            slot.bytes
        );
        let written = self.written.entry(slot.offset).or_insert(0);
        *written = floats * 4;
    }

    fn line(&mut self, line: String) {
        self.lines.push(line);
    }

    fn products(&mut self, of: &str, x_rows: usize, rows: usize, x: Slot, products: &[Product]) {
        for product in products {
            let shape = product.matrix.shape;
            self.reads(x, x_rows * shape.columns);
            if product.add {
                self.reads(product.out, rows * shape.rows);
            }
            let sign = if product.add { "+=" } else { "=" };
            let bias = product.bias.map_or(String::new(), |bias| format!(" + {}", self.name(bias)));
            let line = format!(
                "{} {sign} {} * {of}{} ({}){bias}: {rows} x {} -> {}",
                self.name(product.out),
                self.name(x),
                self.name(product.matrix.slot),
                product.matrix.layout.name(),
                shape.columns,
                shape.rows
            );
            self.line(line);
        }
        // Outputs only count once all products have read their input.
        for product in products {
            self.writes(product.out, rows * product.matrix.shape.rows);
        }
    }
}

impl Backend for Trace {
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot) {
        let width = table.shape.columns;
        self.writes(out, tokens.len() * width);
        let times = if scale == 1.0 { String::new() } else { format!(" * {scale}") };
        let (table, layout, out) = (self.name(table.slot), table.layout.name(), self.name(out));
        self.line(format!("{out} = embed {table} ({layout}){times}: {} x {width}", tokens.len()));
    }

    fn norm(&mut self, norm: &Norm, rows: usize, x: Slot, out: Slot) {
        self.reads(x, rows * norm.width);
        self.writes(out, rows * norm.width);
        let bias = norm.bias.map_or(String::new(), |bias| format!(" + {}", self.name(bias)));
        let (weight, x, out) = (self.name(norm.weight), self.name(x), self.name(out));
        let line = format!("{out} = norm {:?} {x} * {weight}{bias}: {rows} x {}", norm.kind, norm.width);
        self.line(line);
    }

    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]) {
        self.products("", rows, rows, x, products);
    }

    fn route(&mut self, routed: &Routed, rows: usize, logits: Slot) {
        let (experts, chosen) = (routed.choice.experts, routed.choice.chosen);
        self.reads(logits, rows * experts);
        self.writes(routed.slot, routed.choice.bytes(rows).expect("small") / 4);
        let (routing, logits) = (self.name(routed.slot), self.name(logits));
        let line = format!("{routing} = route {logits}: {rows} x {chosen} of {experts}");
        self.line(line);
    }

    fn matmul_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]) {
        let choice = routed.choice;
        self.reads(routed.slot, choice.bytes(rows).expect("small") / 4);
        let x_rows = if per == RowPer::Token { rows } else { choice.places(rows) };
        let experts = format!("{} experts ", choice.experts);
        self.products(&experts, x_rows, choice.places(rows), x, products);
    }

    fn combine(&mut self, routed: &Routed, rows: usize, width: usize, places: Slot, out: Slot) {
        let choice = routed.choice;
        self.reads(routed.slot, choice.bytes(rows).expect("small") / 4);
        self.reads(places, choice.places(rows) * width);
        self.reads(out, rows * width);
        let (out, places) = (self.name(out), self.name(places));
        let line = format!("{out} += shares of {places}: {rows} x {} of {width}", choice.chosen);
        self.line(line);
    }

    fn scale(
        &mut self,
        routed: Option<&Routed>,
        rows: usize,
        width: usize,
        factors: Slot,
        bias: Option<Slot>,
        x: Slot,
    ) {
        let places = routed.map_or(rows, |routed| routed.choice.places(rows));
        self.reads(x, places * width);
        let bias = bias.map_or(String::new(), |bias| format!(" + {}", self.name(bias)));
        let line = format!("{} *= {}{bias}: {places} x {width}", self.name(x), self.name(factors));
        self.line(line);
    }

    fn add(&mut self, rows: usize, width: usize, x: Slot, out: Slot) {
        self.reads(x, rows * width);
        self.reads(out, rows * width);
        let line = format!("{} += {}: {rows} x {width}", self.name(out), self.name(x));
        self.line(line);
    }

    fn cap(&mut self, limit: f32, rows: usize, width: usize, x: Slot) {
        self.reads(x, rows * width);
        let line = format!("{} bent below {limit}: {rows} x {width}", self.name(x));
        self.line(line);
    }

    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot) {
        self.writes(out, batch.rows() * 2 * rope.pairs());
        let (table, out) = (self.name(rope.frequencies), self.name(out));
        let times = if rope.scale == 1.0 { String::new() } else { format!(" * {}", rope.scale) };
        let line = format!("{out} = angles {table}{times}: {} x {} pairs", batch.rows(), rope.pairs());
        self.line(line);
    }

    fn rotate(&mut self, rows: usize, angles: Slot, heads: Heads, x: Slot) {
        self.reads(angles, angles.bytes / 4);
        self.reads(x, rows * heads.channels());
        let width = angles.bytes / 4 / rows;
        let (angles, x) = (self.name(angles), self.name(x));
        let line = format!(
            "{x} rotated by {angles}: {rows} x {} heads, {width} of {} channels",
            heads.count, heads.width
        );
        self.line(line);
    }

    fn store(&mut self, cache: &KvCache, batch: &Batch, keys: Slot, values: Slot) {
        let width = cache.heads * cache.shape.width;
        self.reads(keys, batch.rows() * width);
        self.reads(values, batch.rows() * width);
        let (name, keys, values) = (self.name(cache.slot), self.name(keys), self.name(values));
        let line = format!(
            "{name} stores {keys}, {values} as {:?}: {} x {} heads of {}",
            cache.shape.kind,
            batch.rows(),
            cache.heads,
            cache.shape.width
        );
        self.line(line);
    }

    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot) {
        let size = batch.rows() * attention.heads.channels();
        self.reads(queries, size);
        self.writes(out, size);
        let mut line = format!(
            "{} = attend {}, {}: {} x {} heads of {}, scale {:.4}",
            self.name(out),
            self.name(queries),
            self.name(cache.slot),
            batch.rows(),
            attention.heads.count,
            attention.heads.width,
            attention.scale
        );
        if let Some(window) = attention.window {
            let _ = write!(line, ", window {window}");
        }
        if let Some(cap) = attention.softcap {
            let _ = write!(line, ", softcap {cap}");
        }
        if let Some(sinks) = attention.sinks {
            let _ = write!(line, ", sinks {}", self.name(sinks));
        }
        self.line(line);
    }

    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>) {
        self.reads(gate, rows * width);
        up.iter().for_each(|up| self.reads(*up, rows * width));
        let times = up.map_or(String::new(), |up| format!(" * {}", self.name(up)));
        let gate = self.name(gate);
        let line = format!("{gate} = {activation:?} {gate}{times}: {rows} x {width}");
        self.line(line);
    }

    fn gather(&mut self, rows: &[usize], width: usize, x: Slot, out: Slot) {
        let last = rows.iter().max().map_or(0, |row| row + 1);
        self.reads(x, last * width);
        self.writes(out, rows.len() * width);
        let (x, out) = (self.name(x), self.name(out));
        let line = format!("{out} = rows {rows:?} of {x}: {width}");
        self.line(line);
    }

    fn read(&self, _: Slot) -> &[f32] {
        panic!("a recorder has no values")
    }
}

/// A step over a prompt of seven tokens and one of three further on in another sequence, and the logits of both.
fn record(model: &str, options: Options) -> Trace {
    let (spec, checkpoint) = open(&model_folder(model));
    let plan =
        Plan::new(&spec, stored(&checkpoint), options, Cpu::PORTABLE).expect("the golden can be planned");
    let mut trace = Trace::new(&plan);
    let feed = |first_row, rows, first_position, sequence| {
        let length = first_position + rows;
        Feed { first_row, rows, first_position, sequence, length }
    };
    let tables: Vec<u32> = (0..2 * plan.pages_per_sequence as u32).collect();
    let batch = Batch {
        feeds: &[feed(0, 7, 0, 0), feed(7, 3, 20, 1)],
        tables: &tables,
        pages_per_sequence: plan.pages_per_sequence,
    };
    let decoder = Decoder::new(spec, &plan);
    assert!(decoder.forward(&mut trace, &batch, &[1; 10], &|| false));
    decoder.logits(&mut trace, &[6, 9]);
    trace
}

fn two_sequences() -> Options {
    Options { sequences: 2, ..options() }
}

/// The recorded graph is the committed one.
fn check(model: &str) {
    let trace = record(model, two_sequences());
    assert!(trace.faults.is_empty(), "{model}: {}", trace.faults.join("\n"));
    let found = trace.lines.join("\n") + "\n";
    let path = repository("tests/goldens/graph").join(format!("{model}.txt"));
    if std::env::var_os("BANTAM_BLESS").is_some() {
        std::fs::write(&path, &found).expect("the golden can be written");
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).position(|(a, b)| a != b);
    let at = differs.unwrap_or(found.lines().count().min(wanted.lines().count()));
    assert!(
        found == wanted,
        "{} is not what is computed, from line {}:\n  committed: {}\n  computed:  {}\n\
         If that is meant, run `BANTAM_BLESS=1 cargo test -p bantam-tests --test graph` and review the diff.",
        path.display(),
        at + 1,
        wanted.lines().nth(at).unwrap_or("nothing"),
        found.lines().nth(at).unwrap_or("nothing"),
    );
}

#[test]
fn graphs_are_the_committed_ones_and_read_nothing_unwritten() {
    MODELS.iter().for_each(|model| check(model));
}

/// A rule that never bites proves nothing: without the embedding, the first norm reads what nobody wrote.
#[test]
fn a_read_before_its_write_is_found() {
    let (spec, checkpoint) = open(&model_folder("qwen2"));
    let plan =
        Plan::new(&spec, stored(&checkpoint), options(), Cpu::PORTABLE).expect("the golden can be planned");
    let mut trace = Trace::new(&plan);
    trace.norm(&plan.weights.final_norm, 2, plan.work.stream, plan.work.normed);
    assert_eq!(trace.faults, ["operation 0 reads 256 floats of stream, 0 are written"]);
    trace.norm(&plan.weights.final_norm, 3, plan.work.normed, plan.work.chosen);
    assert_eq!(trace.faults.len(), 2, "more rows are read than were written");
}

#[test]
fn memory_full_of_nan_changes_no_logit() {
    for model in MODELS {
        for cpu in Cpu::detect().variants() {
            for (precision, quantization) in [
                (Precision::Exact, None),
                (Precision::Fast, None),
                (Precision::Fast, way("int8")),
                (Precision::Fast, way("nf4")),
            ] {
                let options = Options { kv: KvKind::F16, precision, quantization, ..options() };
                let mut engine = load(&model_folder(model), options, cpu, 2);
                let prompt = Noise::new(9).tokens(70, engine.spec().vocab);
                let mut run = |poisoned: bool| {
                    if poisoned {
                        engine.poison(Region::Work);
                        engine.poison(Region::Cache);
                    }
                    let sequence = engine.open().expect("a free sequence");
                    let mut logits = Vec::new();
                    // Many tokens, one token, then few: the later steps find larger remains of the earlier.
                    for tokens in [&prompt[..45], &prompt[45..46], &prompt[46..]] {
                        if poisoned {
                            engine.poison(Region::Work);
                        }
                        engine.step(&[Chunk { sequence, tokens }]).expect("room");
                        let rows: Vec<usize> = (0..tokens.len()).collect();
                        logits.extend_from_slice(engine.logits(&rows));
                    }
                    engine.close(sequence);
                    logits
                };
                let (clean, poisoned) = (run(false), run(true));
                let way = quantization.map_or("as it is", |way| way.name);
                let what = format!("{model}, {precision:?}, {way}, {}", cpu.name());
                assert!(clean.iter().all(|logit| logit.is_finite()), "{what}: logits that are no numbers");
                let same = clean.iter().zip(&poisoned).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{what}: something was read that the step had not written");
            }
        }
    }
}
