#pragma once

#include <functional>
#include <memory>
#include <string>
#include <troupe/tokenizer.hpp>

namespace arrow {
class RecordBatch;
}  // namespace arrow

namespace troupe {

struct TokenizeColumns {
  std::string text;              ///< column of strings (utf8, large_utf8)
  std::string second_text = {};  ///< empty: single texts
  bool attention_mask = true;    ///< add `attention_mask`, all 1: padding comes later
  bool token_type_ids = false;   ///< add `token_type_ids`
  bool keep_text = false;        ///< the text columns stay; other columns always do
  EncodeOptions encode = {};
};

/// A stage for `map_batches`: takes a batch of rows, returns it with `input_ids` (list<int64>) and
/// what else is asked for, one list a row. Copies may run on any number of threads. Throws
/// Failure{InvalidArgument} for a missing column or one that is not text, Failure{DataMalformed}
/// for a null text, naming column and row.
using BatchStage =
    std::function<std::shared_ptr<arrow::RecordBatch>(const std::shared_ptr<arrow::RecordBatch>&)>;
[[nodiscard]] BatchStage tokenize_stage(std::shared_ptr<const Tokenizer> tokenizer,
                                        TokenizeColumns columns);

}  // namespace troupe
