// SPDX-License-Identifier: Apache-2.0
// Descriptors that were kept together, taken out in the order in which they were put in. Broker, main thread.
#pragma once

#include <utility>
#include <vector>

#include "ipc/fd.h"

namespace bulkhead::broker {

class KeptFds {
 public:
  explicit KeptFds(std::vector<OwnFd> fds) : fds_(std::move(fds)) {}

  // A broker of a version before may have kept fewer.
  bool empty() const { return next_ == fds_.size(); }
  // Throws FatalError where there is none left.
  OwnFd Take() {
    if (empty()) throw FatalError("not all that the last broker kept is there");
    return std::move(fds_[next_++]);
  }

 private:
  std::vector<OwnFd> fds_;
  size_t next_ = 0;
};

}  // namespace bulkhead::broker
