// The door from Rust: instances, the checks of a launch, and the host's threads that run its groups.
#include "async.hpp"
#include "copy.hpp"
#include "race.hpp"
#include "memory.hpp"
#include "scheduler.hpp"

#include <algorithm>
#include <cctype>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <exception>
#include <memory>
#include <thread>
#include <unordered_map>

// One address for each file of device code, listed by the build: what it mentions, the linker keeps.
extern "C" const void *const prime_emulator_units[];

namespace emulator {

namespace {

constexpr u64 MOST_BLOCKS_X = 0x7fffffff;
constexpr u64 MOST_BLOCKS_YZ = 65535;
constexpr size_t MOST_ARGUMENT_BYTES = 4096;
// One VC component a thread and the stacks bound how many threads may be resident together.
constexpr u64 MOST_RESIDENT_THREADS = 32768;

struct Registry {
    std::vector<Instance> instances;
    std::unordered_map<std::string, size_t> by_text;
    std::string twice;
};

Registry &registry() {
    static Registry the;
    return the;
}

// Blanks only between two words and after commas, so that spelling does not matter.
std::string canonical(const char *text, size_t length) {
    std::string result;
    bool blank = false;
    for (size_t i = 0; i < length; i++) {
        const char c = text[i];
        if (std::isspace(static_cast<unsigned char>(c))) {
            blank = true;
            continue;
        }
        const auto word = [](char x) { return std::isalnum(static_cast<unsigned char>(x)) || x == '_'; };
        if (!result.empty() && (result.back() == ',' || (blank && word(result.back()) && word(c)))) result += ' ';
        result += c;
        blank = false;
    }
    return result;
}

// All that a thread of the host keeps from launch to launch.
struct Context {
    Worker worker;
    Group group;
    std::vector<std::unique_ptr<SharedMemory>> shared;
    std::vector<CopyQueue> copies;
    AsyncUnit async;
    ClockPool clocks;
};

Context &context() {
    static thread_local Context the;
    return the;
}

// Runs groups until none is left.
void work(LaunchState &launch) {
    Context &own = context();
    const prime_launch &request = *launch.request;
    const u32 blocks = launch.blocks_of_a_group;
    const size_t threads = size_t(blocks) * request.block;
    if (!own.worker.stacks.reserve(threads)) {
        launch.fail("kernel `" + launch.instance + "`: the system lends no memory for the stacks of " + std::to_string(threads) + " threads");
        return;
    }
    while (own.shared.size() < blocks) own.shared.emplace_back(new SharedMemory);
    if (own.copies.size() < threads) own.copies.resize(threads);
    own.worker.launch = &launch;
    own.group.launch = &launch;
    own.group.async = &own.async;
    own.group.clocks = &own.clocks;
    own.group.blocks.resize(blocks);
    current_worker = &own.worker;
    while (!launch.failed.load()) {
        launch.running_groups++;
        const u64 number = launch.next_group++;
        if (number < launch.groups) {
            own.group.number = number;
            for (u32 rank = 0; rank < blocks; rank++) {
                own.shared[rank]->reset(request.shared_bytes, launch.races != nullptr);
                own.group.blocks[rank].shared = own.shared[rank].get();
            }
            for (CopyQueue &queue : own.copies) queue.clear();
            own.async.clear();
            if (launch.races) own.clocks.reset(clock_entries(blocks, request.block));
            run_group(own.worker, own.group, own.copies.data());
        }
        launch.running_groups--;
        if (number >= launch.groups) break;
    }
    own.async.clear();
    current_worker = nullptr;
}

// Threads that help with launches, started when first wanted and kept.
class Pool {
  public:
    // Never destroyed: its threads wait until the process ends.
    static Pool &the() {
        static Pool *pool = new Pool;
        return *pool;
    }

    void run(LaunchState &launch, u32 workers) {
        const u32 helpers = u32(std::min<u64>(workers, launch.groups)) - 1;
        if (helpers != 0) {
            std::lock_guard<std::mutex> guard(lock);
            for (; threads < helpers; threads++) std::thread([this] { serve(); }).detach();
            for (u32 i = 0; i < helpers; i++) wanted.push_back(&launch);
            bell.notify_all();
        }
        work(launch);
        if (helpers != 0) {
            std::unique_lock<std::mutex> guard(lock);
            wanted.erase(std::remove(wanted.begin(), wanted.end(), &launch), wanted.end());
            done.wait(guard, [&] { return std::find(served.begin(), served.end(), &launch) == served.end(); });
        }
    }

  private:
    void serve() {
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            bell.wait(guard, [this] { return !wanted.empty(); });
            LaunchState *launch = wanted.front();
            wanted.pop_front();
            served.push_back(launch);
            guard.unlock();
            work(*launch);
            guard.lock();
            served.erase(std::find(served.begin(), served.end(), launch));
            done.notify_all();
        }
    }

    std::mutex lock;
    std::condition_variable bell;
    std::condition_variable done;
    std::deque<LaunchState *> wanted;
    std::vector<LaunchState *> served;
    u32 threads = 0;
};

std::string joined(std::initializer_list<std::string> parts) {
    std::string text;
    for (const std::string &part : parts) text += part;
    return text;
}

// What is wrong with the numbers of a launch, or nothing.
std::string wrong_geometry(const prime_launch &request) {
    const auto number = [](u64 value) { return std::to_string(value); };
    if (request.grid[0] == 0 || request.grid[1] == 0 || request.grid[2] == 0) return "a grid has at least one block along each axis";
    if (request.grid[0] > MOST_BLOCKS_X || request.grid[1] > MOST_BLOCKS_YZ || request.grid[2] > MOST_BLOCKS_YZ) {
        return joined({"a grid of ", number(request.grid[0]), " x ", number(request.grid[1]), " x ", number(request.grid[2]),
                       " blocks: at most 2147483647 x 65535 x 65535 can be started"});
    }
    if (request.block == 0 || request.block > MOST_THREADS) return joined({"a block of ", number(request.block), " threads: it has 1 to 1024"});
    if (request.max_threads != 0 && request.block > request.max_threads) {
        return joined({"a block of ", number(request.block), " threads, and the kernel is written KERNEL(", number(request.max_threads), ")"});
    }
    const u32 limit = request.shared_limit ? request.shared_limit : DEFAULT_SHARED_LIMIT;
    if (request.shared_bytes > limit) {
        return joined({number(request.shared_bytes), " bytes of shared memory: a block has at most ", number(limit)});
    }
    if (request.cluster == 0 || request.cluster > MOST_CLUSTER) return joined({"a cluster of ", number(request.cluster), " blocks: it has 1 to 16"});
    if (request.grid[0] % request.cluster != 0) {
        return joined({"a grid of ", number(request.grid[0]), " blocks along its first axis in clusters of ", number(request.cluster),
                       ": the first must be a multiple of the second"});
    }
    if (request.argument_bytes > MOST_ARGUMENT_BYTES) return joined({number(request.argument_bytes), " bytes of arguments: at most 4096 can be passed"});
    return "";
}

std::vector<Buffer> buffers_of(const prime_launch &request) {
    std::vector<Buffer> buffers(request.buffer_count);
    for (size_t i = 0; i < buffers.size(); i++) {
        const prime_buffer &given = request.buffers[i];
        Buffer &buffer = buffers[i];
        buffer.start = given.start;
        buffer.rows = given.rows;
        buffer.row_bytes = given.row_bytes;
        buffer.row_stride = given.row_stride;
        buffer.span = given.rows == 0 ? 0 : (given.rows - 1) * given.row_stride + given.row_bytes;
        buffer.written = given.written;
        if (buffer.written != nullptr) buffer.runs.reset(new std::atomic<u8>[buffer.span / Buffer::RUN + 1]());
        buffer.writable = given.writable != 0;
        buffer.region = GlobalRaces::UNWATCHED;
        buffer.contiguous = given.rows <= 1 || given.row_stride == given.row_bytes;
    }
    return buffers;
}

std::string run(const prime_launch &request) {
    LaunchState launch;
    launch.request = &request;
    launch.instance = canonical(request.instance, request.instance_length);
    const std::string who = "kernel `" + launch.instance + "`: ";
    const Registry &known = registry();
    if (!known.twice.empty()) return "two files of device code list the instance `" + known.twice + "`; a kernel's name must be its own";
    const auto found = known.by_text.find(launch.instance);
    if (found == known.by_text.end()) return who + "no file of device code lists this instance with INSTANCE(...)";
    launch.kernel = &known.instances[found->second];
    if (launch.kernel->argument_bytes != request.argument_bytes) {
        return joined({who, "the launch passes ", std::to_string(request.argument_bytes), " bytes of arguments, and the kernel takes ",
                       std::to_string(launch.kernel->argument_bytes)});
    }
    const std::string wrong = wrong_geometry(request);
    if (!wrong.empty()) return who + wrong;
    const u64 blocks = u64(request.grid[0]) * request.grid[1] * request.grid[2];
    const bool cooperative = request.flags & PRIME_COOPERATIVE;
    const u64 resident = cooperative ? blocks : request.cluster;
    if (resident * request.block > MOST_RESIDENT_THREADS) {
        return joined({who, std::to_string(resident * request.block), " threads would have to be resident together; the emulated device holds ",
                       std::to_string(MOST_RESIDENT_THREADS)});
    }
    launch.blocks_of_a_group = u32(resident);
    launch.groups = blocks / resident;
    launch.early = request.flags & PRIME_EARLY;
    launch.check_uninitialised = request.flags & PRIME_CHECK_UNINITIALISED;
    launch.buffers = buffers_of(request);
    std::unique_ptr<GlobalRaces> races;
    Channels channels;
    if (request.flags & PRIME_CHECK_RACES) races.reset(new GlobalRaces(launch.buffers));
    launch.races = races.get();
    launch.channels = &channels;
    u32 workers = request.workers ? request.workers : std::thread::hardware_concurrency();
    Pool::the().run(launch, std::max(workers, 1u));
    return launch.message;
}

} // namespace

void Registration::add(const char *text, void (*run)(const void *, const void *), const void *function, size_t argument_bytes) {
    Registry &the = registry();
    const std::string name = canonical(text, std::strlen(text));
    if (!the.by_text.emplace(name, the.instances.size()).second) the.twice = name;
    the.instances.push_back(Instance{name, run, function, argument_bytes});
}

} // namespace emulator

extern "C" int prime_emulator_launch(const prime_launch *request, char *message, size_t message_size) {
    // The list is read so that it, and with it every file of device code, belongs to the program.
    const bool listed = prime_emulator_units[0] != nullptr || request->instance_length != 0;
    std::string text = "no file of device code belongs to this program";
    if (listed) {
        // Nothing but a lack of memory or of threads is thrown.
        try {
            text = emulator::run(*request);
        } catch (const std::exception &error) {
            text = std::string("the emulated device lacks what it needs of the system: ") + error.what();
        }
    }
    if (text.empty()) return 0;
    if (message_size != 0) std::snprintf(message, message_size, "%s", text.c_str());
    return 1;
}

extern "C" const char *prime_emulator_instance(size_t index) {
    const auto &instances = emulator::registry().instances;
    return index < instances.size() ? instances[index].text.c_str() : nullptr;
}

extern "C" size_t prime_emulator_argument_bytes(size_t index) {
    const auto &instances = emulator::registry().instances;
    return index < instances.size() ? instances[index].argument_bytes : 0;
}
