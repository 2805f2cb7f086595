#include <arrow/array.h>
#include <arrow/compute/api.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <condition_variable>

#include "arrow_check.hpp"
#include "plan.hpp"

namespace troupe::detail {

namespace {

std::string rows_of(const StepContext& context) {
  return (context.path ? *context.path : std::string{"rows"}) + ", rows " + std::to_string(context.first_row) + " to " +
         std::to_string(context.first_row + context.num_rows - 1);
}

/// A step's own call, with its name and rows put before whatever it throws.
template <typename Call>
Batch guarded(const Step& step, const StepContext& context, Call call) {
  const auto where = [&] { return "step " + step.name() + ", " + rows_of(context) + ": "; };
  try {
    return call();
  } catch (const Failure& failure) {
    throw Failure{failure.code(), where() + failure.what()};
  } catch (const std::bad_alloc&) {
    throw Failure{Errc::OutOfMemory, where() + "out of memory"};
  } catch (const std::exception& error) {
    throw Failure{Errc::TrainFunctionFailed, where() + error.what()};
  }
}

/// @param skipped bad rows that the step left out.
void check_result(const Step& step, const Batch& in, const Batch& out, std::int64_t skipped) {
  if (!out) throw Failure{Errc::InvalidArgument, "the function returned no batch; return one without rows to drop them all"};
  if (step.keeps_rows && out->num_rows() + skipped != in->num_rows())
    throw Failure{Errc::InvalidArgument, "the function made " + std::to_string(out->num_rows()) + " rows of " + std::to_string(in->num_rows()) +
                                             "; set StepOptions::changes_num_rows"};
  if (step.options.schema && !out->schema()->Equals(*step.options.schema, false))
    throw Failure{Errc::DataMalformed, "the function returned (" + out->schema()->ToString() + "), its options say (" + step.options.schema->ToString() + ")"};
}

/// An asynchronous function, waited for.
class WaitingRunner : public StepRunner {
 public:
  explicit WaitingRunner(AsyncBatchFunction function) : function_(std::move(function)) {}
  Batch run(const Batch& rows, const StepContext&) override {
    struct State {
      std::mutex mutex;
      std::condition_variable came;
      bool done = false;
      Batch rows;
      std::exception_ptr error;
    };
    struct Target : BatchReply::Target {
      explicit Target(std::shared_ptr<State> s) : state(std::move(s)) {}
      void deliver(Batch got, std::exception_ptr error) override {
        const std::lock_guard lock{state->mutex};
        state->rows = std::move(got);
        state->error = error;
        state->done = true;
        state->came.notify_all();
      }
      std::shared_ptr<State> state;
    };
    auto state = std::make_shared<State>();
    function_(rows, BatchReply{std::make_unique<Target>(state)});
    std::unique_lock lock{state->mutex};
    state->came.wait(lock, [&] { return state->done; });
    if (state->error) std::rethrow_exception(state->error);
    return state->rows;
  }

 private:
  AsyncBatchFunction function_;
};

}  // namespace

std::unique_ptr<StepRunner> make_runner(const Step& step) {
  return step.async ? std::make_unique<WaitingRunner>(step.async) : step.make();
}

Batches run_step(const Step& step, StepRunner& runner, const Batches& batches, const StepContext& context) {
  Batches out;
  std::int64_t skipped = 0;
  const std::function<void(const BadRow&)> count_bad_row = [&](const BadRow& row) {
    (*context.on_bad_row)(row);
    ++skipped;
  };
  StepContext counting = context;
  if (context.on_bad_row) counting.on_bad_row = &count_bad_row;
  const auto one = [&](const Batch& rows) {
    skipped = 0;
    out.push_back(guarded(step, context, [&] {
      Batch made = runner.run(rows, counting);
      check_result(step, rows, made, skipped);
      return made;
    }));
  };
  for (const auto& batch : batches) {
    if (batch->num_rows() == 0 && batch->num_columns() == 0) continue;  // of a row function that made nothing, so far
    const std::int64_t size = step.options.batch_size;
    if (size <= 0 || batch->num_rows() <= size) {
      one(batch);
      continue;
    }
    for (std::int64_t first = 0; first < batch->num_rows(); first += size) one(batch->Slice(first, size));
  }
  return out;
}

}  // namespace troupe::detail

namespace troupe {

struct BatchReply::Once {
  explicit Once(std::unique_ptr<Target> t) : target(std::move(t)) {}
  ~Once() {
    if (!called.exchange(true))
      target->deliver(nullptr, std::make_exception_ptr(Failure{Errc::Aborted, "the asynchronous function dropped its batch without an answer"}));
  }
  Once(const Once&) = delete;
  Once& operator=(const Once&) = delete;
  std::unique_ptr<Target> target;
  std::atomic<bool> called{false};
};

BatchReply::BatchReply(std::unique_ptr<Target> target) : once_(std::make_shared<Once>(std::move(target))) {}
void BatchReply::operator()(std::shared_ptr<arrow::RecordBatch> rows) const {
  if (!once_->called.exchange(true)) once_->target->deliver(std::move(rows), nullptr);
}
void BatchReply::fail(std::exception_ptr error) const {
  if (!once_->called.exchange(true)) once_->target->deliver(nullptr, error);
}

}  // namespace troupe
