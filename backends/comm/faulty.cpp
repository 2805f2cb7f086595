#include "request.hpp"

#include <troupe/faulty_communicator.hpp>

#include <thread>

namespace troupe {

namespace {

/// A fault, and how many operations of the seat there were: of its group and those split from it.
struct Plan {
  Fault fault;
  int next = 0;
};

class FaultyCommunicator final : public detail::CommunicatorDecorator {
 public:
  FaultyCommunicator(std::unique_ptr<Communicator> group, std::shared_ptr<Plan> plan)
      : CommunicatorDecorator(std::move(group)), plan_(std::move(plan)) {}
  std::unique_ptr<Communicator> split(int color) override {
    const auto outcome = strike();
    outcome.or_throw();
    return std::make_unique<FaultyCommunicator>(group().split(color), plan_);
  }

 protected:
  Work post(const detail::Request& request) override {
    auto outcome = strike();
    return outcome.ok() ? detail::perform(group(), request) : detail::failed_work(std::move(outcome));
  }

 private:
  Outcome strike() {
    const auto& fault = plan_->fault;
    if (plan_->next++ != fault.at_operation) return {};
    switch (fault.kind) {
      case Fault::Kind::Stall: std::this_thread::sleep_for(fault.stall); return {};
      case Fault::Kind::Throw: throw Failure{fault.outcome.code(), fault.outcome.text()};
      case Fault::Kind::Fail: break;
    }
    group().abort(fault.outcome.text());
    return fault.outcome;
  }

  std::shared_ptr<Plan> plan_;
};

}  // namespace

std::unique_ptr<Communicator> faulty_communicator(std::unique_ptr<Communicator> group, Fault fault) {
  return std::make_unique<FaultyCommunicator>(std::move(group), std::make_shared<Plan>(std::move(fault)));
}

}  // namespace troupe
