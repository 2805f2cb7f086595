#pragma once

#include <troupe/config.hpp>
#include <troupe/data/datasets.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string>

namespace troupe {

/// What a worker process loads from: one of the two, and how it makes batches (empty: default_collate).
struct WorkerData {
  std::shared_ptr<const MapDataset> map = nullptr;
  std::shared_ptr<const IterableDataset> iterable = nullptr;
  Collate collate = {};
};

/// Data sets cannot be sent to a process: each worker makes its own, by a name that `main` knows, as train functions are found.
using WorkerDataFactory = std::function<WorkerData(const Config&)>;
using WorkerDataFactories = std::map<std::string, WorkerDataFactory, std::less<>>;

/// DataLoaderOptions::worker_processes: which factory, and what it is called with.
struct WorkerProcesses {
  std::string factory;
  Config config = {};
};

/// First thing in `main`, before a Session: in a process that a DataLoader started, loads batches for it and ends the
/// process; in any other it returns at once.
void serve_data_workers(const WorkerDataFactories& factories);

}  // namespace troupe
