#include "questions.hpp"

#include <chrono>
#include <deque>

namespace troupe::detail {

using namespace std::chrono_literals;

namespace {

constexpr auto answer_limit = 30s;
constexpr std::uint64_t ahead_bytes = 8 << 20;  // asked for and not come yet: two segments

std::exception_ptr failure(Errc code, const std::string& why) { return std::make_exception_ptr(Failure{code, why}); }

Errc code_of(const std::exception& error) {
  const auto* failure = dynamic_cast<const Failure*>(&error);
  return failure ? failure->code() : Errc::StorageUnavailable;
}

void list_below(FileSystem& files, const std::string& directory, const std::string& folder, FilesListed& found) {
  for (const auto& entry : files.list(folder.empty() ? directory : directory + "/" + folder)) {
    const auto name = folder.empty() ? entry.name : folder + "/" + entry.name;
    if (entry.kind == FileSystem::Kind::Directory) {
      list_below(files, directory, name, found);
    } else if (entry.kind == FileSystem::Kind::File) {
      found.names.push_back(name);
      found.sizes.push_back(files.open(directory + "/" + name, FileSystem::Access::Read)->size());
    } else {
      throw Failure{Errc::InvalidArgument, directory + "/" + name + " is a symbolic link or a device; put the file itself there"};
    }
  }
}

}  // namespace

// ---- Questions ----------------------------------------------------------------------------------------------

Questions::Asked Questions::add(const std::string& to) {
  const std::lock_guard lock{mutex_};
  const auto id = ++last_;
  Waiting waiting{to, {}};
  auto answer = waiting.promise.get_future();
  if (closed_) waiting.promise.set_exception(failure(Errc::Aborted, *closed_));
  else waiting_.emplace(id, std::move(waiting));
  return {id, std::move(answer)};
}

void Questions::answered(std::uint64_t id, NodeMessage message) {
  const std::lock_guard lock{mutex_};
  if (auto found = waiting_.extract(id)) found.mapped().promise.set_value(std::move(message));
}

void Questions::fail(const std::string& to, Errc code, const std::string& why) {
  const std::lock_guard lock{mutex_};
  for (auto waiting = waiting_.begin(); waiting != waiting_.end();) {
    auto& [id, question] = *waiting++;
    if (question.to != to) continue;
    question.promise.set_exception(failure(code, why));
    waiting_.erase(id);
  }
}

void Questions::close(const std::string& why) {
  const std::lock_guard lock{mutex_};
  closed_ = why;
  for (auto& [id, waiting] : waiting_) waiting.promise.set_exception(failure(Errc::Aborted, why));
  waiting_.clear();
}

// ---- LinkDisk -----------------------------------------------------------------------------------------------

template <class Answer>
Answer LinkDisk::wait_for(Questions::Asked& asked, const std::string& what) const {
  if (asked.answer.wait_for(answer_limit) != std::future_status::ready) {
    throw Failure{Errc::DeadlinePassed, who_ + " did not answer within " + std::to_string(answer_limit.count()) + " s: " + what};
  }
  auto message = asked.answer.get();
  if (auto* answer = std::get_if<Answer>(&message)) return std::move(*answer);
  throw Failure{Errc::ProtocolError, who_ + " answered with " + node_type_name(static_cast<std::uint16_t>(message.index()))};
}

std::vector<PeerDisk::Entry> LinkDisk::list(const std::string& directory) {
  auto asked = ask_([&](std::uint64_t id) { return ListFiles{run_, id, directory}; });
  const auto answer = wait_for<FilesListed>(asked, "the files below " + directory);
  if (answer.error != Errc::Ok) throw Failure{answer.error, who_ + ": " + answer.text};
  std::vector<Entry> entries;
  for (std::size_t i = 0; i < std::min(answer.names.size(), answer.sizes.size()); ++i) entries.push_back({answer.names[i], answer.sizes[i]});
  return entries;
}

Questions::Asked LinkDisk::ask_for(const std::string& path, const FilePiece& piece) const {
  return ask_([&](std::uint64_t id) { return ReadFile{run_, id, path, piece.begin, piece.length, piece.digest.has_value(), piece.digest.value_or(0)}; });
}

void LinkDisk::read(const std::string& directory, std::span<const FilePiece> pieces, const std::function<void(const FilePiece&, std::string_view)>& take) {
  std::deque<std::pair<const FilePiece*, Questions::Asked>> ahead;
  std::uint64_t bytes_ahead = 0;
  const auto take_first = [&] {
    auto [piece, asked] = std::move(ahead.front());
    ahead.pop_front();
    bytes_ahead -= piece->length;
    const auto answer = wait_for<FileRead>(asked, piece->file);
    if (answer.error != Errc::Ok) throw Failure{answer.error, who_ + ": " + answer.bytes};
    check_piece(*piece, answer.bytes, who_);
    take(*piece, answer.bytes);
  };
  for (const auto& piece : pieces) {
    while (!ahead.empty() && bytes_ahead + piece.length > ahead_bytes) take_first();
    ahead.emplace_back(&piece, ask_for(directory + "/" + piece.file, piece));
    bytes_ahead += piece.length;
  }
  while (!ahead.empty()) take_first();
}

std::string LinkDisk::read_all(const std::string& path, std::uint64_t limit) {
  std::string all;
  while (all.size() <= limit) {
    auto asked = ask_for(path, {{}, all.size(), static_cast<std::uint32_t>(segment_bytes), std::nullopt});
    const auto answer = wait_for<FileRead>(asked, path);
    if (answer.error != Errc::Ok) throw Failure{answer.error, who_ + ": " + answer.bytes};
    all += answer.bytes;
    if (answer.bytes.size() < segment_bytes) return all;
  }
  throw Failure{Errc::FileCorrupt, who_ + ": " + path + " has more than " + std::to_string(limit) + " bytes"};
}

void LinkDisk::wait_until_kept(Questions::Asked& asked, const std::string& what) const {
  const auto answer = wait_for<PartKept>(asked, what);
  if (answer.error != Errc::Ok) throw Failure{answer.error, who_ + ": " + answer.text};
}

// ---- answers ------------------------------------------------------------------------------------------------

FilesListed list_files(const ListFiles& question) {
  FilesListed found{question.run, question.id, Errc::Ok, {}, {}, {}};
  try {
    list_below(real_file_system(), question.directory, {}, found);
  } catch (const std::exception& error) {
    return {question.run, question.id, code_of(error), error.what(), {}, {}};
  }
  return found;
}

FileRead refusal_of(const ReadFile& question, const std::exception& error) { return {question.run, question.id, code_of(error), error.what()}; }

FileRead read_file(const ReadFile& question, const std::string& path) {
  try {
    if (question.length > segment_bytes) throw Failure{Errc::ProtocolError, path + ": too much was asked for at once"};
    const auto file = real_file_system().open(path, FileSystem::Access::Read);
    const auto size = file->size();
    const auto count = question.begin < size ? std::min<std::uint64_t>(question.length, size - question.begin) : 0;
    FileRead answer{question.run, question.id, Errc::Ok, std::string(count, '\0')};
    file->read(std::as_writable_bytes(std::span{answer.bytes}), question.begin);
    return answer;
  } catch (const std::exception& error) {
    return refusal_of(question, error);
  }
}

}  // namespace troupe::detail
