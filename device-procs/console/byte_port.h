// SPDX-License-Identifier: Apache-2.0
// The guest side's view of the outside of a console. Device thread. What comes from the outside is hostile; sizes are
// the caller's.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

namespace bulkhead::device {

class BytePort {
 public:
  virtual ~BytePort() = default;
  // Bytes taken; fewer when the outside is slow: the writable handler is called when there is room again.
  virtual size_t Write(std::span<const std::byte> bytes) = 0;
  // Bytes got now; 0 if there are none: the readable handler is called when there are.
  virtual size_t Read(std::span<std::byte> bytes) = 0;
  virtual void SetHandlers(std::function<void()> readable, std::function<void()> writable) = 0;
};

}  // namespace bulkhead::device
