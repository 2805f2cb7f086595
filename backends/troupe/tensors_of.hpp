#pragma once

#include <ATen/core/Tensor.h>

#include <iterator>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace troupe::detail {

template <class T>
inline constexpr bool is_tensor = std::is_same_v<std::remove_const_t<T>, at::Tensor>;

/// A struct that names its tensors: `auto tensors() { return std::tie(loss, logits); }`.
template <class T>
concept NamesItsTensors = requires(T& value) { value.tensors(); };
template <class T>
concept TupleLike = requires { std::tuple_size<std::remove_const_t<T>>::value; };
template <class T>
concept OptionalLike = requires(T& value) {
  value.has_value();
  *value;
};
/// Vectors, arrays, maps, batches; neither text nor what contains itself (paths, JSON).
template <class T>
concept Range = requires(T& value) {
  std::begin(value);
  std::end(value);
} && !std::is_convertible_v<const T&, std::string_view> && !std::is_same_v<std::remove_cvref_t<decltype(*std::begin(std::declval<T&>()))>, std::remove_const_t<T>>;

/// True for what may hold tensors that `for_each_tensor` finds.
template <class T>
inline constexpr bool is_known = is_tensor<T> || NamesItsTensors<T> || TupleLike<T> || OptionalLike<T> || Range<T>;

/// Calls f(tensor) for every tensor in `value`, undefined ones too, always in the same order: a tensor, or an optional,
/// pair, tuple, range or struct with `tensors()` of what has them. Other values have none.
template <class T, class F>
void for_each_tensor(T& value, F&& f) {
  if constexpr (is_tensor<T>) {
    f(value);
  } else if constexpr (NamesItsTensors<T>) {
    std::apply([&f](auto&... part) { (for_each_tensor(part, f), ...); }, value.tensors());
  } else if constexpr (Range<T>) {
    for (auto&& element : value) for_each_tensor(element, f);
  } else if constexpr (TupleLike<T>) {
    std::apply([&f](auto&... part) { (for_each_tensor(part, f), ...); }, value);
  } else if constexpr (OptionalLike<T>) {
    if (value.has_value()) for_each_tensor(*value, f);
  }
}

/// The tensors of `value`, undefined ones too.
template <class T>
[[nodiscard]] std::vector<at::Tensor> tensors_of(T& value) {
  std::vector<at::Tensor> result;
  for_each_tensor(value, [&result](const at::Tensor& tensor) { result.push_back(tensor); });
  return result;
}

/// Puts `tensors` in the places of those that `tensors_of` gives.
template <class T>
void put_tensors(T& value, const std::vector<at::Tensor>& tensors) {
  auto next = tensors.begin();
  for_each_tensor(value, [&next](at::Tensor& tensor) { tensor = *next++; });
}

}  // namespace troupe::detail
