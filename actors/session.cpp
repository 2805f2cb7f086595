#include "rank_process.hpp"

#include <troupe/session.hpp>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <system_error>

namespace troupe {

struct Session::Impl {
  TrainFunctions functions;
  DatasetFunctions datasets;
  std::string program;
  std::vector<std::string> arguments;
};

Session::Session(int argc, char** argv, TrainFunctions functions, DatasetFunctions datasets) : impl_(std::make_unique<Impl>()) {
  if (std::getenv("TROUPE_DATA_WORKER")) {  // a DataLoader's, which must not become a rank or a driver
    std::cerr << "this process was started as a data worker: call troupe::serve_data_workers in main before the Session\n";
    std::_Exit(2);
  }
  impl_->functions = std::move(functions);
  impl_->datasets = std::move(datasets);
  impl_->arguments.assign(argv, argv + argc);
  if (const auto start = detail::take_rank_start()) detail::run_rank_process(*start, impl_->functions, impl_->datasets);
  std::error_code no_proc;
  impl_->program = std::filesystem::read_symlink("/proc/self/exe", no_proc).string();
  if (no_proc) impl_->program = std::filesystem::absolute(argc > 0 ? argv[0] : "").string();
}

Session::~Session() = default;

const TrainFunctions& Session::functions() const noexcept { return impl_->functions; }
const DatasetFunctions& Session::datasets() const noexcept { return impl_->datasets; }
const std::string& Session::program() const noexcept { return impl_->program; }
const std::vector<std::string>& Session::arguments() const noexcept { return impl_->arguments; }

}  // namespace troupe
