//! The driver, called: a card with its memory, its stream and its kernels. All `unsafe` of this package is here.
//!
//! What makes it safe: handles come from the driver and live as long as the [`Card`] that owns them; a launch is
//! checked against the parameters that the kernel's own text declares, so that the driver reads no byte beyond the
//! arguments; pointers on the device are numbers here, and what kernels do with them cannot touch the host's memory.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::ptr::NonNull;

use bantam_core::cuda::Kernel;
use bytemuck::{NoUninit, Pod};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::fault::{Absent, Fault, fault};
use crate::measured;
use crate::texts::{BACKWARD, DRIVER, FORWARD, Module, OLDEST};

/// A card that was looked at and not touched.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it calls itself.
    pub name: String,
    /// Its compute capability.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub bytes: usize,
    /// What of CUDA its driver is for, as it counts: 12020 for 12.2.
    pub driver: u32,
    device: sys::CUdevice,
}

/// Asks for the driver, then for the card with this number. Takes no memory and no context.
pub fn look(number: usize) -> Result<Seen, Absent> {
    // SAFETY: looks for a library by name; the driver's own code runs when it is found.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absent::NoDriver);
    }
    let failed = |what| move |error| Absent::Failed(fault(what, error));
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(Absent::NoDevice),
        other => other.map_err(failed("starting"))?,
    }
    let mut found = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&mut found) }.result().map_err(failed("telling its version"))?;
    if (found as u32) < DRIVER {
        return Err(Absent::OldDriver(found as u32));
    }
    match result::device::get_count().map_err(failed("counting cards"))? as usize {
        0 => return Err(Absent::NoDevice),
        cards if cards <= number => return Err(Absent::NoSuchDevice { number, cards }),
        _ => {}
    }
    let failed = || failed("looking at the card");
    let device = result::device::get(number as i32).map_err(failed())?;
    let name = result::device::get_name(device).map_err(failed())?;
    let capability = capability(device).map_err(failed())?;
    if capability < OLDEST {
        return Err(Absent::OldDevice { name, found: capability });
    }
    // SAFETY: the device is the driver's own number.
    let bytes = unsafe { result::device::total_mem(device) }.map_err(failed())?;
    Ok(Seen { name, capability, bytes, driver: found as u32, device })
}

/// A card that is ready: its context, one stream, all kernels.
#[derive(Debug)]
pub struct Card {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    kernels: Vec<Loaded>,
    name: String,
    capability: (u32, u32),
    /// How often it was waited for.
    waits: Cell<u64>,
}

// SAFETY: the driver's functions may be called from any thread that has made the context its own, which every method
// here does first; a `Card` is used by one thread at a time, since it is not `Sync`.
unsafe impl Send for Card {}

/// A kernel and the bytes of its parameters.
#[derive(Debug)]
struct Loaded {
    function: sys::CUfunction,
    parameters: Vec<usize>,
}

/// The grid and the block of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Blocks.
    pub grid: (usize, usize),
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory.
    pub shared: usize,
}

/// An argument of a launch.
#[derive(Debug)]
pub struct Argument<'a> {
    bytes: &'a [u8],
}

impl<'a> Argument<'a> {
    /// A number, or the words of a structure.
    pub fn of<T: NoUninit>(value: &'a T) -> Self {
        Argument { bytes: bytemuck::bytes_of(value) }
    }
}

impl Card {
    /// The card with this number, with all kernels of a decoder loaded.
    pub fn open(number: usize) -> Result<Card, Absent> {
        let Seen { name, capability, device, .. } = look(number)?;
        let failed = |what| move |error| Absent::Failed(fault(what, error));
        // SAFETY: the device is the driver's own number; the context is released with the card.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("making a context"))?;
        let (stream, modules, kernels) = (std::ptr::null_mut(), Vec::new(), Vec::new());
        let waits = Cell::new(0);
        let mut card = Card { device, context, stream, modules, kernels, name, capability, waits };
        card.enter().map_err(Absent::Failed)?;
        card.stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("making a stream"))?;
        card.load_all(FORWARD).map_err(Absent::Failed)?;
        Ok(card)
    }

    /// The same card with the kernels that training needs.
    pub fn with_backward(mut self) -> Result<Card, Fault> {
        self.load_all(BACKWARD)?;
        Ok(self)
    }

    fn load_all(&mut self, modules: &[Module]) -> Result<(), Fault> {
        for module in modules {
            self.load(module.text(self.capability), module.kernels().map(Kernel::name))?;
        }
        Ok(())
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its tensor cores know bfloat16.
    pub(crate) fn has_bfloats(&self) -> bool {
        self.capability >= (8, 0)
    }

    /// Bytes of it that are free, and all.
    pub fn memory(&self) -> Result<(usize, usize), Fault> {
        self.enter()?;
        result::mem_get_info().map_err(|error| fault("telling its memory", error))
    }

    /// Loads kernels of a text; returns the number of the first.
    #[doc(hidden)]
    pub fn load<'a>(&mut self, text: &str, names: impl Iterator<Item = &'a str>) -> Result<usize, Fault> {
        self.enter()?;
        measured::count_allocation();
        let first = self.kernels.len();
        let image =
            CString::new(text).map_err(|_| Fault::Lost { what: "loading kernels", code: "a zero byte" })?;
        // SAFETY: the image is a text that ends with a zero, and is copied.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(|error| fault("loading kernels", error))?;
        self.modules.push(module);
        for name in names {
            let parameters = parameters(text, name)
                .ok_or(Fault::Lost { what: "loading kernels", code: "no such kernel" })?;
            let name = CString::new(name).expect("names of kernels have no zero byte");
            // SAFETY: the module was loaded above.
            let function = unsafe { result::module::get_function(module, name) };
            let function = function.map_err(|error| fault("loading kernels", error))?;
            self.kernels.push(Loaded { function, parameters });
        }
        Ok(first)
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), Fault> {
        // SAFETY: the context lives as long as the card.
        unsafe { result::ctx::set_current(self.context) }.map_err(|error| fault("taking its context", error))
    }

    /// Queues a kernel of ours.
    pub(crate) fn launch(&self, kernel: Kernel, shape: Shape, arguments: &[Argument]) -> Result<(), Fault> {
        self.launch_number(kernel as usize, kernel.name(), shape, arguments)
    }

    /// Queues a kernel by its number.
    #[doc(hidden)]
    pub fn launch_number(
        &self,
        number: usize,
        what: &'static str,
        shape: Shape,
        arguments: &[Argument],
    ) -> Result<(), Fault> {
        const MOST: usize = 16;
        let Loaded { function, parameters } = &self.kernels[number];
        let fits = arguments.iter().map(|argument| argument.bytes.len()).eq(parameters.iter().copied());
        assert!(fits && arguments.len() <= MOST, "{what} takes parameters of {parameters:?} bytes");
        if shape.grid.0 == 0 || shape.grid.1 == 0 {
            return Ok(());
        }
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST];
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            *pointer = argument.bytes.as_ptr().cast_mut().cast();
        }
        let grid = (shape.grid.0 as u32, shape.grid.1 as u32, 1);
        let block = (shape.threads as u32, 1, 1);
        self.enter()?;
        measured::count_launch();
        // SAFETY: the arguments have the sizes that the kernel's text declares, and are copied before this returns;
        // what the kernel writes is the device's.
        let done = unsafe {
            let pointers = &mut pointers[..arguments.len()];
            result::launch_kernel(*function, grid, block, shape.shared as u32, self.stream, pointers)
        };
        done.map_err(|error| fault(what, error))
    }

    /// Waits until all that was queued is done.
    pub fn wait(&self) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the stream is the card's own.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|error| fault("waiting", error))?;
        self.waits.set(self.waits.get() + 1);
        Ok(())
    }

    /// How often it was waited for: what was queued when this was less is done.
    pub(crate) fn waits(&self) -> u64 {
        self.waits.get()
    }

    /// What is queued from here on is written down and not done.
    pub(crate) fn begin_graph(&self) -> Result<(), Fault> {
        if !has_all(&GRAPHS) {
            return Err(Fault::Lost { what: "a graph", code: "the driver lacks functions for it" });
        }
        self.wait()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is the card's own. Others of the machine's threads are left alone, by the mode.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(|error| fault("a graph", error))
    }

    /// What was written down since then; from here on things are done again, whatever comes of it.
    pub(crate) fn end_graph(&self) -> Result<Template, Fault> {
        let entered = self.enter();
        // SAFETY: the stream is the card's own.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        let template = graph.map(Template).map_err(|error| fault("a graph", error));
        entered.and(template)
    }

    /// A graph that can be queued. What it takes of the card it takes now, and not when it is first queued.
    pub(crate) fn make_graph(&self, template: Template) -> Result<Graph, Fault> {
        let failed = |error| fault("a graph", error);
        self.enter()?;
        // SAFETY: the template is given back by whoever drops it, once there is a copy.
        unsafe {
            measured::count_allocation();
            let copy = result::graph::instantiate(template.0, sys::CUgraphInstantiate_flags(0));
            let copy = Graph(copy.map_err(failed)?);
            let ready = result::graph::upload(copy.0, self.stream).map_err(failed);
            let ready = ready.and_then(|()| self.wait());
            if ready.is_err() {
                self.free_graph(&copy);
            }
            ready.map(|()| copy)
        }
    }

    /// Queues all that was written down.
    pub(crate) fn queue_graph(&self, graph: &Graph) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: both are the card's own; what the graph's copies read of the host's is pinned, and there as long as
        // the graph.
        unsafe { result::graph::launch(graph.0, self.stream) }.map_err(|error| fault("a graph", error))
    }

    /// Gives a graph back, before the memory that it works on.
    pub(crate) fn free_graph(&self, graph: &Graph) {
        let _ = self.enter();
        // SAFETY: it was made here; whoever frees it drops it.
        let _ = unsafe { result::graph::exec_destroy(graph.0) };
    }

    /// Takes memory of the card.
    pub fn allocate(&self, what: &'static str, bytes: usize) -> Result<Memory, Fault> {
        let (free, total) = self.memory()?;
        measured::count_allocation();
        // SAFETY: the memory is written before it is read, by the callers' promise; nothing of it is the host's.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Memory { address, bytes }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(Fault::OutOfMemory { what, asked: bytes, free, total })
            }
            Err(error) => Err(fault("allocating", error)),
        }
    }

    /// Gives memory back.
    pub(crate) fn free(&self, memory: &Memory) {
        let _ = self.enter();
        // SAFETY: the memory was allocated here; whoever frees it drops it. A card that is lost has none to give.
        let _ = unsafe { result::free_sync(memory.address) };
    }

    /// Queues a copy to the card. The source may be used again at once.
    pub fn write<T: Pod>(&self, to: &Memory, offset: usize, from: &[T]) -> Result<(), Fault> {
        let to = to.at(offset, size_of_val(from));
        if from.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the bytes are inside the allocation. A source that is not pinned is taken before the call returns.
        let done = unsafe { result::memcpy_htod_async(to, from, self.stream) };
        done.map_err(|error| fault("a copy to it", error))
    }

    /// Queues a copy of pinned words, which are not to be changed before it is done, to the same place there.
    pub(crate) fn send(&self, to: &Memory, from: &Pinned, words: Range<usize>) -> Result<(), Fault> {
        let to = to.at(4 * words.start, 4 * words.len());
        let from = &from.words()[words];
        if from.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the bytes are inside the allocation. The source is pinned, and is there as long as whoever has it.
        let done = unsafe { result::memcpy_htod_async(to, from, self.stream) };
        done.map_err(|error| fault("a copy to it", error))
    }

    /// Memory of the host that copies can go to by themselves.
    pub(crate) fn pin(&self, bytes: usize) -> Result<Pinned, Fault> {
        self.enter()?;
        measured::count_allocation();
        // SAFETY: the memory is filled below, before anybody reads it.
        let address = unsafe { result::malloc_host(bytes.max(1), 0) };
        let address = address.map_err(|error| fault("pinning memory", error))?;
        let address = NonNull::new(address.cast::<u8>());
        let address = address.ok_or(Fault::Lost { what: "pinning memory", code: "no address" })?;
        // SAFETY: so many bytes were given.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Pinned { address, bytes, used: Cell::new(0) })
    }

    /// Copies from the card once all that was queued is done. See [`Pinned`] for how long the result is there.
    pub(crate) fn read<'a>(
        &self,
        from: &Memory,
        offset: usize,
        floats: usize,
        to: &'a Pinned,
    ) -> Result<&'a [f32], Fault> {
        let (source, part) = (from.at(offset, floats * 4), to.take(floats * 4));
        self.enter()?;
        // SAFETY: the part is as long, and nobody else's until `Pinned::renew`, which takes it exclusively; the copy
        // is waited for. Every bit pattern is a float, and pinned memory is aligned to pages, parts to 64 bytes.
        unsafe {
            let bytes = std::slice::from_raw_parts_mut(part.as_ptr(), floats * 4);
            result::memcpy_dtoh_async(bytes, source, self.stream)
                .map_err(|error| fault("a copy from it", error))?;
            self.wait()?;
            Ok(std::slice::from_raw_parts(part.as_ptr().cast(), floats))
        }
    }

    /// A stream beside the first, for copies.
    pub(crate) fn second_stream(&self) -> Result<Stream, Fault> {
        self.enter()?;
        measured::count_allocation();
        let made = result::stream::create(result::stream::StreamKind::NonBlocking);
        made.map(Stream).map_err(|error| fault("making a stream", error))
    }

    /// Memory on both sides that bytes pass through.
    pub(crate) fn staging(&self, bytes: usize) -> Result<Staging, Fault> {
        let memory = self.allocate("weights that pass through", bytes)?;
        let made = self.pin(bytes).and_then(|pinned| match [self.event(), self.event()] {
            [Ok(copied), Ok(used)] => Ok((pinned, copied, used)),
            events => {
                self.unpin(&pinned);
                events.iter().flatten().for_each(|event| self.end_event(*event));
                Err(events.into_iter().find_map(Result::err).expect("one of them was refused"))
            }
        });
        if made.is_err() {
            self.free(&memory);
        }
        let (pinned, copied, used) = made?;
        Ok(Staging { memory, pinned, copied, used })
    }

    fn event(&self) -> Result<sys::CUevent, Fault> {
        self.event_of(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn event_of(&self, kind: sys::CUevent_flags) -> Result<sys::CUevent, Fault> {
        self.enter()?;
        measured::count_allocation();
        result::event::create(kind).map_err(|error| fault("making an event", error))
    }

    /// Tells from here on how long the card takes for what is queued.
    pub(crate) fn start_clock(&self) -> Result<Clock, Fault> {
        if !has_all(&CLOCKS) {
            return Err(Fault::Lost { what: "a clock", code: "the driver lacks a function for it" });
        }
        let kind = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let from = self.event_of(kind)?;
        let made = self.event_of(kind).and_then(|to| {
            // SAFETY: event and stream are the card's own.
            let begun = unsafe { result::event::record(from, self.stream) };
            begun.map(|()| to).map_err(|error| {
                self.end_event(to);
                fault("a clock", error)
            })
        });
        match made {
            Ok(to) => Ok(Clock { from, to }),
            Err(fault) => {
                self.end_event(from);
                Err(fault)
            }
        }
    }

    /// Seconds from there until all was done that was queued since; waits for it.
    pub(crate) fn stop_clock(&self, clock: Clock) -> Result<f64, Fault> {
        self.enter()?;
        // SAFETY: events and stream are the card's own; both events have been recorded when they are compared.
        let found = unsafe {
            result::event::record(clock.to, self.stream)
                .and_then(|()| result::event::synchronize(clock.to))
                .and_then(|()| result::event::elapsed(clock.from, clock.to))
        };
        [clock.from, clock.to].into_iter().for_each(|event| self.end_event(event));
        found.map(|milliseconds| f64::from(milliseconds) / 1e3).map_err(|error| fault("a clock", error))
    }

    /// Queues a copy from a part of its memory to another; the two do not meet.
    pub(crate) fn copy_within(
        &self,
        memory: &Memory,
        from: usize,
        to: usize,
        bytes: usize,
    ) -> Result<(), Fault> {
        assert!(from + bytes <= to || to + bytes <= from, "{bytes} bytes from {from} to {to}");
        let (from, to) = (memory.at(from, bytes), memory.at(to, bytes));
        self.enter()?;
        // SAFETY: the bytes are inside the allocation.
        let done = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) };
        done.map_err(|error| fault("a copy within it", error))
    }

    fn end_event(&self, event: sys::CUevent) {
        // SAFETY: it was made here, and whoever ends it drops it.
        let _ = unsafe { result::event::destroy(event) };
    }

    /// The host's side, to be filled, once what it held before has left it.
    pub(crate) fn room<'a>(&self, staging: &'a mut Staging) -> Result<&'a mut [u8], Fault> {
        self.enter()?;
        let Pinned { address, bytes, .. } = staging.pinned;
        // SAFETY: the event is the staging's own. The memory has so many bytes, which were written when it was pinned;
        // `send_staged` alone lets the driver read them, and that has been waited for.
        unsafe {
            result::event::synchronize(staging.copied).map_err(|error| fault("waiting for a copy", error))?;
            Ok(std::slice::from_raw_parts_mut(address.as_ptr(), bytes))
        }
    }

    /// Queues the copy of the first bytes to the card's side, behind whatever still reads that.
    pub(crate) fn send_staged(
        &self,
        staging: &mut Staging,
        bytes: usize,
        copies: &Stream,
    ) -> Result<(), Fault> {
        let to = staging.memory.at(0, bytes);
        assert!(bytes <= staging.pinned.bytes, "{bytes} bytes of {}", staging.pinned.bytes);
        self.enter()?;
        let at_once = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: streams and events are the card's and the staging's own. The source is not written before the event
        // that is recorded here (`room`), nor given back (`end_staging`).
        let done = unsafe {
            let from = std::slice::from_raw_parts(staging.pinned.address.as_ptr(), bytes);
            result::stream::wait_event(copies.0, staging.used, at_once)
                .and_then(|()| result::memcpy_htod_async(to, from, copies.0))
                .and_then(|()| result::event::record(staging.copied, copies.0))
        };
        done.map_err(|error| fault("a copy to it", error))
    }

    /// What is queued from now on comes after the last copy to the card's side. Returns the address of so many bytes.
    pub(crate) fn sent_has_come(&self, staging: &Staging, bytes: usize) -> Result<u64, Fault> {
        let at = staging.memory.at(0, bytes);
        self.enter()?;
        let at_once = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the event is the staging's own, the stream the card's.
        let done = unsafe { result::stream::wait_event(self.stream, staging.copied, at_once) };
        done.map(|()| at).map_err(|error| fault("a copy to it", error))
    }

    /// All that reads the card's side is queued: the next copy comes after it.
    pub(crate) fn sent_is_used(&self, staging: &mut Staging) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the event is the staging's own, the stream the card's.
        let done = unsafe { result::event::record(staging.used, self.stream) };
        done.map_err(|error| fault("marking its work", error))
    }

    /// Gives back what bytes passed through, once all that was queued is done.
    pub(crate) fn end_staging(&self, staging: &Staging) {
        let _ = self.enter();
        // SAFETY: the event is the staging's own. A card that is lost copies nothing any more.
        let _ = unsafe { result::event::synchronize(staging.copied) };
        let _ = self.wait();
        self.free(&staging.memory);
        self.unpin(&staging.pinned);
        [staging.copied, staging.used].into_iter().for_each(|event| self.end_event(event));
    }

    /// A mark for [`Card::copy_to`].
    pub(crate) fn mark(&self) -> Result<Mark, Fault> {
        self.event().map(Mark)
    }

    /// Gives a mark of this card back.
    pub(crate) fn end_mark(&self, mark: &Mark) {
        let _ = self.enter();
        self.end_event(mark.0);
    }

    /// Asks that copies between both cards go straight, which not all machines can; whether they do from here on.
    pub(crate) fn ask_peer(&self, other: &Card) -> bool {
        let granted = |card: &Card, peer: &Card| {
            let mut can = 0;
            // SAFETY: both devices are the driver's own numbers; writes one number.
            let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, card.device, peer.device) };
            if asked != sys::CUresult::CUDA_SUCCESS || can == 0 || card.enter().is_err() {
                return false;
            }
            // SAFETY: the context lives as long as the peer; what is asked lasts as long as both.
            let asked = unsafe { sys::cuCtxEnablePeerAccess(peer.context, 0) };
            use sys::CUresult::{CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, CUDA_SUCCESS};
            matches!(asked, CUDA_SUCCESS | CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)
        };
        has_all(&PEERS) && granted(self, other) && granted(other, self)
    }

    /// Takes that back: copies go by way of the host.
    pub(crate) fn end_peer(&self, other: &Card) {
        for (card, peer) in [(self, other), (other, self)] {
            if card.enter().is_ok() {
                // SAFETY: both contexts are there; whoever was not asked answers so.
                let _ = unsafe { sys::cuCtxDisablePeerAccess(peer.context) };
            }
        }
    }

    /// Queues a copy to another card's memory, behind all that is queued on both, and before whatever is queued from
    /// now on; each card has its own mark. Where copies cannot go straight, the driver takes them by way of the host.
    pub(crate) fn copy_to(
        &self,
        from: (&Memory, &Mark),
        other: &Card,
        to: (&Memory, &Mark),
        offset: usize,
        bytes: usize,
    ) -> Result<(), Fault> {
        let (here, there) = (from.0.at(offset, bytes), to.0.at(offset, bytes));
        if !has_all(&COPIES) {
            return Err(Fault::Lost {
                what: "a copy to another card",
                code: "the driver lacks a function for it",
            });
        }
        if bytes == 0 {
            return Ok(());
        }
        other.enter()?;
        let at_once = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: streams, contexts and marks are those of the two cards, the bytes inside their allocations, which
        // whoever frees them waits for.
        let done = unsafe {
            result::event::record(from.1.0, self.stream)
                .and_then(|()| result::stream::wait_event(other.stream, from.1.0, at_once))
                .and_then(|()| {
                    result::memcpy_peer_async(other.context, there, self.context, here, bytes, other.stream)
                })
                .and_then(|()| result::event::record(to.1.0, other.stream))
                .and_then(|()| result::stream::wait_event(self.stream, to.1.0, at_once))
        };
        done.map_err(|error| fault("a copy to another card", error))
    }

    /// Ends a stream of this card.
    pub(crate) fn end_stream(&self, stream: &Stream) {
        let _ = self.enter();
        // SAFETY: it was made here, and whoever ends it drops it.
        let _ = unsafe { result::stream::destroy(stream.0) };
    }

    /// Gives pinned memory back.
    pub(crate) fn unpin(&self, memory: &Pinned) {
        let _ = self.enter();
        // SAFETY: it was pinned here; whoever unpins it drops it.
        let _ = unsafe { result::free_host(memory.address.as_ptr().cast()) };
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = self.enter();
        // SAFETY: all of these are the card's own, and nobody's after it. What a lost card answers does not matter.
        unsafe {
            for module in &self.modules {
                let _ = result::module::unload(*module);
            }
            if !self.stream.is_null() {
                let _ = result::stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// What graphs take of the driver.
const GRAPHS: [&str; 7] = [
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];
/// What tells how long something took.
const CLOCKS: [&str; 1] = ["cuEventElapsedTime"];
/// What straight copies between cards do.
const PEERS: [&str; 3] = ["cuDeviceCanAccessPeer", "cuCtxEnablePeerAccess", "cuCtxDisablePeerAccess"];
/// What copies between cards do in any case.
const COPIES: [&str; 1] = ["cuMemcpyPeerAsync"];

/// Whether the driver has all of these. Its version alone does not tell: what stands in for a driver may say any, and
/// a function that is not there ends the process.
fn has_all(names: &[&str]) -> bool {
    // SAFETY: names are looked up, and nothing is called.
    names.iter().all(|name| unsafe { sys::culib().get::<*const c_void>(name.as_bytes()) }.is_ok())
}

fn capability(device: sys::CUdevice) -> Result<(u32, u32), DriverError> {
    use sys::CUdevice_attribute::*;
    // SAFETY: the device is the driver's own number.
    let ask = |what| unsafe { result::device::get_attribute(device, what) }.map(|number| number as u32);
    let major = ask(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, ask(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

/// Bytes of each parameter of a kernel, as its text declares them: `.param .u64 name` or
/// `.param .align 8 .b8 name[24]`.
fn parameters(text: &str, kernel: &str) -> Option<Vec<usize>> {
    let (_, rest) = text.split_once(&format!(".entry {kernel}("))?;
    let (list, _) = rest.split_once(')')?;
    let sizes = list.split(".param").skip(1).map(|parameter| {
        let words: Vec<&str> = parameter.trim().trim_end_matches(',').split_whitespace().collect();
        let (kind, name) = (words.get(words.len().checked_sub(2)?)?, words.last()?);
        let size = match *kind {
            ".b8" | ".u8" | ".s8" => 1,
            ".b16" | ".u16" | ".s16" | ".f16" => 2,
            ".b32" | ".u32" | ".s32" | ".f32" => 4,
            ".b64" | ".u64" | ".s64" | ".f64" => 8,
            _ => return None,
        };
        match name.split_once('[') {
            None => Some(size),
            Some((_, count)) => Some(size * count.strip_suffix(']')?.parse::<usize>().ok()?),
        }
    });
    sizes.collect()
}

/// Memory of a card.
#[derive(Debug)]
pub struct Memory {
    address: u64,
    bytes: usize,
}

impl Memory {
    /// The address of a part of it.
    pub fn at(&self, offset: usize, bytes: usize) -> u64 {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "{bytes} bytes at {offset} of {}", self.bytes);
        self.address + offset as u64
    }

    /// All of it, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What was written down instead of done.
#[derive(Debug)]
pub(crate) struct Template(sys::CUgraph);

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: it was made here, and what was made of it is apart. Nobody else has it.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}

/// The same, ready to be queued as one.
#[derive(Debug)]
pub(crate) struct Graph(sys::CUgraphExec);

// SAFETY: as for `Card`, which it goes with.
unsafe impl Send for Graph {}

/// Pinned memory of the host that results are handed out from, part after part, until it is renewed: so that several
/// results of one backend can be looked at beside one another.
#[derive(Debug)]
pub(crate) struct Pinned {
    address: NonNull<u8>,
    bytes: usize,
    used: Cell<usize>,
}

// SAFETY: plain memory, owned by this value; it is not `Sync`.
unsafe impl Send for Pinned {}

impl Pinned {
    /// The next part.
    fn take(&self, bytes: usize) -> NonNull<u8> {
        let used = self.used.get();
        let end = used.checked_add(bytes.next_multiple_of(64));
        let end = end.filter(|&end| end <= self.bytes);
        let end = end.unwrap_or_else(|| panic!("results of {bytes} bytes beside {used} of {}", self.bytes));
        self.used.set(end);
        // SAFETY: `used` is within the memory.
        unsafe { self.address.add(used) }
    }

    /// Zeros in the place of a result that there is none of.
    pub(crate) fn zeros(&self, floats: usize) -> &[f32] {
        let part = self.take(floats * 4);
        // SAFETY: the part is as long, aligned, and nobody else's until `renew`.
        unsafe {
            part.write_bytes(0, floats * 4);
            std::slice::from_raw_parts(part.as_ptr().cast(), floats)
        }
    }

    /// All of it, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, as words.
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: so many bytes were given and filled, aligned to pages; every bit pattern is a word.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast(), self.bytes / 4) }
    }

    /// The same, to be written.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, and nobody else's while it is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr().cast(), self.bytes / 4) }
    }

    /// Begins again: nobody looks at earlier results any more, or this could not be borrowed so.
    pub(crate) fn renew(&mut self) {
        self.used.set(0);
    }
}

/// When something was begun, and where its end is to be noted.
#[derive(Debug)]
pub(crate) struct Clock {
    from: sys::CUevent,
    to: sys::CUevent,
}

/// How far the work of a card had come when it was set.
#[derive(Debug)]
pub(crate) struct Mark(sys::CUevent);

// SAFETY: a handle of the driver's, used with its context by one thread at a time.
unsafe impl Send for Mark {}

/// A stream beside the card's first.
#[derive(Debug)]
pub(crate) struct Stream(sys::CUstream);

// SAFETY: a handle of the driver's, used with its context by one thread at a time.
unsafe impl Send for Stream {}

/// Memory of the host and as much of the card's, through which bytes pass.
#[derive(Debug)]
pub(crate) struct Staging {
    memory: Memory,
    pinned: Pinned,
    /// When the host's bytes have arrived there; when nothing reads them there any more.
    copied: sys::CUevent,
    used: sys::CUevent,
}

// SAFETY: plain memory and handles of the driver's, owned by this value, used with its context by one thread at a time.
unsafe impl Send for Staging {}

impl Staging {
    /// Bytes of each side.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = &'static Module> {
        FORWARD.iter().chain(BACKWARD)
    }

    #[test]
    fn parameters_are_read_from_a_text() {
        let text = ".visible .entry a(\n\t.param .u64 p,\n\t.param .align 8 .b8 q[24],\n\t.param .f32 x\n)";
        assert_eq!(parameters(text, "a"), Some(vec![8, 24, 4]));
        assert_eq!(parameters(text, "b"), None);
    }

    #[test]
    fn kernels_are_numbered_as_they_are_loaded() {
        let loaded: Vec<Kernel> = all().flat_map(|module| module.kernels()).collect();
        assert_eq!(loaded, Kernel::ALL);
        assert!(Kernel::ALL.iter().enumerate().all(|(i, kernel)| *kernel as usize == i));
    }

    #[test]
    fn every_kernel_has_the_same_parameters_in_both_texts() {
        for module in all() {
            for kernel in module.kernels() {
                let found = |capability| parameters(module.text(capability), kernel.name());
                assert!(found((7, 5)).is_some_and(|sizes| !sizes.is_empty()), "{}", kernel.name());
                assert_eq!(found((7, 5)), found((9, 0)), "{}", kernel.name());
            }
        }
    }
}
