// SPDX-License-Identifier: Apache-2.0
// A hostile file read by (offset, length): each range is checked against the file's size as a pair. vcpu-runner, main
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "ipc/guest_memory.h"

namespace bulkhead::runner {

class Image {
 public:
  // `label` stands before every error: "kernel 'vmlinuz'".
  static Result<Image> Open(int fd, std::string label);

  uint64_t size_bytes() const { return size_bytes_; }
  const std::string& label() const { return label_; }
  bool Contains(uint64_t offset, uint64_t length) const {
    return offset <= size_bytes_ && length <= size_bytes_ - offset;
  }

  Result<void> Read(uint64_t offset, std::span<std::byte> to) const;
  template <typename T>
  Result<T> ReadObject(uint64_t offset) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T object;
    if (auto result = Read(offset, std::as_writable_bytes(std::span(&object, 1))); !result.ok()) return result.error();
    return object;
  }
  // Copies a range of the file into guest memory.
  Result<void> Load(uint64_t offset, uint64_t length, const GuestMemory& memory, Gpa to) const;

  Error Fail(const std::string& what) const { return Error{EINVAL, label_ + ": " + what}; }

 private:
  Image(int fd, std::string label, uint64_t size_bytes) : fd_(fd), label_(std::move(label)), size_bytes_(size_bytes) {}

  int fd_;
  std::string label_;
  uint64_t size_bytes_;
};

// Sizes as messages give them.
std::string MiB(uint64_t bytes);

}  // namespace bulkhead::runner
