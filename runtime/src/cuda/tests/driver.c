// A driver without a GPU, for tests of the code that calls one: the functions of libcuda that the crate uses, over host memory.
//
// It is as unhelpful as a driver may be. Work that is started on a stream happens only when somebody waits for it, so a buffer that is
// reused too early is seen; device addresses lead nowhere on the host, so a host access to them is a crash; calls without a current context,
// with unknown handles, or that are not allowed while a stream captures, fail as the driver's do.
//
// Environment: FAKE_DEVICES, FAKE_CHIP (90 for 9.0), FAKE_MEMORY (bytes), FAKE_INIT (what cuInit returns), FAKE_LAUNCH (what launches return).

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned u32;
typedef unsigned long long u64;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURE = 900 };

// Non-canonical on every 64-bit processor: the host cannot follow it.
static const u64 DEVICE_BIT = 1ull << 55;
static char *host(u64 address) { return (char *)(uintptr_t)(address ^ DEVICE_BIT); }

enum kind { COPY, FILL, RECORD, KERNEL };

struct launch {
    u32 grid[3], block[3], shared;
    void *stream;
    void *attributes;
    u32 count;
};

struct work {
    enum kind kind;
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;
    unsigned char value;
    struct event *event;
    u32 mark;
    struct { u64 out; u32 count; u32 add; } arguments;
    u32 geometry[8];
    struct work *next;
};

// A wait is for the last time that the event was recorded.
struct event { u32 recorded, happened; };
struct list { struct work *first, **end; size_t count; };
struct stream { struct list queue, captured; int capturing; struct context *context; struct stream *next; };
struct graph { struct list work; };
struct context { int device, retained; };
struct function { const char *name; int most_shared; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct context contexts[8];
static struct stream *streams;
static _Thread_local struct context *current;
static size_t reserved;

static u64 setting(const char *name, u64 otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, 0, 10) : otherwise;
}

static void add(struct list *list, struct work work) {
    struct work *copy = malloc(sizeof work);
    *copy = work;
    copy->next = 0;
    if (!list->end) list->end = &list->first;
    *list->end = copy;
    list->end = &copy->next;
    list->count++;
}

static void run(struct work *work) {
    switch (work->kind) {
    case COPY:
        for (size_t row = 0; row < work->height; row++)
            memcpy(work->to + row * work->to_pitch, work->from + row * work->from_pitch, work->width);
        break;
    case FILL:
        for (size_t row = 0; row < work->height; row++) memset(work->to + row * work->to_pitch, work->value, work->width);
        break;
    case RECORD: work->event->happened = work->mark; break;
    case KERNEL: {
        // Writes the geometry, then adds to what follows it.
        u32 *out = (u32 *)host(work->arguments.out);
        memcpy(out, work->geometry, sizeof work->geometry);
        for (u32 i = 0; i < work->arguments.count; i++) out[8 + i] += work->arguments.add;
    }
    }
}

// Runs a stream's work up to an event, or all of it.
static void drain(struct stream *stream, struct event *until) {
    while (stream->queue.first && !(until && until->happened == until->recorded)) {
        struct work *work = stream->queue.first;
        stream->queue.first = work->next;
        if (!work->next) stream->queue.end = &stream->queue.first;
        run(work);
        free(work);
    }
}

static u32 start(struct stream *stream, struct work work) {
    if (!current) return NO_CONTEXT;
    if (!stream || stream->context != current) return INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    add(stream->capturing ? &stream->captured : &stream->queue, work);
    pthread_mutex_unlock(&lock);
    return 0;
}

static int capturing(void) {
    for (struct stream *stream = streams; stream; stream = stream->next)
        if (stream->capturing) return 1;
    return 0;
}

u32 cuInit(u32 flags) { return flags ? INVALID_VALUE : (u32)setting("FAKE_INIT", 0); }
u32 cuDriverGetVersion(int *version) { return *version = 13000, 0; }
u32 cuDeviceGetCount(int *count) { return *count = (int)setting("FAKE_DEVICES", 1), 0; }
u32 cuDeviceGet(int *device, int number) { return *device = number, (u64)number < setting("FAKE_DEVICES", 1) ? 0 : INVALID_VALUE; }
u32 cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "Pretended GPU %d", device), 0; }
u32 cuDeviceTotalMem_v2(size_t *bytes, int device) { return (void)device, *bytes = setting("FAKE_MEMORY", 1 << 30), 0; }

u32 cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    int chip = (int)setting("FAKE_CHIP", 90);
    switch (attribute) {
    case 75: *value = chip / 10; break;
    case 76: *value = chip % 10; break;
    case 16: *value = 132; break;
    case 97: *value = 232448; break;
    case 81: *value = 233472; break;
    case 38: *value = 50 << 20; break;
    case 13: *value = 1980000; break;
    case 36: *value = 3201000; break;
    case 37: *value = 6144; break;
    default: return INVALID_VALUE;
    }
    return 0;
}

u32 cuDevicePrimaryCtxRetain(struct context **context, int device) {
    *context = &contexts[device];
    (*context)->device = device;
    (*context)->retained++;
    return 0;
}
u32 cuCtxSetCurrent(struct context *context) { return current = context, 0; }

u32 cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    if (!current) return NO_CONTEXT;
    *total = setting("FAKE_MEMORY", 1 << 30);
    *free_bytes = *total - reserved;
    return 0;
}

struct block { size_t bytes; size_t pad[7]; };

u32 cuMemAlloc_v2(u64 *address, size_t bytes) {
    if (!current) return NO_CONTEXT;
    if (!bytes) return INVALID_VALUE;
    if (capturing()) return CAPTURE;
    if (bytes > setting("FAKE_MEMORY", 1 << 30) - reserved) return OUT_OF_MEMORY;
    struct block *block = aligned_alloc(64, sizeof *block + (bytes + 63) / 64 * 64);
    block->bytes = bytes;
    memset(block + 1, 0xAB, bytes);
    reserved += bytes;
    *address = (u64)(uintptr_t)(block + 1) ^ DEVICE_BIT;
    return 0;
}

u32 cuMemFree_v2(u64 address) {
    if (!current) return NO_CONTEXT;
    if (capturing()) return CAPTURE;
    // Work that still uses it finds something else there.
    struct block *block = (struct block *)host(address) - 1;
    reserved -= block->bytes;
    memset(block + 1, 0xCD, block->bytes);
    free(block);
    return 0;
}

u32 cuMemHostAlloc(void **start, size_t bytes, u32 flags) {
    if (!current) return NO_CONTEXT;
    return flags ? INVALID_VALUE : (*start = malloc(bytes), 0);
}

u32 cuMemsetD8Async(u64 to, unsigned char value, size_t bytes, struct stream *stream) {
    return start(stream, (struct work){.kind = FILL, .to = host(to), .value = value, .width = bytes, .height = 1});
}
u32 cuMemsetD2D8Async(u64 to, size_t pitch, unsigned char value, size_t width, size_t height, struct stream *stream) {
    if (pitch < width) return INVALID_VALUE;
    return start(stream, (struct work){.kind = FILL, .to = host(to), .to_pitch = pitch, .value = value, .width = width, .height = height});
}
static u32 copy(char *to, const char *from, size_t bytes, struct stream *stream) {
    return start(stream, (struct work){.kind = COPY, .to = to, .from = from, .width = bytes, .height = 1});
}
u32 cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, struct stream *stream) { return copy(host(to), from, bytes, stream); }
u32 cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, struct stream *stream) { return copy(to, host(from), bytes, stream); }
u32 cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, struct stream *stream) { return copy(host(to), host(from), bytes, stream); }

u32 cuMemcpyPeerAsync(u64 to, struct context *to_context, u64 from, struct context *from_context, size_t bytes, struct stream *stream) {
    if (!to_context || !from_context || to_context == from_context) return INVALID_VALUE;
    return copy(host(to), host(from), bytes, stream);
}

struct end { size_t x, y; u32 type; void *host; u64 device; void *array; size_t pitch; };
struct rectangle { struct end from, to; size_t width, height; };

static char *begin(const struct end *end) { return end->type == 1 ? end->host : end->type == 2 ? host(end->device) : 0; }

u32 cuMemcpy2DAsync_v2(const struct rectangle *r, struct stream *stream) {
    char *from = begin(&r->from), *to = begin(&r->to);
    if (!from || !to || r->from.pitch < r->width || r->to.pitch < r->width || r->from.x || r->to.x || r->from.y || r->to.y) return INVALID_VALUE;
    return start(stream, (struct work){.kind = COPY, .to = to, .from = from, .to_pitch = r->to.pitch, .from_pitch = r->from.pitch, .width = r->width, .height = r->height});
}

u32 cuStreamCreate(struct stream **stream, u32 flags) {
    if (!current) return NO_CONTEXT;
    if (flags != 1) return INVALID_VALUE;
    *stream = calloc(1, sizeof **stream);
    (*stream)->context = current;
    (*stream)->next = streams;
    streams = *stream;
    return 0;
}
u32 cuStreamSynchronize(struct stream *stream) {
    if (stream->capturing) return CAPTURE;
    pthread_mutex_lock(&lock);
    drain(stream, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}
u32 cuStreamBeginCapture_v2(struct stream *stream, u32 mode) {
    if (stream->capturing || mode != 1) return INVALID_VALUE;
    stream->capturing = 1;
    stream->captured = (struct list){0};
    return 0;
}
u32 cuStreamEndCapture(struct stream *stream, struct graph **graph) {
    if (!stream->capturing) return INVALID_VALUE;
    stream->capturing = 0;
    *graph = malloc(sizeof **graph);
    (*graph)->work = stream->captured;
    return 0;
}

u32 cuEventCreate(struct event **event, u32 flags) {
    if (!current) return NO_CONTEXT;
    return flags & ~2u ? INVALID_VALUE : (*event = calloc(1, sizeof **event), 0);
}
u32 cuEventRecord(struct event *event, struct stream *stream) {
    return start(stream, (struct work){.kind = RECORD, .event = event, .mark = ++event->recorded});
}
u32 cuEventSynchronize(struct event *event) {
    if (capturing()) return CAPTURE;
    pthread_mutex_lock(&lock);
    for (struct stream *stream = streams; stream && event->happened != event->recorded; stream = stream->next) drain(stream, event);
    pthread_mutex_unlock(&lock);
    return 0;
}
u32 cuEventElapsedTime_v2(float *milliseconds, struct event *first, struct event *second) {
    if (!first->recorded || !second->recorded) return INVALID_HANDLE;
    return *milliseconds = 1.5f, 0;
}
u32 cuEventDestroy_v2(struct event *event) { return (void)event, 0; }

u32 cuGraphInstantiateWithFlags(struct graph **executable, struct graph *graph, u64 flags) {
    if (flags) return INVALID_VALUE;
    *executable = malloc(sizeof **executable);
    (*executable)->work = (struct list){0};
    for (struct work *work = graph->work.first; work; work = work->next) add(&(*executable)->work, *work);
    return 0;
}
u32 cuGraphGetNodes(struct graph *graph, void *nodes, size_t *count) { return nodes ? INVALID_VALUE : (*count = graph->work.count, 0); }
u32 cuGraphUpload(struct graph *graph, struct stream *stream) { return graph && stream ? 0 : INVALID_VALUE; }
u32 cuGraphLaunch(struct graph *executable, struct stream *stream) {
    for (struct work *work = executable->work.first; work; work = work->next) {
        u32 code = start(stream, *work);
        if (code) return code;
    }
    return 0;
}
u32 cuGraphExecUpdate_v2(struct graph *executable, struct graph *graph, void *result) {
    (void)result;
    if (executable->work.count != graph->work.count) return 910;
    executable->work = (struct list){0};
    for (struct work *work = graph->work.first; work; work = work->next) add(&executable->work, *work);
    return 0;
}
u32 cuGraphExecDestroy(struct graph *executable) { return (void)executable, 0; }
u32 cuGraphDestroy(struct graph *graph) { return (void)graph, 0; }

u32 cuModuleLoadData(void **module, const char *image) {
    if (!current) return NO_CONTEXT;
    if (capturing()) return CAPTURE;
    return memcmp(image, "\177ELF", 4) ? NO_BINARY : (*module = (void *)image, 0);
}
u32 cuModuleGetFunction(struct function **function, void *module, const char *name) {
    if (!module || strstr(name, "missing")) return NOT_FOUND;
    *function = calloc(1, sizeof **function);
    (*function)->name = strdup(name);
    return 0;
}
u32 cuFuncSetAttribute(struct function *function, u32 attribute, int value) {
    if (attribute != 8 || value > 232448 - 16) return INVALID_VALUE;
    return function->most_shared = value, 0;
}
u32 cuFuncGetAttribute(int *value, u32 attribute, struct function *function) {
    (void)function;
    switch (attribute) {
    case 0: *value = 256; return 0;
    case 1: *value = 16; return 0;
    case 3: *value = 0; return 0;
    case 4: *value = 40; return 0;
    default: return INVALID_VALUE;
    }
}
u32 cuFuncGetParamInfo(struct function *function, size_t index, size_t *offset, size_t *bytes) {
    if (index > (size_t)(strstr(function->name, "several") != 0)) return INVALID_VALUE;
    return *offset = 16 * index, *bytes = 16, 0;
}

struct attribute { u32 id; char pad[4]; union { char bytes[64]; u32 cluster[3]; } value; };

u32 cuLaunchKernelEx(const struct launch *launch, struct function *function, void **arguments, void **extra) {
    u32 cluster = 1;
    if (extra || !function) return INVALID_VALUE;
    if (launch->shared > (u32)function->most_shared) return INVALID_VALUE;
    for (u32 i = 0; i < launch->count; i++) {
        const struct attribute *attribute = (const struct attribute *)launch->attributes + i;
        if (attribute->id == 6 && attribute->value.cluster[0] == 1) {
            cluster += 100;
            continue;
        }
        if (attribute->id != 4 || attribute->value.cluster[1] != 1 || attribute->value.cluster[2] != 1) return INVALID_VALUE;
        cluster += attribute->value.cluster[0] - 1;
    }
    u32 code = (u32)setting("FAKE_LAUNCH", 0);
    if (code) return code;
    struct work work = {.kind = KERNEL, .geometry = {launch->grid[0], launch->grid[1], launch->grid[2], launch->block[0], launch->block[1], launch->block[2], launch->shared, cluster}};
    memcpy(&work.arguments, arguments[0], 16);
    return start(launch->stream, work);
}
u32 cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
    return *blocks = function && threads == 128 && shared == 1024 ? 5 : 0, 0;
}
u32 cuOccupancyMaxActiveClusters(int *clusters, void *function, const struct launch *launch) {
    return *clusters = function && launch->count == 1 && !launch->shared ? 66 : 0, 0;
}

// Says in the map what it was told.
u32 cuTensorMapEncodeTiled(u64 *map, u32 type, u32 rank, void *address, const u64 *dims, const u64 *strides, const u32 *tile, const u32 *steps, u32 interleave, u32 swizzle, u32 promotion, u32 outside) {
    if ((uintptr_t)address % 16 || interleave || outside || promotion != 3) return INVALID_VALUE;
    map[0] = type, map[1] = rank, map[2] = (uintptr_t)address, map[3] = swizzle;
    for (u32 i = 0; i < rank; i++) {
        if (steps[i] != 1 || tile[i] > 256 || (i && strides[i - 1] % 16)) return INVALID_VALUE;
        map[4 + i] = dims[i];
        map[10 + i] = tile[i] + (i ? strides[i - 1] << 16 : 0);
    }
    return 0;
}

u32 cuGetErrorName(u32 code, const char **text) {
    switch (code) {
    case OUT_OF_MEMORY: return *text = "CUDA_ERROR_OUT_OF_MEMORY", 0;
    case NO_BINARY: return *text = "CUDA_ERROR_NO_BINARY_FOR_GPU", 0;
    case NOT_FOUND: return *text = "CUDA_ERROR_NOT_FOUND", 0;
    case 700: return *text = "CUDA_ERROR_ILLEGAL_ADDRESS", 0;
    case 803: return *text = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 0;
    default: return *text = 0, INVALID_VALUE;
    }
}
u32 cuGetErrorString(u32 code, const char **text) {
    u32 unknown = cuGetErrorName(code, text);
    return unknown ? unknown : (*text = "words of the driver", 0);
}
