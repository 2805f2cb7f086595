#include "comm_cases.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace troupe::testing_ranks {

namespace {

bool all_dtypes = true;

void put(DType dtype, void* data, std::size_t i, double value) {
  const auto as = [&]<class T>(T v) { static_cast<T*>(data)[i] = v; };
  switch (dtype) {
    case DType::F64: return as(value);
    case DType::F32: return as(static_cast<float>(value));
    case DType::F16: return as(static_cast<_Float16>(value));
    case DType::BF16: return as(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16));
    case DType::I64: return as(static_cast<std::int64_t>(value));
    case DType::I32: return as(static_cast<std::int32_t>(value));
    case DType::I16: return as(static_cast<std::int16_t>(value));
    case DType::I8: return as(static_cast<std::int8_t>(value));
    case DType::U8:
    case DType::Bool: return as(static_cast<std::uint8_t>(value));
  }
}

double get(DType dtype, const void* data, std::size_t i) {
  const auto as = [&]<class T>(T) { return static_cast<double>(static_cast<const T*>(data)[i]); };
  switch (dtype) {
    case DType::F64: return as(double{});
    case DType::F32: return as(float{});
    case DType::F16: return as(_Float16{});
    case DType::BF16: return std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(data)[i]) << 16);
    case DType::I64: return as(std::int64_t{});
    case DType::I32: return as(std::int32_t{});
    case DType::I16: return as(std::int16_t{});
    case DType::I8: return as(std::int8_t{});
    case DType::U8:
    case DType::Bool: return as(std::uint8_t{});
  }
  return 0;
}

/// Small whole numbers: every dtype holds them and their sums exactly (bf16 up to 256, i8 up to 127).
double value(DType dtype, int rank, std::size_t i) {
  const auto n = static_cast<int>(i % 13);
  return dtype == DType::Bool ? static_cast<double>((n + rank) % 3 == 0) : static_cast<double>(n + 3 * rank + 1);
}

double reduced(DType dtype, ReduceOp op, int ranks, std::size_t i) {
  double sum = 0, high = value(dtype, 0, i), low = high;
  for (int r = 0; r < ranks; ++r) {
    const auto v = value(dtype, r, i);
    sum += v;
    high = std::max(high, v);
    low = std::min(low, v);
  }
  if (dtype == DType::Bool && op == ReduceOp::Sum) return high;
  return op == ReduceOp::Sum ? sum : op == ReduceOp::Mean ? sum / ranks : op == ReduceOp::Max ? high : low;
}

/// Memory of the communicator, or of the heap.
struct Memory {
  std::shared_ptr<void> owner;
  Memory(Communicator& group, std::size_t bytes, bool own) {
    if (own) owner = group.allocate(bytes);
    else owner = {std::malloc(bytes + 1), std::free};
  }
  [[nodiscard]] void* data() const { return owner.get(); }
};

bool is_float(DType d) { return d == DType::F64 || d == DType::F32 || d == DType::F16 || d == DType::BF16; }
bool close(DType dtype, double got, double wanted) {
  const double tolerance = dtype == DType::BF16 ? 4e-3 : dtype == DType::F16 ? 5e-4 : 1e-7;
  return std::abs(got - wanted) <= tolerance * std::max(1.0, std::abs(wanted));
}

struct Shape {
  Communicator& group;
  DType dtype;
  std::size_t n;
  bool own;
  [[nodiscard]] std::size_t ranks() const { return static_cast<std::size_t>(group.size()); }
  [[nodiscard]] std::size_t bytes() const { return n * size_of(dtype); }
  [[nodiscard]] std::string text() const { return std::string{name(dtype)} + " n=" + std::to_string(n) + (own ? " own" : " heap"); }
};

void check_reductions(const Shape& s, ReduceOp op) {
  const auto rank = s.group.rank();
  Memory whole(s.group, s.bytes() * s.ranks(), s.own), part(s.group, s.bytes(), s.own);
  for (std::size_t i = 0; i < s.n; ++i) put(s.dtype, part.data(), i, value(s.dtype, rank, i));
  s.group.all_reduce({part.data(), s.bytes(), s.dtype}, op).wait().or_throw();
  for (std::size_t i = 0; i < s.n; ++i)
    TROUPE_CHECK(close(s.dtype, get(s.dtype, part.data(), i), reduced(s.dtype, op, s.group.size(), i)),
                 "all_reduce " + s.text() + " at " + std::to_string(i) + " got " + std::to_string(get(s.dtype, part.data(), i)));

  for (std::size_t i = 0; i < s.n * s.ranks(); ++i) put(s.dtype, whole.data(), i, value(s.dtype, rank, i));
  s.group.reduce_scatter({whole.data(), s.bytes() * s.ranks(), s.dtype}, {part.data(), s.bytes(), s.dtype}, op).wait().or_throw();
  for (std::size_t i = 0; i < s.n; ++i)
    TROUPE_CHECK(close(s.dtype, get(s.dtype, part.data(), i),
                       reduced(s.dtype, op, s.group.size(), i + s.n * static_cast<std::size_t>(rank))),
                 "reduce_scatter " + s.text() + " at " + std::to_string(i));
}

void check_copies(const Shape& s) {
  const auto rank = s.group.rank();
  Memory whole(s.group, s.bytes() * s.ranks(), s.own), part(s.group, s.bytes(), s.own);
  for (std::size_t i = 0; i < s.n; ++i) put(s.dtype, part.data(), i, value(s.dtype, rank, i));
  s.group.all_gather({part.data(), s.bytes(), s.dtype}, {whole.data(), s.bytes() * s.ranks(), s.dtype}).wait().or_throw();
  for (std::size_t i = 0; i < s.n * s.ranks(); ++i)
    TROUPE_CHECK(get(s.dtype, whole.data(), i) == value(s.dtype, static_cast<int>(i / s.n), i % s.n), "all_gather " + s.text());
  for (int root = 0; root < s.group.size(); ++root) {
    for (std::size_t i = 0; i < s.n; ++i) put(s.dtype, part.data(), i, value(s.dtype, rank, i));
    s.group.broadcast({part.data(), s.bytes(), s.dtype}, root).wait().or_throw();
    for (std::size_t i = 0; i < s.n; ++i)
      TROUPE_CHECK(get(s.dtype, part.data(), i) == value(s.dtype, root, i), "broadcast " + s.text() + " from " + std::to_string(root));
  }
}

void collectives(Communicator& group, const std::string& argument) {
  const auto n = static_cast<std::size_t>(std::stoull(argument));
  std::vector<DType> dtypes{DType::F32, DType::F64, DType::BF16, DType::F16, DType::I64, DType::I32, DType::U8, DType::Bool};
  if (all_dtypes) dtypes.insert(dtypes.end(), {DType::I16, DType::I8});
  for (const bool own : {true, false}) {
    for (const auto dtype : dtypes) {
      const Shape shape{group, dtype, n, own};
      for (const auto op : {ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min})
        if (op != ReduceOp::Mean || is_float(dtype)) check_reductions(shape, op);
      check_copies(shape);
    }
  }
  group.barrier().wait().or_throw();
}

void overlap(Communicator& group, const std::string&) {
  constexpr std::size_t kMany = 150;  // more than any ring holds
  std::vector<std::vector<float>> buffers(kMany);
  std::vector<Work> works;
  for (std::size_t k = 0; k < kMany; ++k) {
    buffers[k].assign(k % 3 == 0 ? 40'000 : 100 + k, static_cast<float>(k) + static_cast<float>(group.rank()));
    works.push_back(group.all_reduce({buffers[k].data(), buffers[k].size() * 4, DType::F32}, ReduceOp::Sum));
    (void)works[k / 2].poll();
  }
  const auto ranks = static_cast<float>(group.size());
  for (std::size_t k = kMany; k-- > 0;) {
    works[k].wait().or_throw();
    const auto wanted = static_cast<float>(k) * ranks + ranks * (ranks - 1) / 2;
    for (const auto v : buffers[k]) TROUPE_CHECK(v == wanted, std::to_string(k));
  }
}

void in_place(Communicator& group, const std::string&) {
  constexpr std::size_t n = 30'001;
  const auto rank = static_cast<std::size_t>(group.rank()), ranks = static_cast<std::size_t>(group.size());
  const auto memory = group.allocate(n * ranks * 4);
  auto* whole = static_cast<float*>(memory.get());
  for (std::size_t i = 0; i < n * ranks; ++i) whole[i] = static_cast<float>(i % 101 + rank);
  const Buffer all{whole, n * ranks * 4, DType::F32}, part{whole + rank * n, n * 4, DType::F32};
  group.reduce_scatter(all, part, ReduceOp::Sum).wait().or_throw();
  group.all_gather(part, all).wait().or_throw();
  for (std::size_t i = 0; i < n * ranks; ++i)
    TROUPE_CHECK(whole[i] == static_cast<float>(ranks * (i % 101) + ranks * (ranks - 1) / 2), std::to_string(i));
}

/// The bits of a sum depend on the order: every rank must have taken the same, rank 0 first.
void bitwise(Communicator& group, const std::string&) {
  constexpr std::size_t n = 70'003;
  const auto at = [](int rank, std::size_t i) { return std::sin(static_cast<float>(i * 7 + 1) * static_cast<float>(rank + 1)) * std::exp(static_cast<float>(rank)); };
  std::vector<float> mine(n);
  for (std::size_t i = 0; i < n; ++i) mine[i] = at(group.rank(), i);
  group.all_reduce({mine.data(), n * 4, DType::F32}, ReduceOp::Sum).wait().or_throw();
  for (std::size_t i = 0; i < n; ++i) {
    float sum = at(0, i);
    for (int r = 1; r < group.size(); ++r) sum += at(r, i);
    TROUPE_CHECK(std::bit_cast<std::uint32_t>(sum) == std::bit_cast<std::uint32_t>(mine[i]), std::to_string(i));
  }
}

/// Sums that 16 bits cannot hold: 257 is no bf16, 2049 no f16.
void widened(Communicator& group, const std::string&) {
  const auto ranks = static_cast<std::size_t>(group.size());
  for (const std::size_t n : {std::size_t{1027}, std::size_t{40'003}}) {  // one chunk, and many
    for (const auto dtype : {DType::BF16, DType::F16}) {
      const bool own = n == 1027;
      const double big = dtype == DType::BF16 ? 256 : 2048;
      Memory whole(group, n * ranks * 2, own), part(group, n * 4, own);
      for (std::size_t i = 0; i < n * ranks; ++i) put(dtype, whole.data(), i, group.rank() == 0 ? big : static_cast<double>(1 + i % 2));
      group.reduce_scatter({whole.data(), n * ranks * 2, dtype}, {part.data(), n * 4, DType::F32}, ReduceOp::Sum).wait().or_throw();
      for (std::size_t i = 0; i < n; ++i) {
        const auto at = i + n * static_cast<std::size_t>(group.rank());
        const auto wanted = big + static_cast<double>((ranks - 1) * (1 + at % 2));
        const auto got = get(DType::F32, part.data(), i);
        TROUPE_CHECK(got == wanted, std::to_string(at) + " got " + std::to_string(got));
      }
    }
  }
}

/// Parts of every kind: even, empty at either end, everything to one rank.
void owners(Communicator& group, const std::string&) {
  const auto ranks = static_cast<std::size_t>(group.size()), rank = static_cast<std::size_t>(group.rank());
  for (const std::size_t n : {std::size_t{0}, std::size_t{5}, std::size_t{1027}, std::size_t{100'003}}) {
    std::vector<std::vector<std::size_t>> ranges(3, std::vector<std::size_t>(ranks + 1));
    for (std::size_t r = 0; r <= ranks; ++r) {
      ranges[0][r] = r * n / ranks;
      ranges[1][r] = r == ranks ? n : std::min(n, r * r * 7 / 2);
      ranges[2][r] = r == ranks ? n : 0;  // the last rank owns all
    }
    for (const auto& begins : ranges) {
      const auto mine = begins[rank + 1] - begins[rank];
      for (const bool own : {true, false}) {
        for (const auto dtype : {DType::F32, DType::BF16, DType::I64}) {
          const Shape s{group, dtype, n, own};
          Memory whole(group, s.bytes(), own), part(group, mine * 8, own);
          const auto fill = [&] {
            for (std::size_t i = 0; i < n; ++i) put(dtype, whole.data(), i, value(dtype, group.rank(), i));
          };
          const auto verify = [&](DType type, const void* data) {
            for (std::size_t i = 0; i < mine; ++i)
              TROUPE_CHECK(get(type, data, i) == reduced(dtype, ReduceOp::Sum, group.size(), begins[rank] + i), s.text() + std::to_string(i));
          };
          fill();
          const ConstBuffer all{whole.data(), s.bytes(), dtype};
          group.reduce_to_owners(all, begins, {part.data(), mine * size_of(dtype), dtype}, ReduceOp::Sum).wait().or_throw();
          verify(dtype, part.data());
          auto* inside = static_cast<std::byte*>(whole.data()) + begins[rank] * size_of(dtype);
          group.reduce_to_owners(all, begins, {inside, mine * size_of(dtype), dtype}, ReduceOp::Sum).wait().or_throw();
          verify(dtype, inside);
          if (dtype != DType::BF16 || group.name() == "nccl") continue;
          fill();
          group.reduce_to_owners(all, begins, {part.data(), mine * 4, DType::F32}, ReduceOp::Sum).wait().or_throw();
          verify(DType::F32, part.data());
        }
      }
    }
  }
}

/// The sum of the ranks' `mine` in `group`.
float sum_of(Communicator& group, float mine) {
  const auto memory = group.allocate(4 * 5003);
  auto* values = static_cast<float*>(memory.get());
  for (int i = 0; i < 5003; ++i) values[i] = mine;
  group.all_reduce({values, 4 * 5003, DType::F32}, ReduceOp::Sum).wait().or_throw();
  for (int i = 0; i < 5003; ++i) TROUPE_CHECK(values[i] == values[0]);
  return values[0];
}

void split(Communicator& group, const std::string& rounds) {
  const int rank = group.rank(), size = group.size();
  float same = 0, everyone = 0;
  int peers = 0;
  for (int r = 0; r < size; ++r) {
    everyone += static_cast<float>(r);
    if (r % 2 != rank % 2) continue;
    same += static_cast<float>(r);
    ++peers;
  }
  for (int round = 0; round < (rounds.empty() ? 3 : std::stoi(rounds)); ++round) {  // groups come and go
    const auto part = group.split(rank % 2);
    TROUPE_CHECK(part->size() == peers && part->rank() == rank / 2, std::to_string(part->rank()) + " of " + std::to_string(part->size()));
    TROUPE_CHECK(part->name() == group.name());
    const auto alone = part->split(part->rank());
    TROUPE_CHECK(alone->size() == 1 && alone->rank() == 0);
    for (int turn = 0; turn < 30; ++turn) {
      const auto mine = static_cast<float>(rank);
      if (turn % 3 == 0) TROUPE_CHECK(sum_of(group, mine) == everyone);
      TROUPE_CHECK(sum_of(*part, mine) == same);
      TROUPE_CHECK(sum_of(*alone, mine) == mine);
    }
    // A collective of each under way at once, of memory that the other allocated, finished in the other order.
    const auto ours = group.allocate(40'000), theirs = part->allocate(40'000);
    auto* a = static_cast<float*>(ours.get());
    auto* b = static_cast<float*>(theirs.get());
    for (int i = 0; i < 10'000; ++i) a[i] = b[i] = static_cast<float>(rank);
    auto outer = group.all_reduce({b, 40'000, DType::F32}, ReduceOp::Sum);
    auto inner = part->all_reduce({a, 40'000, DType::F32}, ReduceOp::Sum);
    inner.wait().or_throw();
    outer.wait().or_throw();
    for (int i = 0; i < 10'000; ++i) TROUPE_CHECK(a[i] == same && b[i] == everyone, std::to_string(i));
    const auto whole = group.split(7);
    TROUPE_CHECK(sum_of(*whole, static_cast<float>(rank)) == everyone);
  }
  bool refused = false;
  try {
    (void)group.split(-1);
  } catch (const Failure& failure) {
    refused = failure.code() == Errc::InvalidArgument;
  }
  TROUPE_CHECK(refused);
  group.barrier().wait().or_throw();
}

void traffic(Communicator& group, const std::string&) {
  const auto ranks = static_cast<std::uint64_t>(group.size());
  constexpr std::size_t n = 1200;
  std::vector<Traffic> before;  // a wrapper may have split its group
  for (std::size_t c = 0; c < kNumCalls; ++c) before.push_back(group.recorder().traffic(static_cast<Call>(c)));
  const auto sum_before = group.traffic();
  Memory whole(group, n * ranks * 4, true), part(group, n * 4, true);
  std::memset(whole.data(), 0, n * ranks * 4);
  std::memset(part.data(), 0, n * 4);
  const Buffer all{whole.data(), n * ranks * 4, DType::F32}, one{part.data(), n * 4, DType::F32};
  struct Wanted {
    Call call;
    std::uint64_t bytes;
  };
  const auto check = [&](Wanted wanted) {
    const auto got = group.recorder().traffic(wanted.call), old = before[static_cast<std::size_t>(wanted.call)];
    TROUPE_CHECK(got.calls == old.calls + 1 && got.sent_bytes == old.sent_bytes + wanted.bytes,
                 std::string{name(wanted.call)} + " " + std::to_string(got.sent_bytes));
  };
  group.all_reduce(one, ReduceOp::Sum).wait().or_throw();
  check({Call::AllReduce, 2 * 4 * n * (ranks - 1) / ranks});
  group.reduce_scatter(all, one, ReduceOp::Sum).wait().or_throw();
  check({Call::ReduceScatter, 4 * n * (ranks - 1)});  // of n * N elements
  group.all_gather(one, all).wait().or_throw();
  check({Call::AllGather, 4 * n * (ranks - 1)});
  group.broadcast(one, 0).wait().or_throw();
  check({Call::Broadcast, 4 * n * (ranks - 1) / ranks});
  group.barrier().wait().or_throw();
  check({Call::Barrier, 0});
  const auto sum = group.traffic();
  TROUPE_CHECK(sum.calls == sum_before.calls + 5);
  TROUPE_CHECK(sum.sent_bytes == sum_before.sent_bytes + 3 * 4 * n * (ranks - 1) / ranks + 2 * 4 * n * (ranks - 1));
}

void record(Communicator& group, const std::string& argument) {
  const std::size_t many = std::stoull(argument);
  Memory memory(group, 4096, true);
  std::memset(memory.data(), 0, 4096);
  group.set_label("loss");
  group.all_reduce({memory.data(), 40, DType::F32}, ReduceOp::Max).wait().or_throw();
  group.set_label("");
  for (std::size_t i = 0; i < many; ++i) group.broadcast({memory.data(), 8, DType::F64}, 0).wait().or_throw();
  const auto before = std::chrono::steady_clock::now();
  group.set_label("encoder.layers.0");
  group.all_reduce({memory.data(), 24, DType::I64}, ReduceOp::Sum).wait().or_throw();
  const auto entries = group.recorder().entries();
  TROUPE_CHECK(entries.size() == std::min(FlightRecorder::kCapacity, many + 2), std::to_string(entries.size()));
  TROUPE_CHECK(entries.front().sequence == many + 3 - entries.size());
  TROUPE_CHECK(entries.front().label == (entries.front().sequence == 1 ? "loss" : ""));
  const auto& last = entries.back();
  TROUPE_CHECK(last.sequence == many + 2 && last.label == "encoder.layers.0" && last.outcome == Errc::Ok && !last.under_way);
  TROUPE_CHECK((last.collective == Collective{Call::AllReduce, ReduceOp::Sum, DType::I64, DType::I64, 0, 24}));
  TROUPE_CHECK(last.posted >= before && last.finished >= last.posted && last.finished <= std::chrono::steady_clock::now());
}

template <class F>
bool throws(F&& call) {
  try {
    (void)call();
    return false;
  } catch (const Failure& failure) {
    return failure.code() == Errc::InvalidArgument;
  }
}

void bad_arguments(Communicator& group, const std::string&) {
  std::vector<std::int32_t> v(64);
  const auto ranks = static_cast<std::size_t>(group.size());
  TROUPE_CHECK(throws([&] { return group.all_reduce({v.data(), 7, DType::I32}, ReduceOp::Sum); }));
  TROUPE_CHECK(throws([&] { return group.all_reduce({v.data(), 8, DType::I32}, ReduceOp::Mean); }));
  TROUPE_CHECK(throws([&] { return group.all_reduce({nullptr, 8, DType::I32}, ReduceOp::Sum); }));
  TROUPE_CHECK(throws([&] { return group.broadcast({v.data(), 8, DType::I32}, group.size()); }));
  TROUPE_CHECK(throws([&] { return group.all_gather(Buffer{v.data(), 8, DType::I32}, Buffer{v.data(), 8 * ranks + 4, DType::I32}); }));
  TROUPE_CHECK(throws([&] { return group.reduce_scatter(Buffer{v.data(), 8 * ranks, DType::I32}, Buffer{v.data(), 8, DType::F32}, ReduceOp::Sum); }));
  const auto elements = static_cast<std::size_t>(16);
  std::vector<std::size_t> begins(ranks + 1, elements);
  begins[0] = 0;
  const Buffer all{v.data(), elements * 4, DType::I32}, mine{v.data(), group.rank() == 0 ? elements * 4 : 0, DType::I32};
  const Buffer wrong{v.data(), 4, DType::I32};
  TROUPE_CHECK(throws([&] { return group.reduce_to_owners(all, begins, wrong, ReduceOp::Sum); }));
  TROUPE_CHECK(throws([&] { return group.reduce_to_owners(all, std::span{begins}.first(ranks), mine, ReduceOp::Sum); }));
  begins[ranks] = elements - 1;
  TROUPE_CHECK(throws([&] { return group.reduce_to_owners(all, begins, mine, ReduceOp::Sum); }));
  group.barrier().wait().or_throw();  // nothing was posted
}

}  // namespace

void register_contract(bool whole_dtypes) {
  all_dtypes = whole_dtypes;
  auto& bodies = registry().bodies;
  bodies["collectives"] = collectives;
  bodies["overlap"] = overlap;
  bodies["in_place"] = in_place;
  bodies["bitwise"] = bitwise;
  bodies["traffic"] = traffic;
  bodies["record"] = record;
  bodies["owners"] = owners;
  bodies["widened"] = widened;
  bodies["split"] = split;
  bodies["bad_arguments"] = bad_arguments;
  register_faults();
}

}  // namespace troupe::testing_ranks
