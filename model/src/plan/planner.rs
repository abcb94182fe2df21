//! How a plan is made: walks a specification, asks how its tensors stand in the checkpoint, and takes slots.

use bantam_core::arena::Layouter;
use bantam_core::layouts::page::{POSITIONS, PageShape};
use bantam_core::layouts::{BFLOAT16, FLOAT16, FLOAT32, Layout, Shape};
use bantam_core::ops::matmul::panel_bytes;
use bantam_core::{Choice, Cpu, KvCache, Matrix, Norm, Precision, Region, Rope, Slot};

use crate::adapter::{Adapter, Used};
use crate::checkpoint::Dtype;
use crate::families::{Part, Rows, Stack};
use crate::formats::on_load::OnLoad;
use crate::formats::{Packed, Tensors};
use crate::plan::low::Lows;
use crate::plan::{
    Cut, Fill, LayerWeights, Line, Linear, Options, Origin, PlanError, Stored, Weights, WorkSlots,
};
use crate::rope::RopeSpec;
use crate::spec::{LayerSpec, MlpSpec, ModelSpec, NormSpec};

pub(crate) struct Planner<'a> {
    pub(crate) spec: &'a ModelSpec,
    stored: &'a dyn Fn(&str, &[usize]) -> Option<Stored>,
    pub(super) adapter: Option<(&'a Adapter, &'a Used)>,
    pub(super) options: Options,
    cpu: Cpu,
    pub(crate) lines: Vec<Line>,
    pub(crate) fills: Vec<Fill>,
    pub(crate) weights: Layouter,
    pub(crate) cache: Layouter,
    pub(crate) work: Layouter,
    panel_bytes: usize,
    /// Which matrices are held in float32, whatever they are stored as: by the names of their tensors.
    pub(super) floats: Option<&'a dyn Fn(&str) -> bool>,
    /// Experts apart, then.
    lean: bool,
    /// Bytes of experts that a token is not sent to.
    pub(crate) unread_bytes: usize,
    pub(super) lows: Lows,
    /// What the adapter adds stands in a region of its own.
    pub(super) is_guest: bool,
    pub(super) guests: Layouter,
}

/// How a matrix is held in memory.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) layout: &'static dyn Layout,
    /// Whether it may have an order of columns.
    pub(super) ordered: bool,
    /// Whether it has factors of columns.
    pub(super) factored: bool,
    /// How often it takes its input.
    pub(super) times: usize,
    /// How it is quantized on the way there.
    pub(super) encode: Option<&'static OnLoad>,
}

impl Held {
    fn is(&self, other: &Held) -> bool {
        let taken = |held: &Held| (held.ordered, held.factored, held.times);
        self.layout.name() == other.layout.name() && taken(self) == taken(other)
    }

    /// A matrix that takes its input as it is.
    pub(super) fn plain(layout: &'static dyn Layout, encode: Option<&'static OnLoad>) -> Held {
        Held { layout, ordered: false, factored: false, times: 1, encode }
    }
}

/// Where an expert's matrix stands, which part of it is meant, and how it is quantized on the way.
type Source = (Origin, Cut, Option<&'static OnLoad>);

/// A matrix of the plan, on its way from names to slots.
pub(super) struct Wanted<'a> {
    /// Its line in the table.
    line: &'a str,
    /// Where its tensor is.
    part: Part,
    /// Where it was when the model was trained.
    pub(super) trained: Part,
    /// Its size.
    pub(super) shape: Shape,
    /// Rows of all projections that share the tensor, in their order.
    pub(super) sections: &'a [usize],
    /// Whether it has a bias.
    bias: bool,
}

/// Which rows of its tensor a matrix of `count` rows is, and how many the tensor has.
pub(crate) fn cut(spec: &ModelSpec, rows: Rows, count: usize, sections: &[usize]) -> (Cut, usize) {
    let head = spec.layers.first().map_or(1, |layer| layer.attention.head_width);
    match rows {
        Rows::All => (Cut::WHOLE, count),
        Rows::Heads { index, of } => {
            (Cut { first: index * head, run: head, every: of * head, ..Cut::WHOLE }, count * of)
        }
        Rows::Single { index, of } => (Cut { first: index, every: of, ..Cut::WHOLE }, count * of),
        Rows::Pairs => (Cut { pairs: Some(head), ..Cut::WHOLE }, count),
        Rows::Section(index) => {
            (Cut { first: sections[..index].iter().sum(), ..Cut::WHOLE }, sections.iter().sum())
        }
    }
}

impl<'a> Planner<'a> {
    pub(crate) fn new(
        spec: &'a ModelSpec,
        stored: &'a dyn Fn(&str, &[usize]) -> Option<Stored>,
        adapter: Option<(&'a Adapter, &'a Used)>,
        options: Options,
        cpu: Cpu,
    ) -> Self {
        Planner {
            spec,
            stored,
            adapter,
            options,
            cpu,
            lines: Vec::new(),
            fills: Vec::new(),
            weights: Layouter::new(Region::Weights),
            cache: Layouter::new(Region::Cache),
            work: Layouter::new(Region::Work),
            panel_bytes: 0,
            floats: None,
            lean: false,
            unread_bytes: 0,
            lows: Lows::default(),
            is_guest: false,
            guests: Layouter::new(Region::Adapters),
        }
    }

    fn layouter(&mut self, region: Region) -> &mut Layouter {
        match region {
            Region::Weights => &mut self.weights,
            Region::Cache => &mut self.cache,
            Region::Work => &mut self.work,
            Region::Adapters => &mut self.guests,
        }
    }

    /// Takes a slot and writes its line; slots of the same name add up in one line.
    pub(super) fn slot(
        &mut self,
        region: Region,
        name: &str,
        shape: String,
        bytes: Option<usize>,
    ) -> Result<Slot, PlanError> {
        let layouter = self.layouter(region);
        let before = layouter.bytes();
        let slot = bytes
            .and_then(|bytes| layouter.slot(bytes))
            .ok_or_else(|| PlanError::TooLarge { what: name.to_owned() })?;
        let taken = layouter.bytes() - before;
        match self.lines.iter_mut().find(|line| line.name == name && line.region == region) {
            Some(line) => {
                line.bytes += taken;
                if line.shape != shape {
                    line.shape = "several".to_owned();
                }
            }
            None => {
                let lifetime = match region {
                    Region::Weights | Region::Adapters => "run",
                    Region::Cache => "sequence",
                    Region::Work => "step",
                };
                self.lines.push(Line { name: name.to_owned(), region, lifetime, shape, bytes: taken });
            }
        }
        Ok(slot)
    }

    fn stored_as(&self, tensor: &str, expected: &[usize]) -> Result<Dtype, PlanError> {
        let whole = self.adapter.and_then(|(adapter, _)| adapter.stored(tensor));
        self.dtype_of(tensor, whole.or_else(|| (self.stored)(tensor, expected)), expected)
    }

    fn dtype_of(&self, tensor: &str, stored: Option<Stored>, expected: &[usize]) -> Result<Dtype, PlanError> {
        let Some(stored) = stored else {
            return Err(PlanError::MissingTensor { tensor: tensor.to_owned(), expected: expected.to_vec() });
        };
        if stored.shape != expected {
            let (expected, found) = (expected.to_vec(), stored.shape);
            return Err(PlanError::Shape { tensor: tensor.to_owned(), expected, found });
        }
        match stored.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64 => Ok(stored.dtype),
            other => {
                let expected = "F32, F16, BF16 or F64".to_owned();
                Err(PlanError::Dtype { tensor: tensor.to_owned(), expected, found: other.name() })
            }
        }
    }

    /// A matrix on its own.
    pub(super) fn matrix(
        &mut self,
        line: &str,
        tensor: String,
        cut: Cut,
        stored: usize,
        shape: Shape,
    ) -> Result<Matrix, PlanError> {
        let stored = Shape { rows: stored, columns: shape.columns };
        let (held, origin) = self.origin(line, tensor, stored)?;
        self.matrix_of(line, held, origin, cut, shape)
    }

    pub(super) fn matrix_of(
        &mut self,
        line: &str,
        held: Held,
        origin: Origin,
        cut: Cut,
        shape: Shape,
    ) -> Result<Matrix, PlanError> {
        let tokens = if line == "head" { self.options.logits_rows } else { self.options.chunk };
        let matrix = self.stack(line, held, shape, 1, tokens)?;
        self.fills.push(Fill::Matrix { matrix, origin, cut, encode: held.encode });
        Ok(matrix)
    }

    /// Where a matrix stands, and how it is held.
    fn origin(&self, line: &str, tensor: String, shape: Shape) -> Result<(Held, Origin), PlanError> {
        if self.takes_whole(&tensor) {
            let dtype = self.stored_as(&tensor, &[shape.rows, shape.columns])?;
            return Ok((self.held_floats(line, &tensor, dtype, shape), Origin::Whole(tensor)));
        }
        self.origin_in_base(line, tensor, shape)
    }

    /// The same of the model itself.
    pub(super) fn origin_in_base(
        &self,
        line: &str,
        tensor: String,
        shape: Shape,
    ) -> Result<(Held, Origin), PlanError> {
        let tensors = |name: &str| (self.stored)(name, &[]);
        let module = tensor.strip_suffix(".weight").unwrap_or(&tensor);
        if let Some(packed) = self.spec.format.find(&Tensors(&tensors), module, shape)? {
            return Ok((self.held_codes(line, &tensor, &packed), Origin::Packed(Box::new(packed))));
        }
        let expected = [shape.rows, shape.columns];
        let dtype = self.dtype_of(&tensor, (self.stored)(&tensor, &expected), &expected)?;
        Ok((self.held_floats(line, &tensor, dtype, shape), Origin::Tensor(tensor)))
    }

    /// Whether a matrix is held in float32, whatever it is stored as.
    fn is_float(&self, line: &str, tensor: &str) -> bool {
        self.floats.is_some_and(|is_float| is_float(tensor)) && !(self.lean && line.ends_with("experts"))
    }

    /// How a tensor of floating point is held.
    fn held_floats(&self, line: &str, tensor: &str, dtype: Dtype, shape: Shape) -> Held {
        // Routers stay as they are, and an embedding that is not the head too.
        let head = line == "head" || line == "embedding" && self.spec.tied;
        let Options { quantization, head: of_head, experts, .. } = self.options;
        let way = match (line.starts_with("layers"), line.ends_with("experts")) {
            (true, true) => experts.or(quantization),
            (true, false) => quantization,
            (false, _) => of_head.filter(|_| head),
        };
        if let Some((way, layout)) =
            way.and_then(|way| Some((way, way.layout(shape, self.options.precision, self.options.trits)?)))
        {
            let encode = layout.coded().map(|_| way);
            return Held::plain(layout, encode);
        }
        let layout: &'static dyn Layout = match dtype {
            _ if self.is_float(line, tensor) => FLOAT32,
            Dtype::Bf16 => BFLOAT16,
            Dtype::F16 => FLOAT16,
            _ => FLOAT32,
        };
        Held::plain(layout, None)
    }

    /// How a quantized matrix is held: in its codes, where a layout takes them; else in floating point, in as many bits
    /// as the precision asks for.
    fn held_codes(&self, line: &str, tensor: &str, packed: &Packed) -> Held {
        let (ordered, factored) = (packed.decode.ordered(), packed.decode.factored());
        let times = packed.decode.times();
        // Rows of a table are read without an input.
        let unread = packed.divisors.is_some() || line == "embedding" && (factored || times > 1);
        let coding = packed.decode.coding(packed.shape).filter(|_| !unread && !self.is_float(line, tensor));
        match coding.and_then(|coding| coding.layout(self.options.precision, self.options.trits)) {
            Some(layout) => Held { layout, ordered, factored, times, encode: None },
            None => self.held_floats(line, tensor, self.unpacked_dtype(), packed.shape),
        }
    }

    /// Memory for `count` matrices of one shape, and for the prepared input that `tokens` rows need.
    pub(super) fn stack(
        &mut self,
        line: &str,
        held: Held,
        shape: Shape,
        count: usize,
        tokens: usize,
    ) -> Result<Matrix, PlanError> {
        let Held { layout, ordered, factored, times, .. } = held;
        let whole = Shape { columns: shape.columns * times, ..shape };
        let stacked = if count > 1 { format!("{count} x ") } else { String::new() };
        let twice = if times > 1 { format!("{times} x ") } else { String::new() };
        let text = format!("{stacked}{}x{twice}{} {}", shape.rows, shape.columns, layout.name());
        let bytes = Matrix::bytes(layout, whole).and_then(|bytes| bytes.checked_mul(count));
        let slot = self.slot(self.region_of(line), line, text, bytes)?;
        let mut of_columns = |wanted: bool, name: &str, text: &str| {
            let bytes = shape.columns.checked_mul(4 * count);
            wanted.then(|| self.slot(Region::Weights, name, text.to_owned(), bytes)).transpose()
        };
        let order = of_columns(ordered, "orders of columns", "u32 vectors")?;
        let factors = of_columns(factored, "factors of columns", "f32 vectors")?;
        self.prepared(layout, whole.columns, tokens)?;
        Ok(Matrix { layout, shape, slot, order, factors, times })
    }

    /// Room for so many rows of a product's prepared input.
    pub(super) fn prepared(
        &mut self,
        layout: &dyn Layout,
        columns: usize,
        tokens: usize,
    ) -> Result<(), PlanError> {
        let form = layout.form(self.options.precision, self.cpu);
        // Prepared input grows by the same for every token.
        let bytes = panel_bytes(form, columns, 1)
            .checked_mul(tokens)
            .ok_or_else(|| PlanError::TooLarge { what: "prepared input".to_owned() })?;
        self.panel_bytes = self.panel_bytes.max(bytes);
        Ok(())
    }

    fn vector(
        &mut self,
        line: &str,
        tensor: String,
        cut: Cut,
        stored: &[usize],
        len: usize,
    ) -> Result<Slot, PlanError> {
        self.stored_as(&tensor, stored)?;
        let slot = self.slot(Region::Weights, line, "f32 vectors".to_owned(), len.checked_mul(4))?;
        let whole = self.takes_whole(&tensor);
        self.fills.push(Fill::Vector { slot, tensor, cut, whole });
        Ok(slot)
    }

    fn norm(&mut self, module: &str, norm: &NormSpec, width: usize) -> Result<Norm, PlanError> {
        let weight = self.vector(
            "norms",
            format!("{module}.{}", self.spec.names.norm_weight),
            Cut::WHOLE,
            &[width],
            width,
        )?;
        let bias = match norm.bias {
            true => Some(self.vector("norms", format!("{module}.bias"), Cut::WHOLE, &[width], width)?),
            false => None,
        };
        let NormSpec { kind, epsilon, weight_shift, .. } = *norm;
        Ok(Norm { kind, width, epsilon, weight_shift, weight, bias })
    }

    fn norms(
        &mut self,
        prefix: &str,
        modules: Option<[&str; 2]>,
        norm: &NormSpec,
        width: usize,
    ) -> Result<Option<[Norm; 2]>, PlanError> {
        let Some([a, b]) = modules else {
            return Ok(None);
        };
        let (a, b) = (format!("{prefix}{a}"), format!("{prefix}{b}"));
        Ok(Some([self.norm(&a, norm, width)?, self.norm(&b, norm, width)?]))
    }

    /// See [`cut`].
    pub(super) fn cut(&self, rows: Rows, count: usize, sections: &[usize]) -> (Cut, usize) {
        cut(self.spec, rows, count, sections)
    }

    fn linear(&mut self, prefix: &str, wanted: &Wanted) -> Result<Linear, PlanError> {
        let Wanted { line, part, shape, sections, bias, .. } = *wanted;
        let (cut, stored) = self.cut(part.rows, shape.rows, sections);
        let name = |kind: &str| format!("{prefix}{}.{kind}", part.module);
        let matrix = self.matrix(line, name("weight"), cut, stored, shape)?;
        let bias =
            bias.then(|| self.vector("biases", name("bias"), cut, &[stored], shape.rows)).transpose()?;
        let low = self.low_of_linear(prefix, wanted, matrix)?;
        Ok(Linear { matrix, bias, low })
    }

    pub(crate) fn weights(&mut self) -> Result<Weights, PlanError> {
        let spec = self.spec;
        let names = spec.names;
        let table = Shape { rows: spec.vocab, columns: spec.hidden };
        self.check_wholes()?;
        let embedding = format!("{}.weight", names.embedding);
        let embedding = self.matrix("embedding", embedding, Cut::WHOLE, table.rows, table)?;
        let layers = spec
            .layers
            .iter()
            .enumerate()
            .map(|(i, layer)| self.layer(i, layer))
            .collect::<Result<_, _>>()?;
        let final_norm = self.norm(names.final_norm, &spec.final_norm, spec.hidden)?;
        let embedding_low = self.low_of_table(embedding)?;
        let head = self.head(embedding)?;
        let ropes = spec.ropes.iter().map(|rope| self.rope(rope)).collect::<Result<_, PlanError>>()?;
        Ok(Weights { embedding, embedding_low, head, final_norm, layers, ropes })
    }

    /// The one layer of the specification, all in float32, or all but the experts.
    pub(crate) fn layer_alone(&mut self, number: usize, lean: bool) -> Result<Weights, PlanError> {
        self.floats = Some(&|_| true);
        self.lean = lean;
        let spec = self.spec;
        let layers = vec![self.layer(number, &spec.layers[0])?];
        let ropes = spec.ropes.iter().map(|rope| self.rope(rope)).collect::<Result<_, PlanError>>()?;
        let slot = Slot { region: Region::Weights, offset: 0, bytes: 0 };
        let shape = Shape { rows: 0, columns: spec.hidden };
        let embedding = Matrix::plain(FLOAT32, shape, slot);
        let head = Linear { matrix: embedding, bias: None, low: None };
        let final_norm = layers[0].attention_norm;
        Ok(Weights { embedding, embedding_low: None, head, final_norm, layers, ropes })
    }

    /// Room for other stacks in the place of a layer's experts: of its gate, up and down.
    pub(crate) fn stacks(
        &mut self,
        layer: &LayerWeights,
        choice: Choice,
        layout: &'static dyn Layout,
        times: usize,
    ) -> Result<[Option<Matrix>; 3], PlanError> {
        let tokens = self.options.chunk.saturating_mul(choice.chosen);
        let held = Held { times, ..Held::plain(layout, None) };
        let mut stacks = [None; 3];
        for (linear, stack) in [layer.gate, Some(layer.up), Some(layer.down)].into_iter().zip(&mut stacks) {
            let Some(linear) = linear else { continue };
            let line = "layers: feed-forward, experts anew";
            *stack = Some(self.stack(line, held, linear.matrix.shape, choice.experts, tokens)?);
        }
        Ok(stacks)
    }

    fn rope(&mut self, rope: &RopeSpec) -> Result<Rope, PlanError> {
        let mut table = |values: Vec<f32>| {
            let bytes = Some(values.len() * 4);
            let slot = self.slot(Region::Weights, "rotary tables", "f32".to_owned(), bytes)?;
            self.fills.push(Fill::Values { slot, values });
            Ok(slot)
        };
        let frequencies = table(rope.frequencies())?;
        let longer = match rope.longer_frequencies() {
            Some((positions, values)) => Some((positions, table(values)?)),
            None => None,
        };
        Ok(Rope { frequencies, scale: rope.attention_factor(), longer })
    }

    fn layer(&mut self, number: usize, layer: &LayerSpec) -> Result<LayerWeights, PlanError> {
        let names = self.spec.names;
        let hidden = self.spec.hidden;
        let prefix = names.layer.replace("{}", &number.to_string());
        let a = &layer.attention;
        let (query, kv) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let output = Shape { rows: hidden, columns: query };
        let (line, sections) = ("layers: attention", [query, kv, kv]);
        let trained = self.spec.trained;
        let input = |part, trained, rows| Wanted {
            line,
            part,
            trained,
            shape: Shape { rows, columns: hidden },
            sections: &sections,
            bias: a.input_bias,
        };
        let attention_norm = self.norm(&format!("{prefix}{}", names.attention_norm), &layer.norm, hidden)?;
        let query = self.linear(&prefix, &input(names.query, trained.query, query))?;
        let key = self.linear(&prefix, &input(names.key, trained.key, kv))?;
        let value = self.linear(&prefix, &input(names.value, trained.value, kv))?;
        let head_norms = self.norms(&prefix, names.head_norms, &layer.norm, a.head_width)?;
        let sinks = match names.sinks {
            Some(name) => {
                let name = format!("{prefix}{name}");
                Some(self.vector("sinks", name, Cut::WHOLE, &[a.heads], a.heads)?)
            }
            None => None,
        };
        let (part, trained) = (names.output, trained.output);
        let wanted = Wanted { line, part, trained, shape: output, sections: &[], bias: a.output_bias };
        let output = self.linear(&prefix, &wanted)?;
        let mlp_norm = self.norm(&format!("{prefix}{}", names.mlp_norm), &layer.norm, hidden)?;
        let post_norms = self.norms(&prefix, names.post_norms, &layer.norm, hidden)?;
        let (router, [gate, up, down]) = self.mlp(&prefix, &layer.mlp)?;
        let (up, down) = (up.expect("every block has one"), down.expect("every block has one"));
        Ok(LayerWeights {
            attention_norm,
            mlp_norm,
            post_norms,
            head_norms,
            query,
            key,
            value,
            sinks,
            output,
            router,
            gate,
            up,
            down,
        })
    }

    /// Router where there is one; then gate where there is one, up, down.
    fn mlp(
        &mut self,
        prefix: &str,
        mlp: &MlpSpec,
    ) -> Result<(Option<Linear>, [Option<Linear>; 3]), PlanError> {
        let names = self.spec.names;
        let hidden = self.spec.hidden;
        let (up, down) =
            (Shape { rows: mlp.width, columns: hidden }, Shape { rows: hidden, columns: mlp.width });
        let trained = self.spec.trained;
        let parts = [
            (names.gate.zip(trained.gate), up),
            (Some((names.up, trained.up)), up),
            (Some((names.down, trained.down)), down),
        ];
        let router = match (mlp.experts, names.experts.zip(trained.experts)) {
            (Some(experts), Some(((module, _), (trained, _)))) => {
                let shape = Shape { rows: experts.choice.experts, columns: hidden };
                let [part, trained] = [module, trained].map(|module| Part { module, rows: Rows::All });
                let bias = experts.router_bias;
                let wanted = Wanted { line: "routers", part, trained, shape, sections: &[], bias };
                Some(self.linear(prefix, &wanted)?)
            }
            _ => None,
        };
        let mut linears = [None; 3];
        for ((part, shape), linear) in parts.into_iter().zip(&mut linears) {
            let sections = &[mlp.width, mlp.width];
            let Some((part, trained)) = part else { continue };
            let (line, bias) = ("layers: feed-forward", mlp.bias);
            let wanted = Wanted { line, part, trained, shape, sections, bias };
            *linear = Some(match (mlp.experts, names.experts) {
                (Some(experts), Some((_, stack))) => self.experts(prefix, &wanted, experts.choice, stack)?,
                _ => self.linear(prefix, &wanted)?,
            });
        }
        Ok((router, linears))
    }

    /// Where the matrices of experts stand, and how all are held.
    #[allow(clippy::too_many_arguments, reason = "what, where from, and which part of it")]
    fn expert_sources(
        &self,
        line: &str,
        name: &dyn Fn(usize) -> String,
        cut: Cut,
        stored: usize,
        shape: Shape,
        choice: Choice,
        stack: Stack,
    ) -> Result<(Held, Vec<Source>), PlanError> {
        Ok(match stack {
            Stack::Apart => {
                let shape = Shape { rows: stored, columns: shape.columns };
                let found = (0..choice.experts)
                    .map(|expert| self.origin(line, format!("{}.weight", name(expert)), shape))
                    .collect::<Result<Vec<_>, _>>()?;
                let first = found.first().expect("a mixture has experts").0;
                // A stack has one layout: float32 holds whatever its matrices are stored as.
                let mixed = !found.iter().all(|(held, _)| held.is(&first));
                let all = if mixed { self.held_floats(line, "", Dtype::F32, shape) } else { first };
                let source = |(held, origin): (Held, Origin)| {
                    let encode = if mixed { all.encode } else { held.encode };
                    (origin, cut, encode)
                };
                (all, found.into_iter().map(source).collect())
            }
            Stack::Together { matrix, turned } => {
                let shape = Shape { rows: stored, columns: shape.columns };
                let name = format!("{}{matrix}", name(0));
                let whole = self.takes_whole(&name);
                if !whole && let Some(packed) = self.packed_stack(&name, choice.experts, shape)? {
                    let held = self.held_codes(line, &name, &packed[0]);
                    let source = |packed| (Origin::Packed(Box::new(packed)), cut, held.encode);
                    return Ok((held, packed.into_iter().map(source).collect()));
                }
                let sides = if turned { [shape.columns, stored] } else { [stored, shape.columns] };
                let dtype = self.stored_as(&name, &[choice.experts, sides[0], sides[1]])?;
                let turned = turned.then_some(stored);
                let cut = |expert| Cut { start: expert * shape.columns * stored, turned, ..cut };
                let held = self.held_floats(line, &name, dtype, shape);
                let origin = if whole { Origin::Whole } else { Origin::Tensor };
                let source = |expert| (origin(name.clone()), cut(expert), held.encode);
                (held, (0..choice.experts).map(source).collect())
            }
        })
    }

    fn packed_stack(
        &self,
        name: &str,
        experts: usize,
        shape: Shape,
    ) -> Result<Option<Vec<Packed>>, PlanError> {
        let tensors = |name: &str| (self.stored)(name, &[]);
        self.spec.format.find_stack(&Tensors(&tensors), name, experts, shape)
    }

    /// What quantized weights become: float32 where every bit counts.
    fn unpacked_dtype(&self) -> Dtype {
        match self.options.precision {
            Precision::Exact => Dtype::F32,
            Precision::Fast => Dtype::Bf16,
        }
    }

    /// The same projection of all experts.
    fn experts(
        &mut self,
        prefix: &str,
        wanted: &Wanted,
        choice: Choice,
        stack: Stack,
    ) -> Result<Linear, PlanError> {
        let &Wanted { line, part, shape, sections, bias, .. } = wanted;
        let line = &format!("{line}, experts");
        let (cut, stored) = self.cut(part.rows, shape.rows, sections);
        let name = |expert: usize| format!("{prefix}{}", part.module.replace("{}", &expert.to_string()));
        let (held, sources) = self.expert_sources(line, &name, cut, stored, shape, choice, stack)?;
        let tokens = self.options.chunk.saturating_mul(choice.chosen);
        let matrix = self.stack(line, held, shape, choice.experts, tokens)?;
        let bytes = matrix.slot.bytes / choice.experts;
        self.unread_bytes += (choice.experts - choice.chosen) * bytes;
        for (expert, (origin, cut, encode)) in sources.into_iter().enumerate() {
            let part = |slot: Slot| {
                let bytes = slot.bytes / choice.experts;
                Slot { offset: slot.offset + expert * bytes, bytes, ..slot }
            };
            let (order, factors) = (matrix.order.map(part), matrix.factors.map(part));
            let matrix = Matrix { slot: part(matrix.slot), order, factors, ..matrix };
            self.fills.push(Fill::Matrix { matrix, origin, cut, encode });
        }
        let bias = match (bias, stack) {
            (false, _) => None,
            (true, Stack::Together { .. }) => {
                let (len, stored) = (choice.experts * shape.rows, [choice.experts, stored]);
                Some(self.vector("biases", format!("{}_bias", name(0)), cut, &stored, len)?)
            }
            (true, Stack::Apart) => panic!("no family has biases of experts apart"),
        };
        let low = self.low_of_experts(prefix, wanted, choice, matrix)?;
        Ok(Linear { matrix, bias, low })
    }

    pub(crate) fn caches(&mut self, pages: usize) -> Result<Vec<KvCache>, PlanError> {
        let (spec, options) = (self.spec, self.options);
        let caches = spec.layers.iter().map(|layer| {
            let shape = PageShape { width: layer.attention.head_width, kind: options.kv };
            let heads = layer.attention.kv_heads;
            let bytes = pages.checked_mul(heads * shape.bytes());
            let text = match options.cache_positions {
                None => format!("{} x {} positions, {:?}", options.sequences, options.context, options.kv),
                Some(_) => format!("{} positions, {:?}", pages * POSITIONS, options.kv),
            };
            Ok(KvCache { slot: self.slot(Region::Cache, "keys and values", text, bytes)?, heads, shape })
        });
        caches.collect()
    }

    pub(crate) fn work(&mut self) -> Result<WorkSlots, PlanError> {
        let spec = self.spec;
        let Options { chunk, logits_rows, .. } = self.options;
        let widest = |f: &dyn Fn(&LayerSpec) -> usize| spec.layers.iter().map(f).max().unwrap_or(0);
        let query = widest(&|layer| layer.attention.heads * layer.attention.head_width);
        let kv = widest(&|layer| layer.attention.kv_heads * layer.attention.head_width);
        let mlp = widest(&|layer| layer.mlp.width);
        let experts = spec.layers.iter().filter_map(|layer| layer.mlp.experts).map(|experts| experts.choice);
        let experts = experts.max_by_key(|choice| (choice.chosen, choice.experts));
        // Rows of a feed-forward block: one per token, or one per token and expert that it is sent to.
        let places = experts.map_or(chunk, |choice| chunk.saturating_mul(choice.chosen));
        let gated = spec.layers.iter().any(|layer| layer.mlp.gated);
        let parallel = spec.layers.iter().any(|layer| layer.residual == crate::spec::Residual::Parallel);
        let angles = spec.ropes.iter().map(|rope| rope.width).max().unwrap_or(0);
        let panel_bytes = self.panel_bytes;
        let mut rows = |name: &str, rows: usize, width: usize| {
            let bytes = rows.checked_mul(width).and_then(|n| n.checked_mul(4));
            self.slot(Region::Work, name, format!("{rows} x {width} f32"), bytes)
        };
        Ok(WorkSlots {
            stream: rows("residual stream", chunk, spec.hidden)?,
            normed: rows("normed", chunk, spec.hidden)?,
            normed_for_mlp: rows("normed for feed-forward", if parallel { chunk } else { 0 }, spec.hidden)?,
            query: rows("queries", chunk, query)?,
            key: rows("keys", chunk, kv)?,
            value: rows("values", chunk, kv)?,
            attended: rows("attended", chunk, query)?,
            router: rows("logits of experts", chunk, experts.map_or(0, |choice| choice.experts))?,
            expert: rows("results of experts", if experts.is_some() { places } else { 0 }, spec.hidden)?,
            gate: rows("feed-forward", places, mlp)?,
            up: rows("feed-forward, second", if gated { places } else { 0 }, mlp)?,
            angles: rows("rotary angles", chunk, angles)?,
            chosen: rows("rows for the head", logits_rows, spec.hidden)?,
            chosen_normed: rows("rows for the head, normed", logits_rows, spec.hidden)?,
            logits: rows("logits", logits_rows, spec.vocab)?,
            low: self.lows.work(&mut self.work, &mut self.lines)?,
            routing: {
                let bytes = experts.map_or(Some(0), |choice| choice.bytes(chunk));
                self.slot(Region::Work, "routing", "words".to_owned(), bytes)?
            },
            panels: self.slot(Region::Work, "prepared input", "words".to_owned(), Some(panel_bytes))?,
        })
    }
}
