// SPDX-License-Identifier: Apache-2.0
// How a VM ended. Broker, main thread.
#pragma once

#include <string>

#include "ipc/broker.capnp.h"

namespace bulkhead::broker {

// Not an aggregate, and in a file of its own: inlined into KJ's promises, g++ 12 takes the string of one that is not
// there for uninitialized.
struct VmEnd {
  VmEnd(control::ExitReport::Kind kind, std::string detail);
  VmEnd(const VmEnd& other);
  VmEnd(VmEnd&& other) noexcept;
  VmEnd& operator=(const VmEnd& other);
  VmEnd& operator=(VmEnd&& other) noexcept;
  ~VmEnd();

  control::ExitReport::Kind kind;
  std::string detail;
};

}  // namespace bulkhead::broker
