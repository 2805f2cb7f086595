#pragma once

#include "engine.hpp"

namespace troupe::detail {

/// The consumer's end of a stream: what was taken, what is still to come.
class Pipeline {
 public:
  Pipeline(std::shared_ptr<const Plan> plan, StreamOptions options, std::optional<Resumed> resumed, std::int64_t rows_delivered, bool keep_stats = true);
  ~Pipeline();

  [[nodiscard]] Batch next();
  [[nodiscard]] Batch next_batch(std::int64_t batch_size, bool drop_last);
  [[nodiscard]] DatasetCursor cursor();
  [[nodiscard]] std::int64_t padding_rows() const { return padding_rows_; }
  [[nodiscard]] StreamStats stats();
  void stop() noexcept { engine_->stop(); }

 private:
  /// Rows of one group that came together, cut to what the range wants; then what is known of a place once they are handed out.
  struct Part {
    Batch rows;                    ///< none: nothing was made of the group
    std::int64_t epoch = 0;
    std::size_t range = 0;
    Position first, last;          ///< of the group
    std::int64_t taken = 0;        ///< of `rows`, already handed out
    std::int64_t made_before = 0;  ///< of the group's rows, those before what is left of `rows`
    bool ends_group = false;
    bool ends_epoch = false;
    bool is_set = false;           ///< a place: rows were handed out
  };
  bool pull();
  void accept(Item item);
  void fill_missing(Item& item);
  Batch take(std::int64_t at_most);
  [[nodiscard]] const std::vector<RowRange>& ranges_of(std::int64_t epoch);
  void count(const Batch& rows);

  std::shared_ptr<const Plan> plan_;
  bool keep_stats_;
  StreamOptions options_;
  std::shared_ptr<Engine> engine_;
  std::deque<Part> parts_;  ///< taken from the stages, not yet by the consumer
  std::int64_t ranges_epoch_ = -1;
  std::shared_ptr<const std::vector<RowRange>> ranges_;

  // The group that is being taken in.
  std::uint64_t group_ = ~std::uint64_t{0};
  std::int64_t made_ = 0;
  Batch last_rows_;               ///< the group's, where ranks must get equally many
  std::int64_t rows_of_epoch_ = 0;

  // What was handed out.
  DatasetCursor start_;           ///< with no ranges
  Part at_;                       ///< the place behind it
  std::int64_t rows_delivered_ = 0;
  std::int64_t padding_rows_ = 0;  ///< of the last batch

  std::mutex stats_mutex_;        ///< guards the rest
  std::int64_t rows_ = 0;
  std::int64_t batches_ = 0;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  std::chrono::nanoseconds first_batch_{0};
};

}  // namespace troupe::detail
