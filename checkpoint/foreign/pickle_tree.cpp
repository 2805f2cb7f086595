#include <algorithm>

#include "pickle_reader.hpp"

namespace troupe::detail {
namespace {

// A reference to a value that is there already takes two bytes; honest writers share numbers and small tuples.
constexpr std::uint64_t kUnfoldedFree = 100'000, kUnfoldedPerByte = 16;

const Items* children(const PickleStore& store, std::uint32_t node) {
  switch (store.nodes[node].kind) {
    case NodeKind::Tuple:
    case NodeKind::List:
    case NodeKind::Dict:
    case NodeKind::Set:
    case NodeKind::Object:
      return &store.items(node);
    default:
      return nullptr;
  }
}

struct Visit {
  std::uint64_t unfolded = 0;  ///< values below and including; 0: not finished
  std::uint32_t depth = 0;
  bool open = false;
};

struct Frame {
  std::uint32_t node;
  std::size_t next;
};

}  // namespace

void check_tree(const PickleStore& store, std::uint32_t root, const PickleOptions& options, std::uint64_t pickle_bytes) {
  const auto max_unfolded = std::min<std::uint64_t>(options.max_unfolded, kUnfoldedFree + kUnfoldedPerByte * pickle_bytes);
  const auto refuse = [&](const std::string& text) {
    throw Failure{Errc::FileCorrupt, store.what + ": the pickle " + text};
  };
  const auto too_deep = [&] {
    refuse("is nested deeper than " + std::to_string(options.max_depth) +
           " levels (PickleOptions::max_depth)");
  };
  std::vector<Visit> visits(store.nodes.size());
  std::vector<Frame> path{{root, 0}};
  while (!path.empty()) {
    auto& frame = path.back();
    auto& visit = visits[frame.node];
    const auto* const items = children(store, frame.node);
    if (frame.next == 0) {
      visit = {.unfolded = 0, .depth = 1, .open = true};
      if (path.size() > options.max_depth) too_deep();
    }
    if (items && frame.next < items->size()) {
      const auto child = (*items)[frame.next++];
      if (visits[child].open) refuse("contains itself");
      if (visits[child].unfolded == 0) {
        if (children(store, child)) {
          --frame.next;  // looked at again when it is finished
          path.push_back({child, 0});
          continue;
        }
        visits[child] = {.unfolded = 1, .depth = 1, .open = false};
      }
      visit.unfolded += visits[child].unfolded;
      visit.depth = std::max(visit.depth, visits[child].depth + 1);
      if (visit.depth > options.max_depth) too_deep();
      if (visit.unfolded > max_unfolded)
        refuse("unfolds to more than " + std::to_string(max_unfolded) +
               " values (at most PickleOptions::max_unfolded, less for a small pickle)");
      continue;
    }
    visit.unfolded += 1;
    visit.open = false;
    path.pop_back();
  }
}

}  // namespace troupe::detail
