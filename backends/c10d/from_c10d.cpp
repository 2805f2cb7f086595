#include <troupe/c10d_adapters.hpp>

#include <ATen/core/ivalue.h>
#include <ATen/core/ivalue_inl.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <vector>

#include "tensor_view.hpp"

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;

/// Where works wait. Held by the backend's callbacks, so it must not own the backend: the last owner would then be one of
/// the backend's own threads.
struct News {
  std::mutex mutex;
  std::condition_variable changed;
};

/// What all works of one communicator share: the first failure stays.
struct Shared {
  std::shared_ptr<News> news = std::make_shared<News>();
  std::optional<Outcome> failure;
  C10dOptions options;
  std::once_flag cancelled;

  /// Keeps the first failure, wakes every waiter and ends what is pending.
  Outcome fail(Errc code, std::string text) {
    Outcome first;
    {
      const std::lock_guard lock{news->mutex};
      if (!failure) failure = Outcome{code, std::move(text)};
      first = *failure;
    }
    news->changed.notify_all();
    if (options.cancel) std::call_once(cancelled, options.cancel);
    return first;
  }
};

/// Whether a c10d future has completed, and how.
struct Completion {
  bool done = false;
  std::string error;
};

class C10dWork final : public Work::State {
 public:
  C10dWork(std::shared_ptr<Shared> shared, std::string call, std::uint64_t sequence, c10::intrusive_ptr<c10d::Work> work,
           std::function<void()> after)
      : shared_(std::move(shared)), call_(std::move(call)), sequence_(sequence), work_(std::move(work)), after_(std::move(after)) {
    deadline_ = Clock::now() + shared_->options.timeout;
    if (!work_) return;
    work_->getFuture()->addCallback([news = shared_->news, completion = completion_](c10::ivalue::Future& future) {
      {
        const std::lock_guard lock{news->mutex};
        completion->done = true;
        if (future.hasError()) completion->error = future.tryRetrieveErrorMessage();
      }
      news->changed.notify_all();
    });
  }

  bool poll() override {
    if (outcome_) return true;
    std::unique_lock lock{shared_->news->mutex};
    if (!completion_->done && !shared_->failure && Clock::now() < deadline_) return false;
    settle(lock);
    return true;
  }

  Outcome wait() override {
    if (!outcome_) {
      std::unique_lock lock{shared_->news->mutex};
      shared_->news->changed.wait_until(lock, deadline_, [this] { return completion_->done || shared_->failure; });
      settle(lock);
    }
    return *outcome_;
  }

 private:
  void settle(std::unique_lock<std::mutex>& lock) {
    if (completion_->done && completion_->error.empty()) {
      lock.unlock();
      if (after_) after_();
      outcome_ = Outcome{};
    } else if (shared_->failure) {
      outcome_ = *shared_->failure;
    } else {
      const auto error = completion_->error;
      lock.unlock();
      outcome_ = error.empty() ? shared_->fail(Errc::DeadlinePassed, late()) : shared_->fail(Errc::Aborted, call_ + ": " + error);
    }
    work_.reset();
  }

  std::string late() const {
    const auto missing = shared_->options.missing ? shared_->options.missing(sequence_) : std::string{};
    return call_ + ": " + (missing.empty() ? "a rank" : missing) + " did not come within " + std::to_string(shared_->options.timeout.count()) + " ms";
  }

  std::shared_ptr<Shared> shared_;
  std::string call_;
  std::uint64_t sequence_;
  c10::intrusive_ptr<c10d::Work> work_;
  std::function<void()> after_;
  std::shared_ptr<Completion> completion_ = std::make_shared<Completion>();
  Clock::time_point deadline_;
  std::optional<Outcome> outcome_;
};

bool is_short_float(DType dtype) { return dtype == DType::F16 || dtype == DType::BF16; }

c10d::ReduceOp c10d_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::Max: return c10d::ReduceOp::MAX;
    case ReduceOp::Min: return c10d::ReduceOp::MIN;
    case ReduceOp::Sum:
    case ReduceOp::Mean: break;
  }
  return c10d::ReduceOp::SUM;
}

/// Sums become means; integers are divided towards zero.
void finish_mean(const at::Tensor& sum, int size) {
  if (at::isIntegralType(sum.scalar_type(), false)) {
    sum.div_(size, "trunc");
  } else {
    sum.div_(size);
  }
}

class C10dCommunicator final : public Communicator {
 public:
  C10dCommunicator(c10::intrusive_ptr<c10d::Backend> backend, C10dOptions options)
      : backend_(std::move(backend)), shared_(std::make_shared<Shared>()) {
    shared_->options = std::move(options);
  }

  int rank() const noexcept override { return backend_->getRank(); }
  int size() const noexcept override { return backend_->getSize(); }
  std::string name() const override { return shared_->options.name; }

  Work all_reduce(Buffer buffer, ReduceOp op) override {
    const auto target = view_of(buffer);
    const auto wide = is_short_float(buffer.dtype) ? target.to(at::kFloat) : target;
    return launch("all_reduce",
                  [&] {
                    std::vector<at::Tensor> tensors{wide};
                    c10d::AllreduceOptions options;
                    options.reduceOp = c10d_op(op);
                    return backend_->allreduce(tensors, options);
                  },
                  [target, wide, op, n = size()] {
                    if (op == ReduceOp::Mean) finish_mean(wide, n);
                    if (!target.is_same(wide)) target.copy_(wide);
                  },
                  buffer.bytes == 0);
  }

  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) override {
    parts("reduce_scatter", input, output);
    const auto target = view_of(output);
    // By all-reduce of a copy: Gloo does the same inside, but its Work finishes only in `wait`, not by itself.
    const auto whole = view_of(input).to(is_short_float(input.dtype) ? at::kFloat : scalar_type(input.dtype), false, true);
    const auto part = whole.narrow(0, rank() * target.numel(), target.numel());
    return launch("reduce_scatter",
                  [&] {
                    std::vector<at::Tensor> tensors{whole};
                    c10d::AllreduceOptions options;
                    options.reduceOp = c10d_op(op);
                    return backend_->allreduce(tensors, options);
                  },
                  [target, part, op, n = size()] {
                    if (op == ReduceOp::Mean) finish_mean(part, n);
                    target.copy_(part);
                  },
                  output.bytes == 0);
  }

  Work all_gather(ConstBuffer input, Buffer output) override {
    parts("all_gather", output, input);
    auto part = view_of(input).clone();
    auto whole = view_of(output);
    return launch("all_gather", [&] { return backend_->_allgather_base(whole, part, {}); }, [part] {}, output.bytes == 0);
  }

  Work broadcast(Buffer buffer, int root) override {
    if (root < 0 || root >= size()) {
      throw Failure{Errc::InvalidArgument, "broadcast: there is no rank " + std::to_string(root) + " among " + std::to_string(size())};
    }
    return launch("broadcast",
                  [&] {
                    std::vector<at::Tensor> tensors{view_of(buffer)};
                    c10d::BroadcastOptions options;
                    options.rootRank = root;
                    return backend_->broadcast(tensors, options);
                  },
                  {}, buffer.bytes == 0);
  }

  Work barrier() override {
    return launch("barrier", [&] { return backend_->barrier({}); }, {}, false);
  }

  void abort(const std::string& reason) noexcept override {
    try {
      (void)shared_->fail(Errc::Aborted, reason);
    } catch (...) {  // a cancel that throws has cancelled what it could
    }
  }

  std::shared_ptr<void> allocate(std::size_t bytes) override { return self_communicator()->allocate(bytes); }

  void set_timeout(std::chrono::milliseconds timeout) override {
    shared_->options.timeout = timeout;
  }

 private:
  void parts(const char* call, ConstBuffer whole, ConstBuffer part) const {
    if (whole.dtype != part.dtype || whole.bytes != part.bytes * static_cast<std::size_t>(size())) {
      throw Failure{Errc::InvalidArgument, std::string(call) + ": " + std::to_string(whole.bytes) + " bytes are not " + std::to_string(size()) +
                                               " parts of " + std::to_string(part.bytes)};
    }
  }

  /// Begins one collective; `after` runs in the caller's thread when it has succeeded. c10d takes no empty tensors: those
  /// become a barrier, so that call order still counts.
  template <class Begin>
  Work launch(const char* call, Begin begin, std::function<void()> after, bool empty) {
    const auto sequence = ++sequence_;
    const auto text = std::string(call) + " #" + std::to_string(sequence);
    {
      const std::lock_guard lock{shared_->news->mutex};
      if (shared_->failure) return Work{std::make_shared<C10dWork>(shared_, text, sequence, nullptr, nullptr)};
    }
    if (shared_->options.beginning) shared_->options.beginning(sequence);
    try {
      auto work = empty ? backend_->barrier({}) : begin();
      return Work{std::make_shared<C10dWork>(shared_, text, sequence, std::move(work), empty ? nullptr : std::move(after))};
    } catch (const c10::Error& error) {
      (void)shared_->fail(Errc::Aborted, text + ": " + error.what_without_backtrace());
      return Work{std::make_shared<C10dWork>(shared_, text, sequence, nullptr, nullptr)};
    }
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  std::shared_ptr<Shared> shared_;
  std::uint64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> from_c10d(c10::intrusive_ptr<c10d::Backend> backend, C10dOptions options) {
  return std::make_unique<C10dCommunicator>(std::move(backend), std::move(options));
}

}  // namespace troupe
