#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <troupe/foreign_pickle.hpp>
#include <vector>

namespace troupe::detail {

/// What a node of the store is: PickleKind, and what only exists while a pickle is read.
enum class NodeKind : std::uint8_t {
  None,
  Bool,
  Int,
  BigInt,
  Float,
  String,
  Bytes,
  Tuple,
  List,
  Dict,
  Set,
  Tensor,
  Dtype,
  Device,
  Name,
  Object,
  Storage,     ///< what a persistent id names; only tensors use it
  NumpyDtype,  ///< numpy.dtype('f4')
  NumpyArray   ///< numpy's empty array, before its state is set
};

/// 16 bytes, so that a hostile pickle of one-byte opcodes stays small in memory.
struct Node {
  NodeKind kind = NodeKind::None;
  std::uint32_t size = 0;  ///< of text, in bytes
  union {
    std::int64_t integer = 0;  ///< Int, Bool, Dtype
    double real;
    const char* text;     ///< String, Bytes, BigInt, Device: in the file or in `texts`
    std::uint64_t index;  ///< Tuple, List, Dict, Set, Object: in `lists`; Tensor: in `tensors`;
                          ///< Name: in `names`
  };
};

/// Items of a container. A Dict's alternate keys and values; an Object's are its Name, its
/// arguments and, when it has one, its state.
using Items = std::vector<std::uint32_t>;

/// One pickle's values. Immutable once read.
struct PickleStore {
  std::string what;
  std::vector<Node> nodes;
  std::vector<Items> lists;
  std::vector<ForeignTensor> tensors;
  std::vector<std::string> names;
  std::deque<std::string> texts;  ///< bytes that the file holds in another encoding
  std::shared_ptr<void> keep;     ///< the file's bytes

  [[nodiscard]] std::string_view text(std::uint32_t node) const noexcept {
    return {nodes[node].text, nodes[node].size};
  }
  [[nodiscard]] const Items& items(std::uint32_t node) const noexcept {
    return lists[nodes[node].index];
  }
};

}  // namespace troupe::detail
