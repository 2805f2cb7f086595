// The plug-in's other door: the file system itself, for data sets (core/dataset/sources/files.cpp), which know Arrow.
#include "s3_start.hpp"

namespace {

/// Shut down behind the last request, as with stores.
struct ShutDownLater {
  std::shared_ptr<arrow::fs::S3FileSystem> files;
  explicit ShutDownLater(std::shared_ptr<arrow::fs::S3FileSystem> made) : files(std::move(made)) {}
  ~ShutDownLater() { troupe::shut_down_at_exit(); }
};

constexpr int kFilesAbi = 1;

}  // namespace

/// False, with the reason in `why` unless the caller was built against another version.
extern "C" __attribute__((visibility("default"))) bool troupe_s3_files(int abi, const troupe::StoreUrl& url, std::shared_ptr<arrow::fs::FileSystem>& made, std::string& why) {
  if (abi != kFilesAbi) return false;
  try {
    const troupe::S3Settings settings;
    troupe::start_s3_once(settings);
    auto opened = arrow::fs::S3FileSystem::Make(troupe::options_for(url, settings));
    if (!opened.ok()) {
      why = "cannot open " + url.text() + ": " + opened.status().message();
      return false;
    }
    const auto keep = std::make_shared<ShutDownLater>(*opened);
    made = std::shared_ptr<arrow::fs::FileSystem>{keep, keep->files.get()};
    troupe::shut_down_at_exit();
    return true;
  } catch (const std::exception& error) {
    why = error.what();
    return false;
  }
}
