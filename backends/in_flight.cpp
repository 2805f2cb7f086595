#include "in_flight.hpp"

namespace troupe::detail {

void InFlight::after(Work work) {
  const auto event = work.event();
  if (!event) return work.wait().or_throw();
  compute_.wait(*event);
  works_.push_back(std::move(work));
  for (; works_.size() > max_unchecked; works_.pop_front()) works_.front().wait().or_throw();
}

void InFlight::check() {
  for (; !works_.empty(); works_.pop_front()) works_.front().wait().or_throw();
}

}  // namespace troupe::detail
