#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace arrow::compute {
class Expression;
}

namespace troupe {

/// A computation over the columns of one row: `col("length") > 3 && col("text") != ""`. Immutable, cheap to copy.
///
/// Null in, null out, as in SQL; a filter drops rows for which it is null. Names and types are checked against the columns when an
/// expression is used. Numbers of different types meet in the wider one.
class Expression {
 public:
  Expression(bool value);                // NOLINT: literals are meant to be implicit
  Expression(int value);                 // NOLINT
  Expression(std::int64_t value);        // NOLINT
  Expression(double value);              // NOLINT
  Expression(const char* value);         // NOLINT
  Expression(const std::string& value);  // NOLINT
  explicit Expression(arrow::compute::Expression arrow);

  [[nodiscard]] Expression is_null() const;
  [[nodiscard]] Expression is_not_null() const;
  [[nodiscard]] Expression is_in(const std::vector<std::int64_t>& values) const;
  [[nodiscard]] Expression is_in(const std::vector<std::string>& values) const;
  [[nodiscard]] Expression is_in(std::initializer_list<const char*> values) const { return is_in(std::vector<std::string>(values.begin(), values.end())); }
  /// To a type named as in `ColumnTypes`; a value that does not fit is a Failure.
  [[nodiscard]] Expression cast(const std::string& type) const;

  [[nodiscard]] const arrow::compute::Expression& arrow() const noexcept { return *arrow_; }
  [[nodiscard]] std::string text() const;
  /// Names of the columns that it reads, each once.
  [[nodiscard]] std::vector<std::string> columns() const;

 private:
  std::shared_ptr<const arrow::compute::Expression> arrow_;
};

[[nodiscard]] Expression col(const std::string& name);
/// Any function of Arrow's registry that needs no options: call("utf8_length", {col("text")}).
[[nodiscard]] Expression call(const std::string& function, std::vector<Expression> arguments);
[[nodiscard]] Expression if_else(const Expression& condition, const Expression& then, const Expression& otherwise);

[[nodiscard]] Expression operator==(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator!=(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator<(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator<=(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator>(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator>=(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator&&(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator||(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator!(const Expression& a);
[[nodiscard]] Expression operator+(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator-(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator*(const Expression& a, const Expression& b);
[[nodiscard]] Expression operator/(const Expression& a, const Expression& b);  ///< of integers: cut towards 0

}  // namespace troupe
