#include "seat.hpp"

#include "blame.hpp"
#include "kernels.hpp"

#include <troupe/black_box.hpp>

#include <algorithm>
#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace troupe::detail {

namespace {

constexpr std::size_t kMinChunk = std::size_t{32} << 10;
constexpr std::size_t kMaxChunk = std::size_t{1} << 20;
/// What a gather or broadcast writes on all ranks together and from which on it cannot be found in a cache afterwards.
constexpr std::size_t kPastCacheBytes = std::size_t{24} << 20;

void pause() noexcept {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

/// Bytes of a reduction's buffers that go to one rank, or (owner -1) to all.
struct Part {
  int owner;
  std::size_t begin, end;
};

Part part_of(const Request& request, int ranks, std::size_t at) {
  const auto bytes = request.bytes();
  if (request.call == Call::AllReduce) return {-1, 0, bytes};
  if (request.call == Call::ReduceScatter) {
    const auto part = bytes / static_cast<std::size_t>(ranks);
    return {static_cast<int>(at / part), at / part * part, (at / part + 1) * part};
  }
  const auto element = size_of(request.dtype());
  const auto next = std::upper_bound(request.begins.begin(), request.begins.end(), at / element);
  return {static_cast<int>(next - request.begins.begin()) - 1, *(next - 1) * element, *next * element};
}

}  // namespace

bool Operation::poll() { return finished_ || seat_->poll(*this); }

Outcome Operation::wait() {
  if (!finished_) {
    const auto seat = seat_;  // outlives the operation's own hold on it
    seat->wait(*this);
  }
  return outcome_;
}

Seat::Seat(std::shared_ptr<SharedState> state, int rank, std::shared_ptr<Arena> arena)
    : state_(std::move(state)),
      rank_(rank),
      arena_(std::move(arena)),
      timeout_(state_->header().timeout_ms),
      recorder_(arena_ ? "shared_memory" : "threads", rank, state_->members()) {
  // Waiting awake helps only while the rank that is waited for has a core of its own.
  spins_ = static_cast<unsigned>(state_->root().size()) <= std::thread::hardware_concurrency() ? 2000 : 20;
}

void Seat::leave() noexcept {
  state_->rank(rank_).left.store(1, std::memory_order_release);
  state_->header().num_left.fetch_add(1, std::memory_order_seq_cst);
  state_->announce();
}

Work Seat::post(const Request& request) {
  auto operation = std::make_shared<Operation>(shared_from_this(), request);
  if (!pending_.empty()) progress(Effort::Share);
  while (!pending_.empty() && sequence() + 1 - pending_.front()->sequence_ >= kSlots) wait(*std::shared_ptr{pending_.front()});
  if (state_->is_broken()) {
    operation->outcome_ = state_->failure();
    operation->finished_ = true;
    operation->seat_.reset();
    return Work{std::move(operation)};
  }
  const auto now = Clock::now();
  operation->sequence_ = recorder_.post(request.collective(), now);
  operation->deadline_ = now + timeout_;
  pending_.push_back(operation);
  start(*operation);
  return Work{std::move(operation)};
}

void Seat::lay_out(Operation& operation) const {
  const auto bytes = operation.request_.bytes();
  const auto ranks = static_cast<std::size_t>(state_->size());
  const auto wanted = (bytes / (4 * ranks) + 63) / 64 * 64;
  operation.chunk_bytes_ = std::clamp(wanted, kMinChunk, kMaxChunk);
  operation.num_chunks_ = static_cast<std::uint32_t>((bytes + operation.chunk_bytes_ - 1) / operation.chunk_bytes_);
}

std::uint64_t Seat::reachable_input(Operation& operation) {
  const auto& input = operation.request_.input;
  if (input.data == nullptr) return 0;
  if (const auto address = state_->address_of(input.data, input.bytes)) return *address;
  operation.input_copy_ = arena_->temporary(input.bytes);
  std::memcpy(operation.input_copy_.get(), input.data, input.bytes);
  return *state_->address_of(operation.input_copy_.get(), input.bytes);
}

std::uint64_t Seat::reachable_output(Operation& operation, std::uint64_t input) {
  const auto& request = operation.request_;
  const auto& output = request.output;
  if (output.data == nullptr) return 0;
  if (output.data == request.input.data && output.bytes == request.input.bytes) {  // in place: one copy serves both
    operation.output_copy_ = operation.input_copy_;
    return input;
  }
  if (const auto address = state_->address_of(output.data, output.bytes)) return *address;
  operation.output_copy_ = arena_->temporary(output.bytes);
  return *state_->address_of(operation.output_copy_.get(), output.bytes);
}

void Seat::start(Operation& operation) {
  const auto& request = operation.request_;
  lay_out(operation);
  auto& record = state_->record(operation.sequence_, rank_);
  record.input = reachable_input(operation);
  record.output = reachable_output(operation, record.input);
  state_->say(rank_, {operation.sequence_, request.collective(), recorder_.label()});

  auto& slot = state_->slot(operation.sequence_);
  const auto ranks = static_cast<std::uint64_t>(state_->size());
  const auto target = ((operation.sequence_ - 1) / kSlots + 1) * ranks;
  if (slot.posted.fetch_add(1, std::memory_order_acq_rel) + 1 != target) return;
  // The last to come.
  if (!agree(*state_, operation.sequence_)) return;
  slot.claimed.store(0, std::memory_order_relaxed);
  slot.done.store(0, std::memory_order_relaxed);
  slot.ready.store(operation.sequence_, std::memory_order_release);
  if (operation.num_chunks_ > 1) {
    state_->announce();
    return;
  }
  if (operation.num_chunks_ == 1) {
    take_chunks(operation, 1);
  } else {
    slot.finished.store(operation.sequence_, std::memory_order_release);
    state_->announce();
  }
}

bool Seat::poll(Operation& operation) {
  const auto keep = shared_from_this();
  progress(Effort::All);
  return operation.finished_;
}

void Seat::wait(Operation& operation) {
  auto& news = state_->header().news;
  std::optional<WaitMark> mark;
  while (!operation.finished_) {
    const auto seen = news.load(std::memory_order_seq_cst);
    progress(Effort::All);
    if (operation.finished_) return;
    if (!mark) mark.emplace(WaitingIn::Collective);
    bool changed = false;
    for (int spin = 0; spin < spins_ && !changed; ++spin) {
      pause();
      changed = news.load(std::memory_order_acquire) != seen;
    }
    if (changed) continue;
    const auto& first = *pending_.front();
    end_when_nobody_comes(*state_, rank_, {first.sequence_, first.deadline_, timeout_});
    state_->sleep(seen, first.deadline_);
  }
}

void Seat::progress(Effort effort) {
  const auto ranks = static_cast<std::uint32_t>(state_->size());
  std::size_t kept = 0;
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    auto& operation = *pending_[i];
    auto& slot = state_->slot(operation.sequence_);
    if (!operation.exhausted_ && slot.ready.load(std::memory_order_acquire) == operation.sequence_)
      take_chunks(operation, effort == Effort::All ? operation.num_chunks_ + 1 : (operation.num_chunks_ + ranks - 1) / ranks);
    if (slot.finished.load(std::memory_order_acquire) == operation.sequence_) complete(operation);
    if (!operation.finished_) std::swap(pending_[kept++], pending_[i]);
  }
  pending_.resize(kept);
  if (kept != 0 && state_->is_broken()) fail_all();
}

void Seat::take_chunks(Operation& operation, std::uint32_t limit) {
  auto& slot = state_->slot(operation.sequence_);
  auto& working = state_->rank(rank_).working;
  for (std::uint32_t taken = 0; taken < limit; ++taken) {
    const auto chunk = slot.claimed.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= operation.num_chunks_) {
      operation.exhausted_ = true;
      return;
    }
    // Whoever ends the group sees `working`, or we see that it ended: see settle().
    working.store(1, std::memory_order_seq_cst);
    const bool broken = state_->is_broken();
    if (!broken) do_chunk(operation, chunk);
    working.store(0, std::memory_order_release);
    if (broken) return;
    if (slot.done.fetch_add(1, std::memory_order_acq_rel) + 1 == operation.num_chunks_) {
      slot.finished.store(operation.sequence_, std::memory_order_release);
      state_->announce();
    }
  }
}

void Seat::do_chunk(Operation& operation, std::uint32_t chunk) {
  const auto bytes = operation.request_.bytes();
  const auto begin = chunk * operation.chunk_bytes_;
  const auto end = std::min<std::size_t>(bytes, begin + operation.chunk_bytes_);
  if (operation.request_.reduces()) reduce_range(operation, begin, end);
  else copy_range(operation, begin, end);
}

void Seat::reduce_range(const Operation& operation, std::size_t begin, std::size_t end) {
  const auto& request = operation.request_;
  const int ranks = state_->size();
  const auto element = size_of(request.dtype());
  const auto widening = size_of(request.output.dtype) / element;
  while (begin < end) {
    const auto part = part_of(request, ranks, begin);
    const auto stop = std::min(end, part.end);
    sources_.clear();
    targets_.clear();
    for (int r = 0; r < ranks; ++r) {
      const auto& record = state_->record(operation.sequence_, r);
      sources_.push_back(state_->resolve(record.input) + begin);
      if (r == part.owner || part.owner < 0) targets_.push_back(state_->resolve(record.output) + (begin - part.begin) * widening);
    }
    reduce({request.dtype(), request.output.dtype, request.op}, sources_, targets_, (stop - begin) / element);
    begin = stop;
  }
}

void Seat::copy_range(const Operation& operation, std::size_t begin, std::size_t end) {
  const auto& request = operation.request_;
  const int ranks = state_->size();
  const bool gather = request.call == Call::AllGather;
  const auto written = request.output.bytes * static_cast<std::size_t>(ranks);
  for (int from = 0; from < ranks; ++from) {
    if (!gather && from != request.root) continue;
    const auto& source = state_->record(operation.sequence_, from);
    const auto* data = state_->resolve(source.input) + begin;
    targets_.clear();
    for (int to = 0; to < ranks; ++to) {
      auto* target = state_->resolve(state_->record(operation.sequence_, to).output) + begin;
      targets_.push_back(gather ? target + static_cast<std::size_t>(from) * request.bytes() : target);
    }
    copy(data, targets_, end - begin, written >= kPastCacheBytes);
  }
}

void Seat::complete(Operation& operation) {
  const auto& output = operation.request_.output;
  if (operation.output_copy_ && output.bytes != 0) std::memcpy(output.data, operation.output_copy_.get(), output.bytes);
  end(operation, Errc::Ok);
}

void Seat::end(Operation& operation, Errc outcome) {
  const auto now = Clock::now();
  recorder_.finish(operation.sequence_, outcome, now);
  state_->note_finished(rank_, operation.sequence_, now);
  operation.input_copy_.reset();
  operation.output_copy_.reset();
  operation.finished_ = true;
  operation.seat_.reset();
}

void Seat::fail_all() {
  settle();
  const auto failure = state_->failure();
  for (auto& operation : pending_) {
    operation->outcome_ = failure;
    end(*operation, failure.code());
  }
  pending_.clear();
}

void Seat::settle() noexcept {
  // The caller will free its buffers: nobody may still be writing to them. A dead process never says that it stopped,
  // nor does it write, so between processes the patience is short (a chunk takes well under a millisecond).
  const auto until = Clock::now() + std::chrono::milliseconds{50};
  for (int r = 0; r < state_->size(); ++r) {
    while (r != rank_ && state_->rank(r).working.load(std::memory_order_seq_cst) != 0) {
      if (state_->between_processes() && Clock::now() > until) return;
      std::this_thread::yield();
    }
  }
}

}  // namespace troupe::detail
