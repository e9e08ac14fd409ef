// SPDX-License-Identifier: Apache-2.0
// What an image is opened for.
#pragma once

#include <cstdint>

namespace bulkhead::qcow2 {

enum class Purpose : uint8_t {
  kUse,
  kCheck,  // to be looked at as a whole: it may be marked dirty or corrupt, and its tables may lie on each other
};

}  // namespace bulkhead::qcow2
