// main of the tests of worker processes: the program is started again as a worker.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

/// Does to sample `fault` what the configuration says.
void misbehave(const Config& config, std::int64_t index) {
  if (index != config.get_or<std::int64_t>("fault_at", -1)) return;
  const auto what = config.get<std::string>("fault");
  if (what == "throw") throw std::runtime_error("no such row");
  if (what == "kill") ::raise(SIGKILL);
  if (what == "exit") ::_exit(3);
  if (what == "hang") std::this_thread::sleep_for(std::chrono::hours{1});
}

class Misbehaving final : public Counting {
 public:
  explicit Misbehaving(const Config& config) : Counting(static_cast<std::size_t>(config.get<std::int64_t>("size"))), config_(config) {}
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    misbehave(config_, static_cast<std::int64_t>(index));
    auto sample = Counting::get(index);
    sample.set("process", at::scalar_tensor(static_cast<std::int64_t>(::getpid()), at::kLong));
    sample.set("wide", at::scalar_tensor(static_cast<double>(index), at::kDouble).expand({config_.get_or<std::int64_t>("width", 1)}).contiguous());
    return sample;
  }

 private:
  Config config_;
};

class MisbehavingStream final : public CountingStream {
 public:
  explicit MisbehavingStream(const Config& config) : CountingStream(config.get<std::int64_t>("size")), config_(config) {}

 protected:
  [[nodiscard]] TensorDict sample(std::int64_t index) const override {
    misbehave(config_, index);
    return CountingStream::sample(index);
  }

 private:
  Config config_;
};

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  using namespace troupe;
  serve_data_workers({{"numbers", [](const Config& config) { return WorkerData{.map = std::make_shared<Misbehaving>(config)}; }},
                      {"stream", [](const Config& config) { return WorkerData{.iterable = std::make_shared<MisbehavingStream>(config)}; }},
                      {"broken", [](const Config&) -> WorkerData { throw std::runtime_error("no such folder"); }}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
