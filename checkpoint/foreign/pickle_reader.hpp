#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <troupe/errors.hpp>
#include <troupe/foreign_pickle.hpp>
#include <vector>

#include "pickle_names.hpp"
#include "pickle_store.hpp"

namespace troupe::detail {

/// The bytes of the storage with this key; throws Failure when there is none.
using StorageSource = std::function<std::span<std::byte>(std::string_view key)>;

/// Interprets the opcodes of pickle protocols 2 to 5 that torch.save and pickle.dump write, without
/// recursion, into a PickleStore. Whatever would import, call or construct becomes data or is
/// refused.
class PickleReader {
 public:
  /// `base` is the place of `bytes` in the file, for errors. `store` outlives this.
  PickleReader(std::span<const std::byte> bytes, std::uint64_t base, const PickleOptions& options,
               StorageSource storages, PickleStore& store);

  /// Reads up to STOP and checks that the result is a finite tree (pickle_tree.cpp); its node.
  [[nodiscard]] std::uint32_t read();

 private:
  struct Storage {
    std::span<std::byte> bytes;
    std::uint64_t elements = 0;
    std::optional<TorchDtype> dtype;  ///< nothing for untyped bytes
  };

  [[noreturn]] void refuse(const std::string& text, Errc code = Errc::FileCorrupt) const;
  [[noreturn]] void refuse_unsupported(const std::string& text) const {
    refuse(text, Errc::Unsupported);
  }

  // Input: every read is checked against what is left.
  [[nodiscard]] std::span<const std::byte> take(std::uint64_t count);
  template <class T>
  [[nodiscard]] T take_number();
  [[nodiscard]] std::string_view take_text(std::uint64_t count);
  [[nodiscard]] std::string_view take_line();

  // Values.
  std::uint32_t make(NodeKind kind);
  std::uint32_t make_integer(NodeKind kind, std::int64_t value);
  std::uint32_t make_text(NodeKind kind, std::string_view text);
  std::uint32_t make_items(NodeKind kind, Items items);
  std::uint32_t make_tensor(ForeignTensor tensor);
  std::uint32_t make_bytes(std::string bytes);
  /// Bounds what one memoized value, used again and again, can make of a small file.
  void count_copy(std::uint64_t bytes) const;
  [[nodiscard]] NodeKind kind(std::uint32_t node) const noexcept { return store_.nodes[node].kind; }
  [[nodiscard]] std::string_view text_of(std::uint32_t node, std::string_view what) const;
  [[nodiscard]] std::int64_t integer_of(std::uint32_t node, std::string_view what) const;
  [[nodiscard]] const Items& tuple_of(std::uint32_t node, std::string_view what) const;

  // Stack.
  void push(std::uint32_t node);
  [[nodiscard]] std::uint32_t pop();
  [[nodiscard]] std::uint32_t top() const;
  [[nodiscard]] Items pop_to_mark();
  void remember(std::uint64_t index);
  void recall(std::uint64_t index);

  // Opcodes, by group; false when the group does not have it.
  [[nodiscard]] bool step_scalar(std::uint8_t op);
  [[nodiscard]] bool step_text(std::uint8_t op);
  [[nodiscard]] bool step_container(std::uint8_t op);
  [[nodiscard]] bool step_memo(std::uint8_t op);
  [[nodiscard]] bool step_object(std::uint8_t op);
  void long_integer(std::uint64_t count);
  void append(const Items& items);
  void set_items(const Items& items);

  // Names and what would be calls (pickle_objects.cpp).
  void push_name(std::string_view module, std::string_view name);
  [[nodiscard]] bool is_data_class(std::string_view full) const;
  [[nodiscard]] Meaning meaning_of(std::uint32_t node) const;
  void reduce();
  void new_object();
  void build();
  [[nodiscard]] std::uint32_t call(std::uint32_t callable, std::uint32_t arguments);
  [[nodiscard]] std::uint32_t typed_tensor(const Items& arguments);
  [[nodiscard]] std::uint32_t dict_from(const Items& arguments, bool factory_first);
  [[nodiscard]] std::uint32_t set_from(const Items& arguments);
  [[nodiscard]] std::uint32_t encode(const Items& arguments);
  [[nodiscard]] std::uint32_t get_attribute(const Items& arguments);
  [[nodiscard]] std::uint32_t device(const Items& arguments);

  // Tensors (pickle_tensors.cpp).
  void persistent_id();
  [[nodiscard]] std::uint32_t tensor(const Items& arguments, Meaning meaning);
  [[nodiscard]] ForeignTensor view(const Storage& storage, TorchDtype dtype, std::int64_t offset,
                                   const Items& sizes, const Items& strides) const;
  [[nodiscard]] std::uint32_t numpy_type(const Items& arguments);
  [[nodiscard]] std::uint32_t numpy_scalar(const Items& arguments);
  [[nodiscard]] ForeignTensor numpy_array(std::uint32_t shape, std::uint32_t dtype,
                                          std::uint32_t bytes) const;

  std::span<const std::byte> bytes_;
  std::uint64_t base_;
  const PickleOptions& options_;
  StorageSource source_;
  PickleStore& store_;
  std::uint64_t at_ = 0;
  std::uint64_t op_at_ = 0;
  std::uint64_t items_ = 0;           ///< of all containers, as they were made
  mutable std::uint64_t copied_ = 0;  ///< bytes
  std::vector<std::uint32_t> stack_;
  std::vector<std::size_t> marks_;
  std::vector<std::uint32_t> memo_;
  std::vector<Storage> storages_;
  std::vector<KnownName> meanings_;  ///< as long as store_.names
  std::map<std::string, std::uint32_t, std::less<>> names_;
  std::map<std::string, std::span<std::byte>, std::less<>> loaded_;
  std::uint32_t none_ = 0;
  std::uint32_t true_ = 0;
  std::uint32_t false_ = 0;
};

/// Throws Failure{FileCorrupt} unless what hangs at `root` is a tree of at most `max_depth` levels
/// that unfolds to at most `max_unfolded` values, and not to very many for a pickle of so few bytes.
void check_tree(const PickleStore& store, std::uint32_t root, const PickleOptions& options, std::uint64_t pickle_bytes);

}  // namespace troupe::detail
