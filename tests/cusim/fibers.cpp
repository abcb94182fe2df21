// The machine behind `cusim.h`: fibers, barriers, shared memory with its races, and the launch of a grid.
//
// A block's threads run one after another, each until it waits; the order changes from round to round, so that a
// result that hangs on it shows. The first fault ends the launch and is kept as a sentence.
#include "sim.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cusim.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cusim {
Index thread, block, block_size, grid_size;

namespace {
enum class State { Ready, Block, Warp, Done };

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    char* stack;
    State state;
    unsigned mask;
    Index index;
};

// What last happened to a byte of shared memory. Threads of one warp are ordered by its own barriers too.
struct Trace {
    unsigned write_epoch, read_epoch;
    unsigned write_turn, read_turn;
    unsigned short writer, reader;
};
const unsigned short SEVERAL_WARPS = 0xffff;
const unsigned short SEVERAL_LANES = 0x8000;  // and the warp

struct Warp {
    unsigned slots[32];
    unsigned fragments[32][6];  // of `a` four, of `b` two
    unsigned turn;
};

const size_t STACK = 256 << 10;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<Trace> traces;
char* memory;  // of SHARED_MOST bytes and a border that is never given out
const size_t SHARED_MOST = 96 << 10;
size_t shared_bytes;
unsigned epoch, current, random_state;
bool is_running;
std::string fault_text;
const Entry* entry;
void** parameters;

#if defined(__x86_64__)
void* scheduler;
extern "C" void cusim_switch(void** save, void* to);
asm(".text\n.globl cusim_switch\n.hidden cusim_switch\ncusim_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
void leave() { cusim_switch(&fibers[current].stack_pointer, scheduler); }
void enter(Fiber& fiber) { cusim_switch(&scheduler, fiber.stack_pointer); }
#else
ucontext_t scheduler;
void leave() { swapcontext(&fibers[current].context, &scheduler); }
void enter(Fiber& fiber) { swapcontext(&scheduler, &fiber.context); }
#endif

void first_step() {
    entry->run(parameters);
    fibers[current].state = State::Done;
    leave();
    abort();
}

void prepare(Fiber& fiber) {
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(fiber.stack + STACK - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(first_step);
    fiber.stack_pointer = top - 6;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, first_step, 0);
#endif
    fiber.state = State::Ready;
}

unsigned random_number() { return random_state = random_state * 1664525u + 1013904223u; }

// Lets the lanes of a mask go on once all of them wait with that same mask.
bool release_warps(unsigned threads) {
    bool released = false;
    for (unsigned i = 0; i < threads; ++i) {
        if (fibers[i].state != State::Warp) continue;
        unsigned first = i & ~31u, mask = fibers[i].mask;
        bool complete = true;
        for (unsigned lane = 0; lane < 32 && complete; ++lane) {
            if (!(mask >> lane & 1)) continue;
            unsigned other = first + lane;
            complete = other < threads && fibers[other].state == State::Warp && fibers[other].mask == mask;
        }
        if (!complete) continue;
        for (unsigned lane = 0; lane < 32; ++lane) {
            if (mask >> lane & 1) fibers[first + lane].state = State::Ready;
        }
        ++warps[first / 32].turn;
        released = true;
    }
    return released;
}

bool run_block(unsigned threads) {
    memset(memory, 0xa5, shared_bytes);
    ++epoch;
    for (auto& warp : warps) warp.turn = 0;
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) {
        prepare(fibers[i]);
        fibers[i].index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
        order[i] = i;
    }
    for (;;) {
        for (unsigned i = threads - 1; i > 0; --i) std::swap(order[i], order[(random_number() >> 8) % (i + 1)]);
        for (unsigned i : order) {
            if (fibers[i].state != State::Ready) continue;
            current = i;
            thread = fibers[i].index;
            enter(fibers[i]);
            if (!fault_text.empty()) return false;
        }
        unsigned done = 0, waiting = 0, in_warps = 0;
        for (unsigned i = 0; i < threads; ++i) {
            done += fibers[i].state == State::Done;
            waiting += fibers[i].state == State::Block;
            in_warps += fibers[i].state == State::Warp;
        }
        if (done == threads) return true;
        if (in_warps > 0 && release_warps(threads)) continue;
        if (waiting == threads) {
            ++epoch;
            for (unsigned i = 0; i < threads; ++i) fibers[i].state = State::Ready;
            continue;
        }
        fault("%s, block %u.%u: %u threads wait at a barrier, %u in their warps, %u have ended", entry->name, block.x,
              block.y, waiting, in_warps, done);
        return false;
    }
}

void fault_here(const char* what, const void* address, unsigned bytes) {
    fault("%s, block %u.%u, thread %u: %s of %u bytes at %p", entry->name, block.x, block.y, current, what, bytes,
          address);
    leave();
}

// Whether an earlier access is ordered before one of the current thread's by a barrier since.
bool ordered(unsigned then, unsigned turn, unsigned short who) {
    if (then != epoch || who == current) return true;
    if (who == SEVERAL_WARPS) return false;
    unsigned warp = who & SEVERAL_LANES ? who & ~SEVERAL_LANES : who / 32;
    return warp == current / 32 && turn < warps[warp].turn;
}

void note_read(Trace& trace) {
    unsigned turn = warps[current / 32].turn;
    if (trace.read_epoch != epoch) {
        trace.reader = (unsigned short)current;
    } else if (trace.reader != current) {
        unsigned warp = trace.reader & SEVERAL_LANES ? trace.reader & ~SEVERAL_LANES : trace.reader / 32;
        bool same = trace.reader != SEVERAL_WARPS && warp == current / 32;
        trace.reader = same ? (unsigned short)(SEVERAL_LANES | warp) : SEVERAL_WARPS;
    }
    trace.read_epoch = epoch;
    trace.read_turn = turn;
}

void access(const void* address, unsigned bytes, bool is_write) {
    if (!is_running) return;
    const char* at = static_cast<const char*>(address);
    if (at >= memory && at < memory + 2 * SHARED_MOST) {
        size_t offset = at - memory;
        if (offset + bytes > shared_bytes) return fault_here("an access beyond shared memory", address, bytes);
        for (size_t i = offset; i < offset + bytes; ++i) {
            Trace& trace = traces[i];
            bool sound = ordered(trace.write_epoch, trace.write_turn, trace.writer);
            if (is_write) sound = sound && ordered(trace.read_epoch, trace.read_turn, trace.reader);
            if (!sound) return fault_here("a race in shared memory, an access", address, bytes);
            if (is_write) {
                trace.write_epoch = epoch;
                trace.write_turn = warps[current / 32].turn;
                trace.writer = (unsigned short)current;
            } else {
                note_read(trace);
            }
        }
    } else if (is_device(address) && !is_allocated(address, bytes)) {
        fault_here("an access outside of what was allocated", address, bytes);
    }
}
}  // namespace

Entry* entries;
Entry::Entry(const char* name, unsigned count, const size_t* sizes, void (*run)(void**))
    : name(name), count(count), sizes(sizes), run(run), next(entries) {
    entries = this;
}

const Entry* find(const char* name) {
    for (const Entry* entry = entries; entry; entry = entry->next) {
        if (!strcmp(entry->name, name)) return entry;
    }
    return nullptr;
}

void fault(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (fault_text.empty()) fault_text = text;
    fprintf(stderr, "cusim: %s\n", text);
}

bool is_faulty() { return !fault_text.empty(); }

void* shared() { return memory; }

void barrier() {
    fibers[current].state = State::Block;
    leave();
}

void warp_barrier(unsigned mask) {
    if (!(mask >> (current & 31) & 1)) return fault_here("a warp's barrier without the thread itself", nullptr, 0);
    fibers[current].state = State::Warp;
    fibers[current].mask = mask;
    leave();
}

unsigned exchange(unsigned mask, unsigned value, unsigned source) {
    Warp& warp = warps[current / 32];
    unsigned lane = current & 31;
    warp.slots[lane] = value;
    warp_barrier(mask);
    if (!(mask >> (source & 31) & 1)) fault_here("a shuffle from a lane that is not in the mask", nullptr, 0);
    unsigned found = warp.slots[source & 31];
    warp_barrier(mask);
    return found;
}

namespace {
// As PTX has it for m16n8k32 of bytes, and for m16n8k16 of halves of words: register r of `a` in lane 4g + t holds row
// g + 8 (r % 2), columns of which the word is t, and t + 4 for r of 2 and 3; that of `b` rows t and t + 4 of column g.
// Sum i is of row g + 8 (i / 2) and column 2t + i % 2.
template <class T, class Add> void multiply_fragments(T (&sums)[4], const unsigned* a, const unsigned* b, Add add) {
    Warp& warp = warps[current / 32];
    unsigned lane = current & 31;
    memcpy(warp.fragments[lane], a, 4 * sizeof *a);
    memcpy(warp.fragments[lane] + 4, b, 2 * sizeof *b);
    warp_barrier(~0u);
    for (unsigned i = 0; i < 4; ++i) {
        unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        for (unsigned word = 0; word < 8; ++word) {
            unsigned of_a = warp.fragments[4 * (row % 8) + word % 4][row / 8 + 2 * (word / 4)];
            unsigned of_b = warp.fragments[4 * column + word % 4][4 + word / 4];
            add(sums[i], of_a, of_b);
        }
    }
    warp_barrier(~0u);
}
}  // namespace

void multiply_bytes(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    multiply_fragments(sums, a, b, [](int& sum, unsigned a, unsigned b) {
        for (unsigned at = 0; at < 32; at += 8) sum += (int)(a >> at & 0xff) * (int)(int8_t)(b >> at & 0xff);
    });
}

void multiply_bfloats(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    multiply_fragments(sums, a, b, [](float& sum, unsigned a, unsigned b) {
        sum += __uint_as_float(a << 16) * __uint_as_float(b << 16);
        sum += __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
    });
}

bool launch(const Entry* kernel, Index grid, Index size, size_t bytes, void** given) {
    unsigned threads = size.x * size.y * size.z;
    if (!threads || threads > 1024 || bytes > SHARED_MOST || !(grid.x && grid.y && grid.z)) {
        fault("%s: a launch of %u x %u x %u blocks of %u threads with %zu bytes", kernel->name, grid.x, grid.y, grid.z,
              threads, bytes);
        return false;
    }
    if (!memory) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        memory = static_cast<char*>(mmap(nullptr, 2 * SHARED_MOST, PROT_READ | PROT_WRITE, flags, -1, 0));
        traces.resize(SHARED_MOST);
        fibers.reserve(1024);  // a fiber's stack pointer is written while others are looked at
    }
    while (fibers.size() < threads) {
        Fiber fiber{};
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        fiber.stack = static_cast<char*>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, flags, -1, 0));
        fibers.push_back(fiber);
    }
    warps.assign((threads + 31) / 32, Warp{});
    entry = kernel, parameters = given, block_size = size, grid_size = grid, shared_bytes = bytes;
    is_running = true;
    bool is_done = true;
    for (unsigned z = 0; z < grid.z && is_done; ++z) {
        for (unsigned y = 0; y < grid.y && is_done; ++y) {
            for (unsigned x = 0; x < grid.x && is_done; ++x) {
                block = {x, y, z};
                is_done = run_block(threads);
            }
        }
    }
    is_running = false;
    return is_done;
}
}  // namespace cusim

// What a compiler with -fsanitize=thread calls before every load and store.
#define ACCESSES(bytes)                                                                                    \
    extern "C" void __tsan_read##bytes(void* at) { cusim::access(at, bytes, false); }                      \
    extern "C" void __tsan_write##bytes(void* at) { cusim::access(at, bytes, true); }                      \
    extern "C" void __tsan_unaligned_read##bytes(void* at) { cusim::access(at, bytes, false); }            \
    extern "C" void __tsan_unaligned_write##bytes(void* at) { cusim::access(at, bytes, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" void __tsan_read_range(void* at, unsigned long bytes) { cusim::access(at, bytes, false); }
extern "C" void __tsan_write_range(void* at, unsigned long bytes) { cusim::access(at, bytes, true); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
// What -fsanitize=thread makes of copies of structures.
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    cusim::access(from, bytes, false);
    cusim::access(to, bytes, true);
    return memcpy(to, from, bytes);
}
extern "C" void* __tsan_memset(void* to, int value, size_t bytes) {
    cusim::access(to, bytes, true);
    return memset(to, value, bytes);
}
