#pragma once

#include <troupe/data_config.hpp>
#include <troupe/train_context.hpp>

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// The train functions of a program, by name.
using TrainFunctions = std::map<std::string, TrainFunction, std::less<>>;

/// Makes `main` of a program that can also be started as one of its own ranks. Construct it first thing in `main`:
/// in a process that a WorkerGroup started, the constructor runs the rank and ends the process; it returns only in
/// the program that the user started.
class Session {
 public:
  /// @param datasets for `TrainContext::dataset`: no code travels, so ranks that are processes make their data sets from this list too.
  Session(int argc, char** argv, TrainFunctions functions, DatasetFunctions datasets = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] const TrainFunctions& functions() const noexcept;
  [[nodiscard]] const DatasetFunctions& datasets() const noexcept;
  /// Absolute path of this program.
  [[nodiscard]] const std::string& program() const noexcept;
  /// What the user started it with, program name first: ranks that are processes get the same.
  [[nodiscard]] const std::vector<std::string>& arguments() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe
