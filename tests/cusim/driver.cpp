// A stand-in for libcuda.so.1 over `fibers.cpp`: the functions that our backend calls, and no others.
//
// Streams are queues. What is put into one runs when somebody waits for it and not before, so that a result that is
// looked at too early is seen to be missing. Devices have memory, streams and kernels of their own, in one space of
// addresses; a thread says whose context it is in. Variables of the environment make it fail: see `Settings`.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "sim.h"

namespace {
enum Status {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    PEERS_UNSUPPORTED = 217,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    PEERS_ENABLED = 704,
    PEERS_NOT_ENABLED = 705,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

unsigned long long number(const char* name, unsigned long long otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

// A number for all devices, or one for each with commas between them: where a device has none, the usual.
struct Each {
    std::vector<std::string> list;
    unsigned long long usual;
    Each(const char* name, unsigned long long otherwise) : usual(otherwise) {
        const char* text = getenv(name);
        if (text) list.emplace_back();
        for (; text && *text; ++text) {
            if (*text == ',') list.emplace_back();
            else list.back() += *text;
        }
    }
    unsigned long long of(size_t device) const {
        size_t at = list.size() == 1 ? 0 : device;
        return at < list.size() && !list[at].empty() ? strtoull(list[at].c_str(), nullptr, 10) : usual;
    }
};

const size_t DEVICES_MOST = 8;

struct Settings {
    unsigned long long devices = std::min<unsigned long long>(number("CUSIM_DEVICES", 1), DEVICES_MOST);
    unsigned long long version = number("CUSIM_VERSION", 12020);
    Each bytes{"CUSIM_BYTES", 256ull << 20};
    // The first number of what a device is capable of.
    Each capability{"CUSIM_CAPABILITY", 8};
    // The n-th allocation is refused, counting from 1 and on all devices, or all from the n-th on; a device that is
    // full refuses all of its own; after so many of its launches a device is lost.
    unsigned long long refused = number("CUSIM_REFUSED", ~0ull);
    unsigned long long full = number("CUSIM_FULL", ~0ull);
    unsigned long long full_device = number("CUSIM_FULL_DEVICE", ~0ull);
    Each lost{"CUSIM_LOST", ~0ull};
    // Whether devices may touch the memory of others: "refused" when they are asked, or "torn": then they may, and
    // what is copied between them directly does not arrive.
    std::string peers = getenv("CUSIM_PEERS") ? getenv("CUSIM_PEERS") : "";
    // Whose waits for events do nothing: those of the stream made "first", of others ("second"), of the "host".
    std::string deaf = getenv("CUSIM_DEAF") ? getenv("CUSIM_DEAF") : "";
    // Graphs are refused: 1 when one is begun, 2 when it ends, 3 when it is made, 4 when it is sent there. With 5 the
    // device is lost then.
    unsigned long long no_graph = number("CUSIM_NO_GRAPH", 0);
    // Of the device, for every call in a graph that is made: an allocation like others.
    unsigned long long call_bytes = number("CUSIM_CALL_BYTES", 1024);
    // A file that gets a line for every allocation, those of graphs among them.
    const char* log = getenv("CUSIM_LOG");
    // A file that gets a line for every call of a function that a step may need: its name, and the kernel's.
    const char* calls = getenv("CUSIM_CALLS");
};

const Settings& settings() {
    static const Settings settings;
    return settings;
}

struct Device {
    size_t used = 0, launches = 0;
    Status broken = OK;
    std::set<const Device*> peers;  // whose memory its kernels may touch
    size_t number() const;
};
Device devices[DEVICES_MOST];
size_t Device::number() const { return (size_t)(this - devices); }
// Whose context a thread is in, and whose kernel is running.
thread_local Device* current;
Device* running;

struct Block {
    size_t bytes;
    Device* device;
};
using Blocks = std::map<char*, Block>;

// All addresses of all devices, and what is allocated there.
const size_t RANGE = 8ull << 30;
const size_t APART = 4096;
char* range;
char* next_free;
Blocks allocated, pinned;
size_t changes;  // of `allocated`, and of who may touch what
size_t allocations;
std::recursive_mutex lock;

struct Stream;
struct Event {
    Device* device;
    Stream* stream = nullptr;
    size_t place = 0;  // how many operations of its stream must be done
    // When that was, in seconds; nothing where nobody asks.
    std::shared_ptr<double> at = nullptr;
};
using Operations = std::vector<std::function<void()>>;
// A graph that can be launched, with what it takes of its device.
struct Made {
    std::shared_ptr<Operations> operations;
    Device* device;
    size_t bytes;
};
// What is written down of a stream instead of put into it.
struct Capture {
    Operations operations;
    bool is_valid = true;
};
struct Stream {
    Device* device;
    std::deque<std::function<void()>> waiting;
    std::unique_ptr<Capture> capture;
    size_t put = 0, done = 0;
    void run_to(size_t place) {
        while (done < place && !waiting.empty()) {
            auto operation = std::move(waiting.front());
            waiting.pop_front();
            if (device->broken == OK) operation();
            ++done;
        }
    }
    // Whether somebody may wait for it, or give it what is taken at once: that cannot be written down.
    bool is_plain() {
        if (capture) capture->is_valid = false;
        return !capture;
    }
    void add(std::function<void()> operation) {
        if (capture) return capture->operations.push_back(std::move(operation));
        waiting.push_back(std::move(operation));
        ++put;
    }
};
std::vector<Stream*> streams;

// There is no stream but those that were made.
Stream& stream_of(void* handle) { return *static_cast<Stream*>(handle); }

// All devices, to the end of what is queued.
void run_all() {
    for (Stream* stream : streams) stream->run_to(stream->put);
}

const Block* block_of(const Blocks& blocks, const void* address, size_t bytes) {
    char* at = static_cast<char*>(const_cast<void*>(address));
    auto after = blocks.upper_bound(at);
    if (after == blocks.begin()) return nullptr;
    --after;
    return at + bytes <= after->first + after->second.bytes ? &after->second : nullptr;
}

bool is_within(const Blocks& blocks, const void* address, size_t bytes) {
    return block_of(blocks, address, bytes) != nullptr;
}

// Whether so many bytes from there on are a device's own.
bool is_on(const Device* device, const void* address, size_t bytes) {
    const Block* block = block_of(allocated, address, bytes);
    return block && block->device == device;
}

struct Image {
    std::string text;
    Device* device;
};
struct Function {
    const cusim::Entry* entry;
    Device* device;
    unsigned most = 48 << 10;  // bytes of shared memory without asking
};

// Whether an image has a kernel with so many parameters: the text must be of the same sources as the stand-in.
bool has_entry(const std::string& text, const cusim::Entry& entry) {
    std::string name = ".entry " + std::string(entry.name) + "(";
    size_t at = text.find(name);
    if (at == std::string::npos) return false;
    size_t end = text.find(')', at);
    unsigned count = 0;
    for (size_t i = text.find(".param", at); i < end; i = text.find(".param", i + 1)) ++count;
    return count == entry.count;
}

void copy_checked(Device* device, void* to, const void* from, size_t bytes) {
    for (const void* side : {static_cast<const void*>(to), from}) {
        if (cusim::is_device(side) && !is_within(allocated, side, bytes)) {
            cusim::fault("a copy of %zu bytes beyond what was allocated", bytes);
            device->broken = ILLEGAL_ADDRESS;
            return;
        }
    }
    memmove(to, from, bytes);
}
}  // namespace

namespace cusim {
bool is_device(const void* address) {
    const char* at = static_cast<const char*>(address);
    return range && at >= range && at < range + RANGE;
}
bool is_allocated(const void* address, size_t bytes) {
    // Kernels mostly stay in one block.
    static char* first;
    static size_t size, known;
    static const Device* whose;
    const char* at = static_cast<const char*>(address);
    bool is_known = known == changes && whose == running;
    if (is_known && first && at >= first && at + bytes <= first + size) return true;
    const Block* block = block_of(allocated, address, bytes);
    // Memory of another device counts where that was asked for and granted.
    if (!block || (block->device != running && !running->peers.count(block->device))) return false;
    auto found = --allocated.upper_bound(const_cast<char*>(at));
    first = found->first, size = found->second.bytes, known = changes, whose = running;
    return true;
}
}  // namespace cusim

static void log(const char* what, size_t bytes) {
    FILE* file = settings().log ? fopen(settings().log, "a") : nullptr;
    if (!file) return;
    fprintf(file, "%s %zu\n", what, bytes);
    fclose(file);
}

// Counts an allocation; whether it is refused.
bool is_refused(const char* what, size_t bytes) {
    ++allocations;
    log(what, bytes);
    if (current->number() == settings().full_device) return true;
    return allocations == settings().refused || allocations >= settings().full;
}

static bool has_room(size_t bytes) {
    return current->used + bytes <= settings().bytes.of(current->number());
}

static void note(const char* call, const char* kernel = "") {
    static FILE* file = settings().calls ? fopen(settings().calls, "a") : nullptr;
    if (!file) return;
    fprintf(file, "%s %s\n", call, kernel);
    fflush(file);
}

#define ENTER                                           \
    std::lock_guard<std::recursive_mutex> guard(lock); \
    note(__func__);                                     \
    if (!current) return INVALID_CONTEXT;               \
    if (current->broken != OK) return current->broken;

extern "C" {
int cuInit(unsigned) { return settings().devices ? OK : NO_DEVICE; }
int cuDriverGetVersion(int* version) { return *version = (int)settings().version, OK; }
int cuDeviceGetCount(int* count) { return *count = (int)settings().devices, OK; }
int cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= (int)settings().devices) return INVALID_DEVICE;
    return *device = ordinal, OK;
}
int cuDeviceGetName(char* name, int bytes, int) { return snprintf(name, bytes, "cusim"), OK; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = settings().bytes.of((size_t)device), OK; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
        case 16: *value = 2; break;                // processors
        case 75: *value = (int)settings().capability.of((size_t)device); break;
        case 76: *value = 0; break;
        case 97: *value = 96 << 10; break;         // shared memory of a block, asked for
        default: *value = 0;
    }
    return OK;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &devices[device], OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxSetCurrent(void* context) {
    note(__func__);
    current = static_cast<Device*>(context);
    return OK;
}
int cuCtxGetCurrent(void** context) { return *context = current, OK; }
int cuCtxSynchronize() {
    ENTER
    run_all();
    return current->broken;
}
int cuDeviceCanAccessPeer(int* can, int device, int peer) {
    return *can = device != peer && settings().peers != "refused", OK;
}
int cuCtxEnablePeerAccess(void* peer, unsigned) {
    ENTER
    if (settings().peers == "refused" || peer == current) return PEERS_UNSUPPORTED;
    ++changes;
    return current->peers.insert(static_cast<Device*>(peer)).second ? OK : PEERS_ENABLED;
}
int cuCtxDisablePeerAccess(void* peer) {
    ENTER
    ++changes;
    return current->peers.erase(static_cast<Device*>(peer)) ? OK : PEERS_NOT_ENABLED;
}

int cuMemGetInfo_v2(size_t* available, size_t* total) {
    ENTER
    *total = settings().bytes.of(current->number());
    *available = *total - current->used;
    return OK;
}
int cuMemAlloc_v2(void** to, size_t bytes) {
    ENTER
    bool refused = is_refused("device", bytes);
    if (!bytes) return INVALID_VALUE;
    if (refused || !has_room(bytes)) return OUT_OF_MEMORY;
    if (!range) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        range = static_cast<char*>(mmap(nullptr, RANGE, PROT_READ | PROT_WRITE, flags, -1, 0));
        next_free = range;
    }
    // Addresses are not given out twice, so that what is used after it was freed is seen.
    if (next_free + bytes + APART > range + RANGE) return OUT_OF_MEMORY;
    allocated[next_free] = {bytes, current};
    ++changes;
    memset(next_free, 0xa5, bytes);
    *to = next_free;
    next_free += (bytes + 2 * APART - 1) / APART * APART;
    current->used += bytes;
    return OK;
}
int cuMemFree_v2(void* address) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    run_all();
    auto found = allocated.find(static_cast<char*>(address));
    if (found == allocated.end()) return INVALID_VALUE;
    Device* device = found->second.device;
    device->used -= found->second.bytes;
    allocated.erase(found);
    ++changes;
    return device->broken;
}
int cuMemHostAlloc(void** to, size_t bytes, unsigned) {
    ENTER
    if (is_refused("host", bytes)) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(APART, (bytes + APART - 1) / APART * APART);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xa5, bytes);
    pinned[static_cast<char*>(memory)] = {bytes, current};
    *to = memory;
    return OK;
}
int cuMemFreeHost(void* address) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    run_all();
    if (!pinned.erase(static_cast<char*>(address))) return INVALID_VALUE;
    free(address);
    return OK;
}
int cuMemsetD8Async(void* to, unsigned char value, size_t bytes, void* stream) {
    ENTER
    if (!is_on(current, to, bytes)) return INVALID_VALUE;
    stream_of(stream).add([=] { memset(to, value, bytes); });
    return OK;
}
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    ENTER
    Device* device = stream_of(stream).device;
    if (!is_on(device, to, bytes)) return INVALID_VALUE;
    // Memory that is not pinned is taken before the call returns.
    if (is_within(pinned, from, bytes)) {
        stream_of(stream).add([=] { copy_checked(device, to, from, bytes); });
    } else if (!stream_of(stream).is_plain()) {
        return CAPTURE_UNSUPPORTED;
    } else {
        const char* source = static_cast<const char*>(from);
        std::vector<char> taken(source, source + bytes);
        stream_of(stream).add([=] { copy_checked(device, to, taken.data(), taken.size()); });
    }
    return OK;
}
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    ENTER
    Stream& queue = stream_of(stream);
    Device* device = queue.device;
    if (!is_on(device, from, bytes)) return INVALID_VALUE;
    bool is_pinned = is_within(pinned, to, bytes);
    if (!is_pinned && !queue.is_plain()) return CAPTURE_UNSUPPORTED;
    queue.add([=] { copy_checked(device, to, from, bytes); });
    if (!is_pinned) queue.run_to(queue.put);
    return device->broken;
}
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    ENTER
    Device* device = stream_of(stream).device;
    if (!is_on(device, from, bytes) || !is_on(device, to, bytes)) return INVALID_VALUE;
    stream_of(stream).add([=] { copy_checked(device, to, from, bytes); });
    return OK;
}
int cuMemcpyPeerAsync(void* to, void* to_context, const void* from, void* from_context, size_t bytes, void* stream) {
    ENTER
    auto *there = static_cast<Device*>(to_context), *here = static_cast<Device*>(from_context);
    if (!is_on(there, to, bytes) || !is_on(here, from, bytes)) return INVALID_VALUE;
    if (here->broken != OK) return here->broken;
    if (!stream_of(stream).is_plain()) return CAPTURE_UNSUPPORTED;
    Device* device = stream_of(stream).device;
    stream_of(stream).add([=] {
        // What a lost device had is gone with it.
        if (here->broken != OK) return;
        // Without leave to touch one another the driver goes by way of the host.
        bool is_direct = there->peers.count(here) || here->peers.count(there);
        if (!is_direct || settings().peers != "torn") copy_checked(device, to, from, bytes);
    });
    return OK;
}

int cuStreamCreate(void** stream, unsigned) {
    ENTER
    streams.push_back(new Stream{current});
    *stream = streams.back();
    return OK;
}
int cuStreamSynchronize(void* stream) {
    ENTER
    Stream& queue = stream_of(stream);
    if (!queue.is_plain()) return CAPTURE_UNSUPPORTED;
    queue.run_to(queue.put);
    return queue.device->broken;
}
int cuStreamBeginCapture_v2(void* stream, int) {
    ENTER
    if (settings().no_graph == 1 || !stream_of(stream).is_plain()) return CAPTURE_UNSUPPORTED;
    stream_of(stream).capture = std::make_unique<Capture>();
    return OK;
}
int cuStreamEndCapture(void* stream, void** graph) {
    ENTER
    std::unique_ptr<Capture> capture = std::move(stream_of(stream).capture);
    *graph = nullptr;
    if (!capture) return INVALID_VALUE;
    if (settings().no_graph == 2 || !capture->is_valid) return CAPTURE_INVALIDATED;
    *graph = new Operations(std::move(capture->operations));
    return OK;
}
int cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long) {
    ENTER
    if (settings().no_graph == 3) return OUT_OF_MEMORY;
    auto* operations = static_cast<Operations*>(graph);
    size_t bytes = operations->size() * settings().call_bytes;
    if (is_refused("graph", bytes) || !has_room(bytes)) return OUT_OF_MEMORY;
    current->used += bytes;
    *made = new Made{std::make_shared<Operations>(*operations), current, bytes};
    return OK;
}
int cuGraphUpload(void*, void*) {
    ENTER
    if (settings().no_graph == 5) current->broken = LAUNCH_FAILED;
    return settings().no_graph == 4 ? OUT_OF_MEMORY : current->broken;
}
int cuGraphDestroy(void* graph) {
    delete static_cast<Operations*>(graph);
    return OK;
}
int cuGraphLaunch(void* made, void* stream) {
    ENTER
    if (!stream_of(stream).is_plain()) return CAPTURE_UNSUPPORTED;
    std::shared_ptr<Operations> operations = static_cast<Made*>(made)->operations;
    Device* device = stream_of(stream).device;
    stream_of(stream).add([=] {
        for (auto& operation : *operations) {
            if (device->broken == OK) operation();
        }
    });
    return OK;
}
int cuGraphExecDestroy(void* made) {
    note(__func__);
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto* graph = static_cast<Made*>(made);
    graph->device->used -= graph->bytes;
    delete graph;
    return OK;
}
int cuStreamDestroy_v2(void* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    run_all();
    for (size_t i = 0; i < streams.size(); ++i) {
        if (streams[i] == stream) streams.erase(streams.begin() + i);
    }
    delete static_cast<Stream*>(stream);
    return OK;
}
int cuEventCreate(void** event, unsigned flags) {
    ENTER
    auto* made = new Event{current};
    const unsigned without_clock = 2;
    if (!(flags & without_clock)) made->at = std::make_shared<double>(0.0);
    *event = made;
    return OK;
}
int cuEventRecord(void* event, void* stream) {
    ENTER
    auto* of = static_cast<Event*>(event);
    if (of->device != stream_of(stream).device) return INVALID_HANDLE;
    of->stream = &stream_of(stream);
    if (std::shared_ptr<double> at = of->at) {
        using namespace std::chrono;
        of->stream->add([at] { *at = duration<double>(steady_clock::now().time_since_epoch()).count(); });
    }
    of->place = of->stream->put;
    return OK;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    ENTER
    Event of = *static_cast<Event*>(event);
    bool is_first = !streams.empty() && stream == streams.front();
    if (settings().deaf == (is_first ? "first" : "second")) return OK;
    if (!stream_of(stream).is_plain()) return CAPTURE_UNSUPPORTED;
    if (of.stream) stream_of(stream).add([=] { of.stream->run_to(of.place); });
    return OK;
}
int cuEventSynchronize(void* event) {
    ENTER
    auto* of = static_cast<Event*>(event);
    if (settings().deaf == "host") return OK;
    if (of->stream) of->stream->run_to(of->place);
    return of->device->broken;
}
// Of the stand-in's own work, which says nothing about a card's.
int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    ENTER
    auto *first = static_cast<Event*>(from), *second = static_cast<Event*>(to);
    if (!first->at || !second->at || *first->at == 0.0 || *second->at == 0.0) return INVALID_HANDLE;
    *milliseconds = static_cast<float>((*second->at - *first->at) * 1e3);
    return OK;
}
int cuEventDestroy_v2(void* event) {
    delete static_cast<Event*>(event);
    return OK;
}

int cuModuleLoadData(void** module, const void* image) {
    ENTER
    const char* text = static_cast<const char*>(image);
    if (!strstr(text, ".version")) return INVALID_IMAGE;
    *module = new Image{text, current};
    return OK;
}
int cuModuleUnload(void* module) {
    delete static_cast<Image*>(module);
    return OK;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    ENTER
    const cusim::Entry* entry = cusim::find(name);
    if (!entry) return NOT_FOUND;
    if (!has_entry(static_cast<Image*>(module)->text, *entry)) {
        fprintf(stderr, "cusim: %s has %u parameters here and not there: make the text anew\n", name, entry->count);
        return NOT_FOUND;
    }
    *function = new Function{entry, static_cast<Image*>(module)->device};
    return OK;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    ENTER
    if (attribute == 8) static_cast<Function*>(function)->most = (unsigned)value;
    return OK;
}
int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned bytes, void* stream, void** parameters, void**) {
    auto* function = static_cast<Function*>(handle);
    std::lock_guard<std::recursive_mutex> guard(lock);
    note(__func__, function->entry->name);
    Device* device = function->device;
    // Kernel, stream and thread are of one context.
    if (device != current || device != stream_of(stream).device) return INVALID_HANDLE;
    if (device->broken != OK) return device->broken;
    if (bytes > function->most || !gx || !gy || !gz || gy > 65535 || gz > 65535) return INVALID_VALUE;
    // Parameters are taken now, the launch comes later.
    std::vector<std::vector<char>> kept;
    for (unsigned i = 0; i < function->entry->count; ++i) {
        const char* from = static_cast<const char*>(parameters[i]);
        kept.emplace_back(from, from + function->entry->sizes[i]);
    }
    const cusim::Entry* entry = function->entry;
    stream_of(stream).add([=]() mutable {
        if (++device->launches > settings().lost.of(device->number())) {
            device->broken = LAUNCH_FAILED;
            return;
        }
        std::vector<void*> pointers;
        for (auto& parameter : kept) pointers.push_back(parameter.data());
        running = device;
        bool is_done = cusim::launch(entry, {gx, gy, gz}, {bx, by, bz}, bytes, pointers.data());
        if (!is_done) device->broken = ILLEGAL_ADDRESS;
    });
    return OK;
}

int cuGetErrorName(int status, const char** name) {
    switch (status) {
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
        case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
        case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        case CAPTURE_UNSUPPORTED: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
        case CAPTURE_INVALIDATED: *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return OK;
}
int cuGetErrorString(int status, const char** text) { return cuGetErrorName(status, text); }
}
