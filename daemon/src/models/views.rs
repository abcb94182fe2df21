//! The keeper's state in the words of the protocol: models, devices, changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bantam_core::{KvKind, Precision, Region};
use bantam_model::engine::{Portion, Seated};
use bantam_model::formats::on_load::OnLoad;
use bantam_model::plan::Plan;
use bantam_proto::v1;
use bantam_proto::v1::watch_residency_response::Event as Told;

use super::catalog::Known;
use super::keeper::{State, bytes_of, generation_bytes, total_bytes};
use super::recipe::Recipe;
use crate::residency::{Bytes, Device, ModelId, Note, State as Phase, View, Why};
use crate::scheduler::Desk;

/// Main memory, which every model takes.
pub(crate) const RAM: &str = "ram";

/// A time of the calendar; the epoch where a clock stands before it.
pub(crate) fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: since.subsec_nanos().cast_signed() }
}

/// A span.
pub(crate) fn duration(span: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: span.subsec_nanos().cast_signed() }
}

fn way(way: Option<&'static OnLoad>) -> Option<String> {
    Some(way.map_or("none", |way| way.name).to_owned())
}

/// A recipe, every field filled.
pub(crate) fn options(recipe: &Recipe, pin: bool, ttl: Option<Duration>) -> v1::LoadOptions {
    let o = &recipe.options;
    let number = |n: usize| Some(u32::try_from(n).unwrap_or(u32::MAX));
    let precision = match o.precision {
        Precision::Exact => v1::Precision::Exact,
        Precision::Fast => v1::Precision::Fast,
    };
    let kv = match o.kv {
        KvKind::F32 => v1::KvType::F32,
        KvKind::F16 => v1::KvType::F16,
        KvKind::Int8 => v1::KvType::Int8,
    };
    let all = o.context.saturating_mul(o.sequences);
    v1::LoadOptions {
        precision: precision.into(),
        kv: kv.into(),
        context: number(o.context),
        slots: number(o.sequences),
        chunk: number(o.chunk),
        quantization: way(o.quantization),
        head: way(o.head),
        experts: way(o.experts.or(o.quantization)),
        threads: number(recipe.threads),
        pin: Some(pin),
        ttl: Some(duration(ttl.unwrap_or_default())),
        no_cache: Some(recipe.no_cache),
        cache_positions: Some(o.cache_positions.unwrap_or(all) as u64),
        adapter_bytes: Some(o.adapter_bytes as u64),
    }
}

/// What a plan takes, and what a card needs here beside it.
pub(crate) fn bytes(plan: &Plan, beside: u64) -> v1::DeviceBytes {
    v1::DeviceBytes {
        device: RAM.to_owned(),
        weight_bytes: plan.weight_bytes as u64,
        cache_bytes: plan.cache_bytes as u64,
        work_bytes: plan.work_bytes as u64 + beside,
        generation_bytes: generation_bytes(plan),
        total_bytes: total_bytes(plan, beside),
        adapter_bytes: plan.adapter_bytes as u64,
    }
}

/// What a model takes of a card.
fn card_bytes(portion: &Portion) -> v1::DeviceBytes {
    let Portion { card: [device, _], bytes, weight_bytes, cache_bytes, .. } = portion;
    v1::DeviceBytes {
        device: device.clone(),
        weight_bytes: *weight_bytes as u64,
        cache_bytes: *cache_bytes as u64,
        work_bytes: (bytes - weight_bytes - cache_bytes) as u64,
        generation_bytes: 0,
        total_bytes: *bytes as u64,
        adapter_bytes: 0,
    }
}

/// A plan's table.
pub(crate) fn lines(plan: &Plan, beside: u64) -> Vec<v1::PlanLine> {
    let line = |line: &bantam_model::plan::Line| v1::PlanLine {
        name: line.name.clone(),
        region: match line.region {
            Region::Weights => "weights",
            Region::Cache => "cache",
            Region::Work => "work",
            Region::Adapters => "adapters",
        }
        .to_owned(),
        device: RAM.to_owned(),
        lifetime: line.lifetime.to_owned(),
        shape: line.shape.clone(),
        bytes: line.bytes as u64,
    };
    let mut lines: Vec<_> = plan.lines.iter().map(line).collect();
    lines.push(v1::PlanLine {
        name: "samplers and texts".to_owned(),
        region: "generation".to_owned(),
        device: RAM.to_owned(),
        lifetime: "run".to_owned(),
        shape: format!("{} x {} bytes", plan.options.sequences, plan.generation_bytes),
        bytes: generation_bytes(plan),
    });
    if beside > 0 {
        lines.push(v1::PlanLine {
            name: "on the way to and from the card, at most".to_owned(),
            region: "work".to_owned(),
            device: RAM.to_owned(),
            lifetime: "run".to_owned(),
            shape: String::new(),
            bytes: beside,
        });
    }
    lines
}

/// Budgets, and what is used of them.
pub(crate) fn devices(state: &State) -> Vec<v1::DeviceUse> {
    let snapshot = state.residency.snapshot();
    let referenced: Bytes =
        snapshot.models.iter().filter(|view| view.references > 0).map(|view| view.bytes).sum();
    let ram = v1::DeviceUse {
        device: RAM.to_owned(),
        budget_bytes: snapshot.budget.on(Device::Ram),
        used_bytes: snapshot.in_use.on(Device::Ram),
        pinned_bytes: snapshot.pinned.on(Device::Ram),
        referenced_bytes: referenced.on(Device::Ram),
    };
    let cards = state.cards.iter().map(|card| {
        let sum = |which: &dyn Fn(&View) -> bool| {
            let of = |id| snapshot.models.iter().any(|view| view.id == id && which(view));
            let placed = state.on_cards().filter(|(id, _)| of(*id));
            placed.map(|(_, placed)| bytes_of(&placed, &card.label)).sum()
        };
        v1::DeviceUse {
            device: card.label.clone(),
            budget_bytes: card.budget.unwrap_or(card.bytes),
            used_bytes: sum(&|_| true) + card.reserved,
            pinned_bytes: sum(&|view| view.pinned),
            referenced_bytes: sum(&|view| view.references > 0) + card.reserved,
        }
    });
    [ram].into_iter().chain(cards).collect()
}

/// A model as it is now.
pub(crate) fn model(state: &State, known: &Arc<Known>) -> v1::Model {
    let id = state.current.get(&known.number()).copied();
    match id.filter(|id| state.variants.contains_key(id)) {
        Some(id) => variant(state, id),
        None => absent(state, known),
    }
}

fn absent(state: &State, known: &Known) -> v1::Model {
    v1::Model {
        id: known.handle(),
        name: known.name(),
        path: known.path().map(|path| path.display().to_string()).unwrap_or_default(),
        state: v1::ModelState::Absent.into(),
        options: state.remembered.get(&known.number()).map(|(recipe, ttl)| options(recipe, false, *ttl)),
        last_used: state.last_used.get(&known.number()).copied().map(timestamp),
        ..v1::Model::default()
    }
}

fn variant(state: &State, id: ModelId) -> v1::Model {
    let Some(variant) = state.variants.get(&id) else { return v1::Model::default() };
    let snapshot = state.residency.snapshot();
    let view: Option<&View> = snapshot.models.iter().find(|view| view.id == id);
    let is_there = match view.map(|view| view.state) {
        None if state.waiting_for(id) > 0 => v1::ModelState::Waiting,
        None => v1::ModelState::Absent,
        Some(Phase::Loading) => v1::ModelState::Loading,
        Some(Phase::Resident) => v1::ModelState::Resident,
        Some(Phase::Draining | Phase::Leaving) => v1::ModelState::Leaving,
    };
    let references = view.map_or(0, |view| view.references) + state.waiting_for(id);
    let (pin, ttl) = view.map_or((false, variant.ttl), |view| (view.pinned, view.ttl));
    let resident = variant.resident.as_deref();
    let placed = resident.and_then(|resident| resident.desk.placed());
    let on_cards = placed.iter().flat_map(|placed| placed.each.iter().map(card_bytes));
    let can_chat = resident.is_some() && matches!(variant.opened.template(), Ok(Some(_)));
    v1::Model {
        state: is_there.into(),
        options: Some(options(&variant.recipe, pin, ttl)),
        bytes: view.map(|_| bytes(&variant.plan, variant.beside)).into_iter().chain(on_cards).collect(),
        references: u32::try_from(references).unwrap_or(u32::MAX),
        loaded_at: resident.map(|resident| timestamp(resident.loaded_at)),
        native: resident.is_some_and(|resident| resident.is_mapped),
        vocab: u32::try_from(variant.opened.source.spec.vocab).unwrap_or(u32::MAX),
        can_chat,
        adapters: resident.map_or_else(Vec::new, |resident| adapters(&resident.desk)),
        ..absent(state, &variant.known)
    }
}

/// What stands beside a model.
fn adapters(desk: &Desk) -> Vec<v1::ModelAdapter> {
    let one = |seated: Seated| v1::ModelAdapter {
        // Paths are not for everybody who may ask for a model.
        name: seated.guest.folder().file_name().map_or_else(String::new, |name| name.display().to_string()),
        bytes: seated.guest.bytes() as u64,
        references: u32::try_from(seated.uses).unwrap_or(u32::MAX),
    };
    desk.adapters().into_iter().map(one).collect()
}

/// What a model does at the moment.
pub(crate) fn figures(state: &State) -> Vec<v1::ModelFigures> {
    let loaded = state.variants.values().filter_map(|variant| Some((variant, variant.resident.as_deref()?)));
    let of = |(variant, resident): (&super::keeper::Variant, &super::Resident)| {
        let (figures, limits) = (resident.desk.figures(), resident.desk.limits());
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let positions = limits.positions as u64;
        v1::ModelFigures {
            model_id: variant.known.handle(),
            running: number(figures.running),
            waiting: number(figures.waiting),
            paused: number(figures.paused),
            slots: number(limits.sequences as u64),
            cache_positions_used: positions.saturating_sub(figures.free_positions),
            cache_positions: positions,
            prompt_tokens: figures.read_tokens.saturating_sub(figures.new_tokens),
            new_tokens: figures.new_tokens,
            steps: figures.steps,
            // Whoever sees two of them knows.
            tokens_per_second: 0.0,
            resting: number(figures.resting),
            cached_tokens: figures.reused_tokens,
        }
    };
    let mut all: Vec<_> = loaded.map(of).collect();
    all.sort_by(|a, b| a.model_id.cmp(&b.model_id));
    all
}

/// How far a load is: bytes of weights, of how many.
pub(crate) fn progress(state: &State, known: &Known) -> Option<v1::LoadProgress> {
    let id = *state.current.get(&known.number())?;
    let variant = state.variants.get(&id)?;
    let stage = match state.phase(id) {
        None | Some(Phase::Draining | Phase::Leaving) => v1::LoadStage::Waiting,
        Some(Phase::Loading) => v1::LoadStage::Reading,
        Some(Phase::Resident) => return None,
    };
    let done_bytes = variant.progress.load(Ordering::Relaxed) as u64;
    Some(v1::LoadProgress { stage: stage.into(), done_bytes, total_bytes: variant.plan.weight_bytes as u64 })
}

/// A change of the policy's in the protocol's words: none, one or two.
pub(super) fn told(state: &State, note: Note) -> Vec<Told> {
    let handle =
        |id: ModelId| state.variants.get(&id).map_or(String::new(), |variant| variant.known.handle());
    let freed =
        |id: ModelId| state.variants.get(&id).map(|of| bytes(&of.plan, of.beside)).into_iter().collect();
    match note {
        Note::Hit(id) => vec![Told::Hit(v1::ModelHit { model_id: handle(id), resident: true })],
        Note::Miss(id) => vec![Told::Hit(v1::ModelHit { model_id: handle(id), resident: false })],
        Note::Loading(id, _) => vec![Told::Loading(v1::ModelLoading { model: Some(variant(state, id)) })],
        Note::Loaded(id, _) => {
            let loaded = state.variants.get(&id).and_then(|variant| variant.resident.as_deref());
            let moved = v1::BytesMoved {
                model_id: handle(id),
                source: "disk".to_owned(),
                target: RAM.to_owned(),
                bytes: state.variants.get(&id).map_or(0, |variant| variant.plan.weight_bytes as u64),
            };
            let model = Some(variant(state, id));
            let duration = loaded.map(|resident| duration(resident.duration));
            vec![Told::Moved(moved), Told::Loaded(v1::ModelLoaded { model, duration })]
        }
        Note::LoadFailed(id) | Note::LoadStopped(id, _) => {
            let reason = state.failure(id).unwrap_or_else(|| "the load was given up".to_owned());
            vec![Told::Failed(v1::ModelLoadFailed { model_id: handle(id), reason })]
        }
        Note::Evicting(..) => Vec::new(),
        Note::Evicted(id, _, why) => {
            let reason = match why {
                _ if state.is_faulty(id) => v1::LeaveReason::Fault,
                Why::Room => v1::LeaveReason::Room,
                Why::Expired => v1::LeaveReason::Ttl,
                Why::Asked => v1::LeaveReason::Asked,
                Why::Budget => v1::LeaveReason::Budget,
            };
            let (model_id, reason) = (handle(id), reason.into());
            vec![Told::Evicted(v1::ModelEvicted { model_id, reason, freed: freed(id) })]
        }
        Note::Pinned(id, pinned) => vec![Told::Pinned(v1::ModelPinned { model_id: handle(id), pinned })],
        Note::Budget(_) => vec![Told::Budget(v1::BudgetChanged { devices: devices(state) })],
    }
}

/// Whether so many bytes for a model fit now, idle models making room, and which of them would leave, in their order.
pub(crate) fn fits(state: &State, known: &Known, needed: u64) -> (bool, Vec<String>) {
    let snapshot = state.residency.snapshot();
    let mut used = snapshot.in_use;
    let own = state.current.get(&known.number()).copied();
    if snapshot.models.iter().any(|view| Some(view.id) == own && view.state == Phase::Resident) {
        return (true, Vec::new());
    }
    let needed = Bytes::ram(needed).places(1);
    let is_idle = |view: &&View| {
        view.references == 0 && view.waiting == 0 && !view.pinned && view.state == Phase::Resident
    };
    let mut idle: Vec<&View> = snapshot.models.iter().filter(is_idle).collect();
    let last_used =
        |view: &View| state.variants.get(&view.id).and_then(|of| state.last_used.get(&of.known.number()));
    idle.sort_by_key(|view| last_used(view).copied());
    let mut leaving = Vec::new();
    for view in idle {
        if used.plus(needed).fits(snapshot.budget) {
            break;
        }
        used = used.beyond(view.bytes);
        leaving.extend(state.variants.get(&view.id).map(|variant| variant.known.handle()));
    }
    let fits = used.plus(needed).fits(snapshot.budget);
    (fits, if fits { leaving } else { Vec::new() })
}
