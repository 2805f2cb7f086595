#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <troupe/errors.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

using namespace std::chrono_literals;

struct Left {
  int processes = 0, threads = 0, descriptors = 0, segments = 0;
  bool operator==(const Left&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Left& left) {
  return out << left.processes << " processes, " << left.threads << " threads, " << left.descriptors << " descriptors, " << left.segments << " segments";
}

int entries(const char* directory) { return static_cast<int>(std::distance(std::filesystem::directory_iterator{directory}, {})); }

/// What this process has now.
Left here() {
  Left left{.threads = entries("/proc/self/task"), .descriptors = entries("/proc/self/fd")};
  std::ifstream children{"/proc/self/task/" + std::to_string(::getpid()) + "/children"};
  for (std::string pid; children >> pid;) ++left.processes;
  std::ifstream maps{"/proc/self/maps"};
  for (std::string line; std::getline(maps, line);) left.segments += line.find("troupe-batch") != std::string::npos;
  return left;
}

DataLoaderOptions processes(int workers, Config config, std::int64_t batch_size = 4) {
  return {.batch_size = batch_size, .num_workers = workers, .worker_processes = WorkerProcesses{"numbers", std::move(config)}};
}

DataLoader stream_loader(std::int64_t size, int workers, std::int64_t batch_size, Config config = {}) {
  config.set("size", size);
  return {std::make_shared<CountingStream>(size), {.batch_size = batch_size, .num_workers = workers, .worker_processes = WorkerProcesses{"stream", config}}};
}

/// Iterates until it fails; the batches before, and what it said.
std::pair<Batches, std::string> until_failure(DataLoader& loader, Errc code) {
  Batches before;
  try {
    for (const auto& batch : loader) before.push_back(indices(batch));
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), code) << failure.what();
    return {before, failure.what()};
  }
  return {before, "nothing was thrown"};
}

TEST(DataProcesses, GiveTheSameBatchesInTheSameOrderAsTheCaller) {
  const auto before = here();
  {
    DataLoader plain{counting(31), {.batch_size = 4, .shuffle = true, .seed = 3}};
    auto options = processes(3, {{"size", 31}});
    options.shuffle = true;
    options.seed = 3;
    DataLoader loader{counting(31), options};
    std::set<std::int64_t> pids;
    for (int epoch = 0; epoch < 2; ++epoch) {
      Batches got;
      for (const auto& batch : loader) {
        got.push_back(indices(batch));
        EXPECT_EQ(loader.batch_indices(), got.back());
        pids.insert(batch["process"][0].item<std::int64_t>());
        EXPECT_EQ(batch["wide"].scalar_type(), at::kDouble);
        EXPECT_EQ(batch["wide"][0][0].item<double>(), static_cast<double>(got.back()[0]));
      }
      EXPECT_EQ(got, epoch_of(plain));
    }
    EXPECT_EQ(pids.size(), 3u);  // the same ones in both epochs
    EXPECT_FALSE(pids.contains(::getpid()));
  }
  EXPECT_EQ(here(), before);
}

TEST(DataProcesses, EndWithTheEpochUnlessTheyArePersistent) {
  auto options = processes(1, {{"size", 8}});
  const auto before = here();
  DataLoader loader{counting(8), options};
  (void)epoch_of(loader);
  EXPECT_EQ(here().processes, before.processes + 1);
  options.persistent_workers = false;
  DataLoader ending{counting(8), options};
  (void)epoch_of(ending);
  EXPECT_EQ(here().processes, before.processes + 1);
}

TEST(DataProcesses, KeepBatchesAliveThatTheLoopKeeps) {
  const auto before = here();
  {
    std::vector<Batch> kept;
    {
      auto options = processes(1, {{"size", 40}, {"width", 30000}});
      options.prefetch_factor = 1;
      DataLoader loader{counting(40), options};
      for (const auto& batch : loader) kept.push_back(batch);
      (void)epoch_of(loader);
    }
    ASSERT_EQ(kept.size(), 10u);
    for (std::size_t b = 0; b < kept.size(); ++b) {
      EXPECT_EQ(indices(kept[b])[0], static_cast<std::int64_t>(4 * b));
      EXPECT_EQ(kept[b]["wide"][3][29999].item<double>(), static_cast<double>(4 * b + 3));
    }
    EXPECT_GE(here().segments, 10);
  }
  EXPECT_EQ(here(), before);
}

TEST(DataProcesses, ReadAStreamBetweenThemWithoutRepeatingASample) {
  for (const int workers : {1, 3}) {
    auto loader = stream_loader(23, workers, 4);
    DataLoader plain{std::make_shared<CountingStream>(23), {.batch_size = 4}};
    EXPECT_EQ(epoch_of(loader), epoch_of(plain));
    loader.resume({0, 2});
    EXPECT_EQ(epoch_of(loader), (Batches{{8, 9, 10, 11}, {12, 13, 14, 15}, {16, 17, 18, 19}, {20, 21, 22}}));
  }
}

TEST(DataProcesses, HandOutWhatIsReadyWithoutOrder) {
  auto options = processes(2, {{"size", 40}, {"fault_at", 0}, {"fault", "nothing"}});
  options.in_order = false;
  DataLoader loader{counting(40), options};
  std::multiset<std::int64_t> seen;
  for (const auto& batch : loader) {
    for (const auto index : indices(batch)) seen.insert(index);
  }
  EXPECT_EQ(seen.size(), 40u);
  EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), 40u);
}

// Faults are swept over the sample at which they happen.
TEST(DataProcesses, NameTheSampleThatThrows) {
  const auto before = here();
  for (std::int64_t at = 0; at < 10; at += 3) {
    DataLoader loader{counting(10), processes(2, {{"size", 10}, {"fault_at", at}, {"fault", "throw"}}, 2)};
    const auto [batches, text] = until_failure(loader, Errc::DataMalformed);
    EXPECT_EQ(std::ssize(batches), at / 2);
    EXPECT_EQ(text, "sample " + std::to_string(at) + ": no such row");
  }
  EXPECT_EQ(here(), before);
}

TEST(DataProcesses, NameTheWorkerThatDies) {
  const auto before = here();
  for (std::int64_t at = 0; at < 10; at += 3) {
    for (const auto* fault : {"kill", "exit"}) {
      DataLoader loader{counting(10), processes(2, {{"size", 10}, {"fault_at", at}, {"fault", fault}}, 2)};
      const bool killed = std::string_view{fault} == "kill";
      const auto text = until_failure(loader, killed ? Errc::RankKilled : Errc::RankExited).second;
      EXPECT_NE(text.find("data worker " + std::to_string(at / 2 % 2) + " of 2"), std::string::npos) << text;
      EXPECT_NE(text.find(killed ? "signal 9" : "exit code 3"), std::string::npos) << text;
      EXPECT_NE(text.find("batch " + std::to_string(at / 2)), std::string::npos) << text;
    }
  }
  EXPECT_EQ(here(), before);
}

TEST(DataProcesses, StartAnewAfterOneDied) {
  DataLoader loader{counting(8), processes(2, {{"size", 8}, {"fault_at", 7}, {"fault", "kill"}}, 2)};
  (void)until_failure(loader, Errc::RankKilled);
  auto it = loader.begin();
  EXPECT_EQ(indices(*it), (std::vector<std::int64_t>{0, 1}));
}

TEST(DataProcesses, NameTheWorkerThatHangsAfterTheTimeout) {
  const auto before = here();
  {
    auto options = processes(2, {{"size", 8}, {"fault_at", 2}, {"fault", "hang"}}, 2);
    options.timeout = 300ms;
    DataLoader loader{counting(8), options};
    const auto [batches, text] = until_failure(loader, Errc::DeadlinePassed);
    EXPECT_EQ(batches, (Batches{{0, 1}}));
    EXPECT_NE(text.find("data worker 1 of 2"), std::string::npos) << text;
  }
  EXPECT_EQ(here(), before);
}

TEST(DataProcesses, EndWhenTheLoopIsLeftAtAnyBatch) {
  const auto before = here();
  for (int leave = 0; leave <= 5; leave += 2) {
    DataLoader loader{counting(20), processes(2, {{"size", 20}}, 4)};
    auto it = loader.begin();
    for (int i = 0; i < leave && it != loader.end(); ++i) ++it;
    if (leave == 2) {  // a second epoch drops what the first had ordered
      EXPECT_EQ(epoch_of(loader).front(), (std::vector<std::int64_t>{0, 1, 2, 3}));
    }
  }
  EXPECT_EQ(here(), before);
}

TEST(DataProcesses, SayWhatIsWrongWithTheFactory) {
  const auto before = here();
  const auto text = [](const char* factory, std::int64_t size, Errc code) {
    DataLoader loader{counting(8), {.num_workers = 1, .worker_processes = WorkerProcesses{factory, {{"size", size}}}}};
    return until_failure(loader, code).second;
  };
  EXPECT_NE(text("nobody", 8, Errc::NotFound).find("there are: broken, numbers, stream"), std::string::npos);
  EXPECT_NE(text("broken", 8, Errc::DataMalformed).find("no such folder"), std::string::npos);
  EXPECT_NE(text("numbers", 7, Errc::InvalidArgument).find("has 7 samples, the loader's own 8"), std::string::npos);
  EXPECT_NE(text("stream", 8, Errc::InvalidArgument).find("iterable"), std::string::npos);
  EXPECT_EQ(here(), before);
}

TEST(DataProcesses, ResumeExactlyWithBatchesInFlight) {
  DataLoader whole{counting(22), {.batch_size = 3, .shuffle = true, .seed = 2}};
  const auto all = epoch_of(whole);
  auto options = processes(2, {{"size", 22}}, 3);
  options.shuffle = true;
  options.seed = 2;
  DataLoader loader{counting(22), options};
  std::vector<std::string> states{loader.state_dict()};
  for ([[maybe_unused]] const auto& batch : loader) states.push_back(loader.state_dict());
  for (std::size_t done = 0; done < states.size(); ++done) {
    loader.load_state_dict(states[done]);
    EXPECT_EQ(epoch_of(loader), Batches(all.begin() + static_cast<std::ptrdiff_t>(done), all.end()));
  }
}

}  // namespace
}  // namespace troupe
