#include "comm/task_thread.hpp"
#include "tensor_buffer.hpp"

#include <troupe/c10d.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <functional>

namespace troupe {

namespace {

ReduceOp reduce_of(const c10d::ReduceOp& op) {
  if (op == c10d::ReduceOp::SUM) return ReduceOp::Sum;
  if (op == c10d::ReduceOp::AVG) return ReduceOp::Mean;
  if (op == c10d::ReduceOp::MAX) return ReduceOp::Max;
  if (op == c10d::ReduceOp::MIN) return ReduceOp::Min;
  throw Failure{Errc::Unsupported, "only sum, average, max and min are reduced"};
}

class FutureWork final : public c10d::Work {
 public:
  explicit FutureWork(c10::intrusive_ptr<c10::ivalue::Future> future) : future_(std::move(future)) {}
  bool isCompleted() override { return future_->completed(); }
  bool isSuccess() const override { return future_->completed() && !future_->hasError(); }
  bool wait(std::chrono::milliseconds) override {  // the group has a deadline of its own
    future_->waitAndThrow();
    return true;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

using Tensors = std::vector<at::Tensor>;

class CommunicatorBackend final : public c10d::Backend {
 public:
  explicit CommunicatorBackend(std::shared_ptr<Communicator> group) : Backend(group->rank(), group->size()), group_(std::move(group)) {}
  const std::string getBackendName() const override { return "troupe"; }

  c10::intrusive_ptr<c10d::Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    return post(tensors, [this, tensors, op = reduce_of(options.reduceOp)] {
      for (const auto& t : tensors) in_place(t, [&](const at::Tensor& c) { return group_->all_reduce(buffer_of(c), op); });
    });
  }
  c10::intrusive_ptr<c10d::Work> allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    return allreduce(tensors, options);
  }
  c10::intrusive_ptr<c10d::Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return post(tensors, [this, tensors, root = static_cast<int>(options.rootRank)] {
      for (const auto& t : tensors) in_place(t, [&](const at::Tensor& c) { return group_->broadcast(buffer_of(c), root); });
    });
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions&) override {
    return post({output}, [this, output, input] { gather_into(output, input); });
  }
  c10::intrusive_ptr<c10d::Work> allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions&) override {
    return post(outputs.at(0), [this, parts = outputs.at(0), input = inputs.at(0)] {
      const auto all = at::empty({size_, input.numel()}, input.options());
      gather_into(all, input);
      for (int r = 0; r < size_; ++r) parts.at(static_cast<std::size_t>(r)).copy_(all[r].view(input.sizes()));
    });
  }
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                      const c10d::ReduceScatterOptions& options) override {
    return post({output}, [this, output, input, op = reduce_of(options.reduceOp)] { scatter_into(output, input, op); });
  }
  c10::intrusive_ptr<c10d::Work> reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                                const c10d::ReduceScatterOptions& options) override {
    return post(outputs, [this, output = outputs.at(0), parts = inputs.at(0), op = reduce_of(options.reduceOp)] {
      Tensors flat;
      for (const auto& part : parts) flat.push_back(part.reshape({-1}));
      scatter_into(output, at::cat(flat), op);
    });
  }
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions&) override {
    return post({}, [this] { group_->barrier().wait().or_throw(); });
  }

 private:
  template <class F>
  static void in_place(const at::Tensor& tensor, F&& collective) {
    const auto contiguous = tensor.contiguous();
    collective(contiguous).wait().or_throw();
    if (!contiguous.is_same(tensor)) tensor.copy_(contiguous);
  }
  void gather_into(const at::Tensor& output, const at::Tensor& input) {
    const auto from = input.contiguous(), to = output.contiguous();
    group_->all_gather(buffer_of(from), buffer_of(to)).wait().or_throw();
    if (!to.is_same(output)) output.copy_(to);
  }
  void scatter_into(const at::Tensor& output, const at::Tensor& input, ReduceOp op) {
    const auto from = input.contiguous(), to = output.contiguous();
    group_->reduce_scatter(buffer_of(from), buffer_of(to), op).wait().or_throw();
    if (!to.is_same(output)) output.copy_(to);
  }

  c10::intrusive_ptr<c10d::Work> post(const Tensors& results, std::function<void()> body) {
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    thread_.push([future, results, body = std::move(body)] {
      const at::NoGradGuard no_grad;
      try {
        body();
        future->markCompleted(at::IValue(results));
      } catch (...) {
        future->setError(std::current_exception());
      }
    });
    return c10::make_intrusive<FutureWork>(std::move(future));
  }

  std::shared_ptr<Communicator> group_;
  detail::TaskThread thread_;  // last: it uses the rest
};

}  // namespace

c10::intrusive_ptr<c10d::Backend> as_c10d_backend(std::shared_ptr<Communicator> group) {
  return c10::make_intrusive<CommunicatorBackend>(std::move(group));
}

c10::intrusive_ptr<c10d::ProcessGroup> as_c10d_process_group(std::shared_ptr<Communicator> group) {
  const int rank = group->rank(), size = group->size();
  auto result = c10::make_intrusive<c10d::ProcessGroup>(c10::make_intrusive<c10d::HashStore>(), rank, size);
  result->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM, as_c10d_backend(std::move(group)));
  result->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  return result;
}

}  // namespace troupe
