#include <arrow/array/builder_binary.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/compute/api_scalar.h>
#include <arrow/compute/cast.h>
#include <arrow/compute/expression.h>

#include <troupe/dataset/expression.hpp>

#include <algorithm>

#include "arrow_errors.hpp"
#include "types.hpp"

namespace troupe {

namespace cp = arrow::compute;

namespace {

Expression function(const char* name, std::vector<cp::Expression> arguments, std::shared_ptr<cp::FunctionOptions> options = nullptr) {
  return Expression{cp::call(name, std::move(arguments), std::move(options))};
}

Expression binary(const char* name, const Expression& a, const Expression& b) { return function(name, {a.arrow(), b.arrow()}); }

template <class Builder, class Value>
Expression among(const Expression& one, const std::vector<Value>& values) {
  Builder builder;
  detail::check(builder.AppendValues(values), "is_in", Errc::InvalidArgument);
  auto set = detail::value(builder.Finish(), "is_in", Errc::InvalidArgument);
  return function("is_in", {one.arrow()}, std::make_shared<cp::SetLookupOptions>(set, cp::SetLookupOptions::SKIP));
}

}  // namespace

Expression::Expression(cp::Expression arrow) : arrow_(std::make_shared<const cp::Expression>(std::move(arrow))) {}
Expression::Expression(bool value) : Expression(cp::literal(value)) {}
Expression::Expression(int value) : Expression(cp::literal(static_cast<std::int64_t>(value))) {}
Expression::Expression(std::int64_t value) : Expression(cp::literal(value)) {}
Expression::Expression(double value) : Expression(cp::literal(value)) {}
Expression::Expression(const char* value) : Expression(std::string{value}) {}
Expression::Expression(const std::string& value) : Expression(cp::literal(value)) {}

Expression Expression::is_null() const { return Expression{cp::is_null(*arrow_)}; }
Expression Expression::is_not_null() const { return Expression{cp::is_valid(*arrow_)}; }
Expression Expression::is_in(const std::vector<std::int64_t>& values) const { return among<arrow::Int64Builder>(*this, values); }
Expression Expression::is_in(const std::vector<std::string>& values) const { return among<arrow::StringBuilder>(*this, values); }
Expression Expression::cast(const std::string& type) const {
  return function("cast", {*arrow_}, std::make_shared<cp::CastOptions>(cp::CastOptions::Safe(detail::type_named(type))));
}
std::string Expression::text() const { return arrow_->ToString(); }

std::vector<std::string> Expression::columns() const {
  std::vector<std::string> names;
  for (const auto& ref : cp::FieldsInExpression(*arrow_)) {
    const auto name = ref.name() ? *ref.name() : ref.ToString();
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

Expression col(const std::string& name) { return Expression{cp::field_ref(name)}; }

Expression call(const std::string& name, std::vector<Expression> arguments) {
  std::vector<cp::Expression> plain;
  for (const auto& argument : arguments) plain.push_back(argument.arrow());
  return function(name.c_str(), std::move(plain));
}

Expression if_else(const Expression& condition, const Expression& then, const Expression& otherwise) {
  return function("if_else", {condition.arrow(), then.arrow(), otherwise.arrow()});
}

Expression operator==(const Expression& a, const Expression& b) { return binary("equal", a, b); }
Expression operator!=(const Expression& a, const Expression& b) { return binary("not_equal", a, b); }
Expression operator<(const Expression& a, const Expression& b) { return binary("less", a, b); }
Expression operator<=(const Expression& a, const Expression& b) { return binary("less_equal", a, b); }
Expression operator>(const Expression& a, const Expression& b) { return binary("greater", a, b); }
Expression operator>=(const Expression& a, const Expression& b) { return binary("greater_equal", a, b); }
Expression operator&&(const Expression& a, const Expression& b) { return binary("and_kleene", a, b); }
Expression operator||(const Expression& a, const Expression& b) { return binary("or_kleene", a, b); }
Expression operator!(const Expression& a) { return function("invert", {a.arrow()}); }
// Checked: what overflows is an error, not another number.
Expression operator+(const Expression& a, const Expression& b) { return binary("add_checked", a, b); }
Expression operator-(const Expression& a, const Expression& b) { return binary("subtract_checked", a, b); }
Expression operator*(const Expression& a, const Expression& b) { return binary("multiply_checked", a, b); }
Expression operator/(const Expression& a, const Expression& b) { return binary("divide_checked", a, b); }

}  // namespace troupe
