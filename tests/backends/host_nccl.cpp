#include "host_nccl.hpp"

#include "../../backends/comm/kernels.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace troupe::host_nccl {

namespace {

std::atomic<int> calls_until_failure{-1};
std::atomic<int> live{0};
std::atomic<unsigned> max_delay_us{0};

/// A stream: a thread that runs what was queued, in order.
class Stream {
 public:
  Stream() : thread_([this] { loop(); }) { ++live; }
  ~Stream() {
    push({});
    thread_.join();
    --live;
  }
  void push(std::function<void()> task) {
    {
      const std::lock_guard lock{mutex_};
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void loop() {
    for (;;) {
      std::unique_lock lock{mutex_};
      changed_.wait(lock, [this] { return !tasks_.empty(); });
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      if (!task) return;
      if (const auto longest = max_delay_us.load(); longest > 0) std::this_thread::sleep_for(std::chrono::microseconds{random_() % longest});
      task();
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::minstd_rand random_{static_cast<unsigned>(live.load()) + 1};
  std::thread thread_;
};

struct Event {
  std::shared_ptr<std::atomic<bool>> passed = std::make_shared<std::atomic<bool>>(true);
  Event() { ++live; }
  ~Event() { --live; }
};

/// What one rank brings to a collective.
struct Part {
  const void* input = nullptr;
  void* output = nullptr;
};

/// Ranks that share a unique id. Collectives meet by number; the last to come does the work for all.
struct Group {
  struct Meeting {
    std::vector<Part> parts;
    int come = 0;
    int left = 0;
    bool done = false;
  };
  explicit Group(int n) : size(n) {}
  int size;
  int joined = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint64_t, Meeting> meetings;
  /// Ranks that split, by the number of the split and their color; the new group exists once all have come.
  struct Split {
    std::map<int, std::vector<int>> ranks;
    std::map<int, std::shared_ptr<Group>> groups;
    int come = 0;
  };
  std::map<std::uint64_t, std::shared_ptr<Split>> splits;

  /// False when `aborted` came first.
  bool meet(std::uint64_t number, int rank, Part part, const std::atomic<bool>& aborted,
            const std::function<void(const std::vector<Part>&)>& work) {
    std::unique_lock lock{mutex};
    auto& meeting = meetings[number];
    meeting.parts.resize(static_cast<std::size_t>(size));
    meeting.parts[static_cast<std::size_t>(rank)] = part;
    if (++meeting.come == size) {
      work(meeting.parts);
      meeting.done = true;
      changed.notify_all();
    }
    while (!meeting.done && !aborted) changed.wait_for(lock, std::chrono::milliseconds(1));
    const bool done = meeting.done;
    if (++meeting.left == size) meetings.erase(number);
    return done;
  }
};

struct Comm {
  std::shared_ptr<Group> group;
  int rank = 0;
  std::uint64_t sequence = 0;
  std::uint64_t num_splits = 0;
  std::shared_ptr<Group::Split> split;  ///< this one comes from
  std::shared_ptr<Group> parent;
  int color = 0;
  int parent_rank = 0;
  std::shared_ptr<std::atomic<bool>> aborted = std::make_shared<std::atomic<bool>>(false);
  Comm() { ++live; }
  ~Comm() { --live; }
};

std::mutex groups_mutex;
std::map<std::string, std::weak_ptr<Group>> groups;

Stream* stream_of(cudaStream_t stream) { return reinterpret_cast<Stream*>(stream); }
/// Queues it. The default stream of this stand-in is the calling thread.
void on(cudaStream_t stream, std::function<void()> task) {
  if (stream) {
    stream_of(stream)->push(std::move(task));
  } else {
    task();
  }
}
Event* event_of(cudaEvent_t event) { return reinterpret_cast<Event*>(event); }
Comm* comm_of(ncclComm_t comm) { return reinterpret_cast<Comm*>(comm); }

std::size_t bytes_of(ncclDataType_t type) {
  return type == ncclFloat64 || type == ncclInt64 ? 8 : type == ncclFloat32 || type == ncclInt32 ? 4 : type == ncclFloat16 || type == ncclBfloat16 ? 2 : 1;
}

DType dtype_of(ncclDataType_t type) {
  switch (type) {
    case ncclFloat64: return DType::F64;
    case ncclFloat32: return DType::F32;
    case ncclFloat16: return DType::F16;
    case ncclBfloat16: return DType::BF16;
    case ncclInt64: return DType::I64;
    case ncclInt32: return DType::I32;
    case ncclInt8: return DType::I8;
    default: return DType::U8;
  }
}

void reduce(const std::vector<Part>& parts, std::size_t offset, std::size_t count, ncclDataType_t type, ncclRedOp_t op, void* out) {
  std::vector<std::byte*> sources;
  for (const auto& part : parts)
    sources.push_back(static_cast<std::byte*>(const_cast<void*>(part.input)) + offset * bytes_of(type));
  auto* target = static_cast<std::byte*>(out);
  const auto how = op == ncclMax ? ReduceOp::Max : op == ncclMin ? ReduceOp::Min : op == ncclAvg ? ReduceOp::Mean : ReduceOp::Sum;
  detail::reduce({dtype_of(type), dtype_of(type), how}, sources, {&target, 1}, count);
}

/// Queues one collective of `comm` on `stream`.
ncclResult_t enqueue(ncclComm_t handle, cudaStream_t stream, Part part, std::function<void(const std::vector<Part>&)> work) {
  if (const int left = calls_until_failure.load(); left >= 0 && calls_until_failure.fetch_sub(1) == 0) return ncclInternalError;
  auto* comm = comm_of(handle);
  const auto number = comm->sequence++;
  stream_of(stream)->push([group = comm->group, rank = comm->rank, aborted = comm->aborted, number, part, work = std::move(work)] {
    (void)group->meet(number, rank, part, *aborted, work);
  });
  return ncclSuccess;
}

ncclResult_t all_reduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return enqueue(comm, stream, {in, out}, [=](const std::vector<Part>& parts) {
    std::vector<char> sum(count * bytes_of(type));
    reduce(parts, 0, count, type, op, sum.data());
    for (const auto& part : parts) {
      if (!sum.empty()) std::memcpy(part.output, sum.data(), sum.size());
    }
  });
}

ncclResult_t reduce_scatter(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return enqueue(comm, stream, {in, out}, [=](const std::vector<Part>& parts) {
    std::vector<std::vector<char>> sums(parts.size(), std::vector<char>(count * bytes_of(type)));
    for (std::size_t r = 0; r < parts.size(); ++r) reduce(parts, r * count, count, type, op, sums[r].data());
    for (std::size_t r = 0; r < parts.size(); ++r) {
      if (count) std::memcpy(parts[r].output, sums[r].data(), sums[r].size());
    }
  });
}

ncclResult_t reduce_to(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return enqueue(comm, stream, {in, out}, [=](const std::vector<Part>& parts) {
    std::vector<char> sum(count * bytes_of(type));
    reduce(parts, 0, count, type, op, sum.data());
    if (count) std::memcpy(parts[static_cast<std::size_t>(root)].output, sum.data(), sum.size());
  });
}

ncclResult_t all_gather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
  return enqueue(comm, stream, {in, out}, [=](const std::vector<Part>& parts) {
    const auto bytes = count * bytes_of(type);
    for (const auto& to : parts) {
      for (std::size_t r = 0; r < parts.size(); ++r) {
        if (bytes) std::memmove(static_cast<char*>(to.output) + r * bytes, parts[r].input, bytes);
      }
    }
  });
}

ncclResult_t broadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream) {
  return enqueue(comm, stream, {in, out}, [=](const std::vector<Part>& parts) {
    for (const auto& to : parts) {
      if (count) std::memmove(to.output, parts[static_cast<std::size_t>(root)].input, count * bytes_of(type));
    }
  });
}

ncclResult_t init_rank(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t*) {
  auto* comm = new Comm;
  comm->rank = rank;
  {
    const std::lock_guard lock{groups_mutex};
    auto& entry = groups[std::string(id.internal, sizeof(id.internal))];
    comm->group = entry.lock();
    if (!comm->group) entry = comm->group = std::make_shared<Group>(size);
  }
  {
    const std::lock_guard lock{comm->group->mutex};
    ++comm->group->joined;
  }
  *out = reinterpret_cast<ncclComm_t>(comm);
  return ncclInProgress;
}

ncclResult_t split(ncclComm_t handle, int color, int, ncclComm_t* out, ncclConfig_t*) {
  auto* from = comm_of(handle);
  auto* comm = new Comm;
  const std::lock_guard lock{from->group->mutex};
  auto& split = from->group->splits[from->num_splits++];
  if (!split) split = std::make_shared<Group::Split>();
  split->ranks[color].push_back(from->rank);
  ++split->come;
  comm->split = split;
  comm->parent = from->group;
  comm->color = color;
  comm->parent_rank = from->rank;
  *out = reinterpret_cast<ncclComm_t>(comm);
  return ncclInProgress;
}

/// Makes a split communicator whole once all ranks have come.
bool complete(Comm& comm) {
  if (comm.group) return true;
  const std::lock_guard lock{comm.parent->mutex};
  if (comm.split->come < comm.parent->size) return false;
  auto ranks = comm.split->ranks[comm.color];
  std::sort(ranks.begin(), ranks.end());
  comm.rank = static_cast<int>(std::find(ranks.begin(), ranks.end(), comm.parent_rank) - ranks.begin());
  auto& group = comm.split->groups[comm.color];
  if (!group) {
    group = std::make_shared<Group>(static_cast<int>(ranks.size()));
    group->joined = group->size;
  }
  comm.group = group;
  return true;
}

ncclResult_t async_error(ncclComm_t handle, ncclResult_t* out) {
  auto* comm = comm_of(handle);
  if (!complete(*comm)) return *out = ncclInProgress, ncclSuccess;
  const std::lock_guard lock{comm->group->mutex};
  *out = comm->group->joined < comm->group->size ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t abort_comm(ncclComm_t handle) {
  *comm_of(handle)->aborted = true;
  delete comm_of(handle);
  return ncclSuccess;
}

ncclResult_t unique_id(ncclUniqueId* id) {
  static std::atomic<std::uint64_t> next{1};
  std::memset(id->internal, 0, sizeof(id->internal));
  const auto number = next++;
  std::memcpy(id->internal, &number, sizeof(number));
  return ncclSuccess;
}

cudaError_t event_record(cudaEvent_t event, cudaStream_t stream) {
  auto passed = event_of(event)->passed = std::make_shared<std::atomic<bool>>(false);
  on(stream, [passed] { *passed = true; });
  return cudaSuccess;
}

}  // namespace

NcclTable nccl() {
  return {[](int* version) { return *version = 0, ncclSuccess; },
          &unique_id,
          &init_rank,
          &split,
          [](ncclComm_t comm, int* count) { return *count = comm_of(comm)->group->size, ncclSuccess; },
          [](ncclComm_t comm, int* rank) { return *rank = comm_of(comm)->rank, ncclSuccess; },
          &async_error,
          &abort_comm,
          [](ncclComm_t) { return ncclSuccess; },
          [](ncclComm_t comm) { return delete comm_of(comm), ncclSuccess; },
          &all_reduce,
          &reduce_scatter,
          &reduce_to,
          [] { return ncclSuccess; },
          [] { return ncclSuccess; },
          &all_gather,
          &broadcast,
          [](ncclResult_t result) { return result == ncclInternalError ? "host stand-in: planted failure" : "host stand-in: error"; }};
}

GpuTable gpu() {
  return {[](int* count) { return *count = 1, cudaSuccess; },
          [](int) { return cudaSuccess; },
          [](cudaStream_t* stream, unsigned) { return *stream = reinterpret_cast<cudaStream_t>(new Stream), cudaSuccess; },
          [](cudaStream_t stream) { return delete stream_of(stream), cudaSuccess; },
          [](cudaStream_t stream, cudaEvent_t event, unsigned) {
            on(stream, [passed = event_of(event)->passed] {
              while (!*passed) std::this_thread::yield();
            });
            return cudaSuccess;
          },
          [](cudaEvent_t* event, unsigned) { return *event = reinterpret_cast<cudaEvent_t>(new Event), cudaSuccess; },
          &event_record,
          [](cudaEvent_t event) { return *event_of(event)->passed ? cudaSuccess : cudaErrorNotReady; },
          [](cudaEvent_t event) {
            while (!*event_of(event)->passed) std::this_thread::yield();
            return cudaSuccess;
          },
          [](cudaEvent_t event) { return delete event_of(event), cudaSuccess; },
          [](void** memory, size_t bytes) { return *memory = std::malloc(bytes), *memory ? cudaSuccess : cudaErrorMemoryAllocation; },
          [](void* memory) { return std::free(memory), cudaSuccess; },
          [](void** memory, size_t bytes) { return *memory = std::malloc(bytes), *memory ? cudaSuccess : cudaErrorMemoryAllocation; },
          [](void* memory) { return std::free(memory), cudaSuccess; },
          [](void* memory, int value, size_t bytes) { return std::memset(memory, value, bytes), cudaSuccess; },
          [](void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
            on(stream, [=] { std::memcpy(to, from, bytes); });
            return cudaSuccess;
          },
          [](void* memory, int value, size_t bytes, cudaStream_t stream) {
            on(stream, [=] { std::memset(memory, value, bytes); });
            return cudaSuccess;
          },
          [](cudaError_t) { return "host stand-in: CUDA error"; }};
}

void fail_at_call(int n) { calls_until_failure = n; }
int num_live() { return live; }
void delay_streams(std::chrono::microseconds longest) { max_delay_us = static_cast<unsigned>(longest.count()); }

}  // namespace troupe::host_nccl
