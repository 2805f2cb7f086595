#include <troupe/faulty_communicator.hpp>

#include <thread>

namespace troupe {

namespace {

class Failed final : public Work::State {
 public:
  explicit Failed(Outcome outcome) : outcome_(std::move(outcome)) {}
  bool poll() override { return true; }
  Outcome wait() override { return outcome_; }

 private:
  Outcome outcome_;
};

class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(std::unique_ptr<Communicator> group, Fault fault) : group_(std::move(group)), fault_(std::move(fault)) {}
  int rank() const noexcept override { return group_->rank(); }
  int size() const noexcept override { return group_->size(); }
  std::string name() const override { return group_->name(); }
  Work all_reduce(Buffer buffer, ReduceOp op) override {
    return call([&] { return group_->all_reduce(buffer, op); });
  }
  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) override {
    return call([&] { return group_->reduce_scatter(input, output, op); });
  }
  Work all_gather(ConstBuffer input, Buffer output) override {
    return call([&] { return group_->all_gather(input, output); });
  }
  Work broadcast(Buffer buffer, int root) override {
    return call([&] { return group_->broadcast(buffer, root); });
  }
  Work barrier() override {
    return call([&] { return group_->barrier(); });
  }
  void abort(const std::string& reason) noexcept override { group_->abort(reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return group_->allocate(bytes); }
  void set_timeout(std::chrono::milliseconds timeout) override { group_->set_timeout(timeout); }

 private:
  template <class F>
  Work call(F&& collective) {
    if (next_++ != fault_.at_operation) return collective();
    switch (fault_.kind) {
      case Fault::Kind::Stall: std::this_thread::sleep_for(fault_.stall); return collective();
      case Fault::Kind::Throw: throw Failure{fault_.outcome.code(), fault_.outcome.text()};
      case Fault::Kind::Fail: break;
    }
    group_->abort(fault_.outcome.text());
    return Work{std::make_shared<Failed>(fault_.outcome)};
  }

  std::unique_ptr<Communicator> group_;
  Fault fault_;
  int next_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> faulty_communicator(std::unique_ptr<Communicator> group, Fault fault) {
  return std::make_unique<FaultyCommunicator>(std::move(group), std::move(fault));
}

}  // namespace troupe
