#include "ipc_layout.hpp"

#include <arrow/buffer.h>
#include <arrow/io/interfaces.h>
#include <arrow/io/memory.h>
#include <arrow/ipc/dictionary.h>
#include <arrow/ipc/message.h>
#include <arrow/ipc/reader.h>

#include <cstring>

#include "../columns/arrow_errors.hpp"

namespace troupe::detail {

namespace {

constexpr std::int32_t kContinuation = -1;
constexpr std::int64_t kMaxMetadataBytes = 256 << 20;

template <class T>
T read_at(const std::uint8_t* at) {
  T number;
  std::memcpy(&number, at, sizeof number);
  return number;
}

/// Field 0 ("length") of the flatbuffers table RecordBatch, which Arrow has verified. A table begins with the distance back to its list
/// of offsets: two bytes of that list's size, two of the table's, then two for each field; 0: the default.
std::int64_t rows_of(const void* record_batch) {
  if (!record_batch) return -1;
  const auto* const table = static_cast<const std::uint8_t*>(record_batch);
  const auto* const offsets = table - read_at<std::int32_t>(table);
  if (read_at<std::uint16_t>(offsets) < 6) return 0;
  const auto at = read_at<std::uint16_t>(offsets + 4);
  return at == 0 ? 0 : read_at<std::int64_t>(table + at);
}

}  // namespace

IpcLayout read_ipc_layout(arrow::io::RandomAccessFile& input, const std::string& name) {
  const auto get = [&](std::int64_t offset, std::int64_t size) { return value(input.ReadAt(offset, size), name, Errc::FileCorrupt); };
  const auto size = value(input.GetSize(), name, Errc::FileCorrupt);
  IpcLayout layout;
  layout.file_format = size >= 8 && std::memcmp(get(0, 6)->data(), "ARROW1", 6) == 0;
  for (std::int64_t at = layout.file_format ? 8 : 0; at + 4 <= size;) {
    const auto prefix = get(at, std::min<std::int64_t>(8, size - at));
    std::int64_t prefix_bytes = 4;  // before Arrow 0.15
    auto length = read_at<std::int32_t>(prefix->data());
    if (length == kContinuation) {
      if (prefix->size() < 8) break;
      prefix_bytes = 8;
      length = read_at<std::int32_t>(prefix->data() + 4);
    }
    if (length == 0) break;  // the end; a file's footer follows
    const auto where = name + ", message at byte " + std::to_string(at);
    if (length < 0 || length > kMaxMetadataBytes || at + prefix_bytes + length > size) throw Failure{Errc::FileCorrupt, where + ": it ends behind the file's end"};
    const auto message = value(arrow::ipc::Message::Open(get(at + prefix_bytes, length), nullptr), where, Errc::FileCorrupt);
    const auto body = message->body_length();
    if (body < 0 || body > size - at - prefix_bytes - length) throw Failure{Errc::FileCorrupt, where + ": its body ends behind the file's end"};
    if (message->type() == arrow::ipc::MessageType::SCHEMA && !layout.schema) {
      arrow::ipc::DictionaryMemo memo;
      layout.schema = value(arrow::ipc::ReadSchema(*message, &memo), where, Errc::FileCorrupt);
    } else if (message->type() == arrow::ipc::MessageType::DICTIONARY_BATCH) {
      layout.dictionaries = true;
    } else if (message->type() == arrow::ipc::MessageType::RECORD_BATCH) {
      const auto rows = rows_of(message->header());
      if (rows < 0) throw Failure{Errc::FileCorrupt, where + ": it says no number of rows that can be"};
      layout.batches.push_back({at, static_cast<std::int32_t>(prefix_bytes + length), body, rows});
    }
    at += prefix_bytes + length + body;
  }
  if (!layout.schema) throw Failure{Errc::FileCorrupt, name + " is neither an Arrow IPC file nor a stream"};
  return layout;
}

}  // namespace troupe::detail
