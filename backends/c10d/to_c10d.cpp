#include <troupe/c10d_adapters.hpp>

#include <ATen/core/ivalue.h>
#include <ATen/core/ivalue_inl.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <vector>

#include "tensor_view.hpp"

namespace troupe {

namespace {

/// A collective that is over.
class FinishedWork final : public c10d::Work {
 public:
  FinishedWork(int rank, c10d::OpType type, std::vector<at::Tensor> tensors)
      : c10d::Work(rank, type), tensors_(std::move(tensors)),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {
    future_->markCompleted(c10::IValue(tensors_));
    finish();
  }
  std::vector<at::Tensor> result() override { return tensors_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  std::vector<at::Tensor> tensors_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

ReduceOp op_of(const c10d::ReduceOp& op) {
  switch (op.op_) {
    case c10d::ReduceOp::SUM: return ReduceOp::Sum;
    case c10d::ReduceOp::AVG: return ReduceOp::Mean;
    case c10d::ReduceOp::MIN: return ReduceOp::Min;
    case c10d::ReduceOp::MAX: return ReduceOp::Max;
    default: throw Failure{Errc::Unsupported, "a Troupe communicator reduces by sum, mean, min or max only"};
  }
}

class CommunicatorBackend final : public c10d::Backend {
 public:
  explicit CommunicatorBackend(Communicator& group) : c10d::Backend(group.rank(), group.size()), group_(group) {}

  const std::string getBackendName() const override { return "troupe"; }

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    for (auto& tensor : tensors) {
      in_place(tensor, [&](Buffer buffer) { return group_.broadcast(buffer, static_cast<int>(options.rootRank)); });
    }
    return finished(c10d::OpType::BROADCAST, tensors);
  }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    for (auto& tensor : tensors) {
      in_place(tensor, [&](Buffer buffer) { return group_.all_reduce(buffer, op_of(options.reduceOp)); });
    }
    return finished(c10d::OpType::ALLREDUCE, tensors);
  }

  c10::intrusive_ptr<c10d::Work> allreduce_coalesced(std::vector<at::Tensor>& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    return allreduce(tensors, options);
  }

  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions&) override {
    const auto part = input.contiguous();
    in_place(output, [&](Buffer buffer) { return group_.all_gather(buffer_of(part), buffer); });
    return finished(c10d::OpType::_ALLGATHER_BASE, {output});
  }

  c10::intrusive_ptr<c10d::Work> allgather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                                           const c10d::AllgatherOptions& options) override {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      auto shape = inputs[i].sizes().vec();
      shape.insert(shape.begin(), getSize());
      auto all = at::empty(shape, inputs[i].options());
      (void)_allgather_base(all, inputs[i], options);
      for (int r = 0; r < getSize(); ++r) outputs[i][static_cast<std::size_t>(r)].copy_(all[r]);
    }
    return finished(c10d::OpType::ALLGATHER, outputs.empty() ? std::vector<at::Tensor>{} : outputs.front());
  }

  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override {
    const auto whole = input.contiguous();
    in_place(output, [&](Buffer buffer) { return group_.reduce_scatter(buffer_of(whole), buffer, op_of(options.reduceOp)); });
    return finished(c10d::OpType::_REDUCE_SCATTER_BASE, {output});
  }

  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions&) override {
    group_.barrier().wait().or_throw();
    return finished(c10d::OpType::BARRIER, {});
  }

 private:
  /// Runs a collective on the tensor's own memory where it is contiguous, else on a copy.
  template <class Run>
  void in_place(at::Tensor& tensor, Run run) {
    const auto dense = tensor.contiguous();
    run(buffer_of(dense)).wait().or_throw();
    if (!dense.is_same(tensor)) tensor.copy_(dense);
  }
  c10::intrusive_ptr<c10d::Work> finished(c10d::OpType type, std::vector<at::Tensor> tensors) {
    return c10::make_intrusive<FinishedWork>(getRank(), type, std::move(tensors));
  }

  Communicator& group_;
};

}  // namespace

c10::intrusive_ptr<c10d::ProcessGroup> to_c10d(Communicator& communicator) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(c10::make_intrusive<c10d::HashStore>(), communicator.rank(), communicator.size());
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM, c10::make_intrusive<CommunicatorBackend>(communicator));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  return group;
}

}  // namespace troupe
