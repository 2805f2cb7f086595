#pragma once

#include "process_pool.hpp"

namespace troupe::detail {

/// Ranks as processes of this host, which meet in shared memory.
class LocalProcesses final : public RankProcesses {
 public:
  LocalProcesses(const Session& session, const ScalingConfig& scaling, const RunConfig& run);

  void begin_attempt(const StartGroup& order) override;
  [[nodiscard]] std::shared_ptr<RankProcess> take(int rank, ProcessHandlers handlers) override;
  void give_back(const std::shared_ptr<RankProcess>& process) override { pool_.give_back(process); }
  void abort(Attempt attempt, const std::string& reason) noexcept override;
  void end_attempt(Attempt attempt) noexcept override;
  void keep_spares(int count) override { pool_.keep_spares(count); }
  void find_places(int count, std::function<void(int, const std::string&)> done) override { pool_.find_places(count, std::move(done)); }
  void start_anew() override { pool_.start_anew(); }

 private:
  [[nodiscard]] std::shared_ptr<SharedGroup> memory_of(Attempt attempt) noexcept;

  ProcessPool pool_;
  std::mutex mutex_;
  Attempt attempt_ = 0;
  std::shared_ptr<SharedGroup> memory_;
};

}  // namespace troupe::detail
