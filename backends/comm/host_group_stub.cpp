// Stands in for the data plane between hosts until that is there.
#include <troupe/host_group.hpp>

namespace troupe {
class StubMeeting final : public HostMeeting {
 public:
  std::string endpoint() const override { return "127.0.0.1:1"; }
  std::unique_ptr<Communicator> join(const std::vector<std::string>&, std::unique_ptr<Communicator> local, std::chrono::milliseconds) override { return local; }
  void abort(const std::string&) noexcept override {}
};
std::unique_ptr<HostMeeting> HostMeeting::open(const HostPlan&, int) { return std::make_unique<StubMeeting>(); }
}  // namespace troupe
