#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <troupe/object_store.hpp>
#include <troupe/retrying_store.hpp>
#include <utility>

namespace troupe {

/// What becomes of one call.
struct Fault {
  StoreError error = StoreError::Server;
  bool after = false;  ///< the store has done it, but the answer is lost
};

/// A store that fails when told to. Calls are numbered from 0.
class FaultyStore final : public ObjectStore {
 public:
  using Plan = std::function<std::optional<Fault>(int call, const std::string& verb, const std::string& key)>;

  FaultyStore(std::unique_ptr<ObjectStore> store, Plan plan) : store_(std::move(store)), plan_(std::move(plan)) {}
  int calls() const { return calls_; }

  std::string url() const override { return store_->url(); }
  void check() override {
    run("check", "", [&] { store_->check(); });
  }
  void put(const std::string& key, const std::filesystem::path& file) override {
    run("put", key, [&] { store_->put(key, file); });
  }
  void get(const std::string& key, std::uint64_t begin, std::span<std::byte> into) override {
    const auto fault = next("get", key);
    if (!fault) return store_->get(key, begin, into);
    store_->get(key, begin, into.first(into.size() / 2));  // a body that breaks off
    fail("get", key, *fault);
  }
  std::optional<ObjectInfo> head(const std::string& key) override {
    return run("head", key, [&] { return store_->head(key); });
  }
  std::vector<ObjectInfo> list(const std::string& prefix) override {
    return run("list", prefix, [&] { return store_->list(prefix); });
  }
  void remove(const std::string& key) override {
    run("remove", key, [&] { store_->remove(key); });
  }

 private:
  std::optional<Fault> next(const std::string& verb, const std::string& key) { return plan_ ? plan_(calls_++, verb, key) : std::nullopt; }
  [[noreturn]] void fail(const std::string& verb, const std::string& key, const Fault& fault) {
    throw StoreFailure{fault.error, "cannot " + verb + " " + key + ": " + std::string(name(fault.error)) + " (a test's)"};
  }
  template <class F>
  auto run(const std::string& verb, const std::string& key, F&& call) -> decltype(call()) {
    const auto fault = next(verb, key);
    if (!fault) return call();
    if (fault->after) (void)call();
    fail(verb, key, *fault);
  }

  std::unique_ptr<ObjectStore> store_;
  Plan plan_;
  std::atomic<int> calls_{0};
};

/// Time that passes only in pauses.
class FakeStoreClock final : public StoreClock {
 public:
  std::chrono::steady_clock::time_point now() override { return std::chrono::steady_clock::time_point{} + paused; }
  bool pause(std::chrono::milliseconds time) override {
    paused += time;
    ++pauses;
    return !interrupted;
  }
  void interrupt() noexcept override { interrupted = true; }

  std::chrono::milliseconds paused{0};
  int pauses = 0;
  std::atomic<bool> interrupted{false};
};

}  // namespace troupe
