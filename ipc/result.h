// SPDX-License-Identifier: Apache-2.0
// Errors in two forms. Before a process enters its sandbox, errors are exceptions (FatalError), caught once in
// main and printed as one line. After it, code that touches guest or peer bytes returns Result<T>.
// Linked by every process; any thread.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace bulkhead {

// A failed operation: an errno value that classifies it and one line that names what failed, on what and why.
struct Error {
  int code = EINVAL;
  std::string message;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit by design
  Result(Error error) : value_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit by design

  bool ok() const { return value_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return std::get<0>(value_); }
  const T& value() const& { return std::get<0>(value_); }
  T&& value() && { return std::get<0>(std::move(value_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const { return std::get<1>(value_); }

 private:
  std::variant<T, Error> value_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}  // NOLINT: implicit by design

  bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  const Error& error() const { return error_; }

 private:
  Error error_;
  bool ok_ = true;
};

// An Error from errno: "<what>: <strerror>".
Error ErrnoError(int code, const std::string& what);

// Thrown before lock-down only; what() is the whole line the user sees.
class FatalError : public std::runtime_error {
 public:
  explicit FatalError(const std::string& line, int code = EINVAL) : std::runtime_error(line), code_(code) {}
  explicit FatalError(const Error& error) : std::runtime_error(error.message), code_(error.code) {}
  int code() const { return code_; }

 private:
  int code_;
};

// Throws FatalError("<what>: <strerror(errno)>").
[[noreturn]] void ThrowErrno(const std::string& what);

// The value of a result, or FatalError: for set-up code, where an error ends the process.
template <typename T>
T OrThrow(Result<T> result) {
  if (!result.ok()) throw FatalError(result.error());
  if constexpr (!std::is_void_v<T>) return std::move(result).value();
}

}  // namespace bulkhead
