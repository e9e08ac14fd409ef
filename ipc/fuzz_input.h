// SPDX-License-Identifier: Apache-2.0
// For fuzz targets: an input taken apart from its front, and what has to hold whatever it was. One thread.
#pragma once

#include <capnp/message.h>
#include <capnp/serialize.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <type_traits>

#include "ipc/result.h"

namespace bulkhead::fuzz {

// A breach is a crash, which is what libFuzzer looks for.
inline void Require(bool holds) {
  if (!holds) std::abort();
}

class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : left_(std::as_bytes(std::span(data, size))) {}

  bool empty() const { return left_.empty(); }
  // Zeroes stand for what the input no longer has.
  template <typename T>
  T Take() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    const auto bytes = TakeBytes(sizeof value);
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  // A number below `limit`.
  size_t TakeBelow(size_t limit) { return Take<uint16_t>() % limit; }
  std::span<const std::byte> TakeBytes(size_t most) {
    const auto taken = left_.first(std::min(most, left_.size()));
    left_ = left_.subspan(taken.size());
    return taken;
  }

 private:
  std::span<const std::byte> left_;
};

// Saves a device's state, changes words of the message and loads it back: what a snapshot file may do.
template <typename Device>
void RestoreEdited(Device& device, FuzzInput& input) {
  capnp::MallocMessageBuilder message;
  device.Save(message.getRoot<capnp::AnyPointer>());
  kj::Array<capnp::word> words = capnp::messageToFlatArray(message);
  for (unsigned edits = 1 + input.Take<uint8_t>() % 4; edits != 0; --edits) {
    auto* const at = words.begin() + input.TakeBelow(words.size());
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    word ^= input.Take<uint64_t>();
    std::memcpy(at, &word, sizeof word);
  }
  try {
    capnp::FlatArrayMessageReader reader(words);
    (void)device.Restore(reader.getRoot<capnp::AnyPointer>()).ok();
  } catch (const kj::Exception&) {
    // The message's frame was hit: the RPC layer is what sees that.
  }
}

}  // namespace bulkhead::fuzz
