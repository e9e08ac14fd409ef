// SPDX-License-Identifier: Apache-2.0
// The dirty logs of a VM (ipc/dirty_log.h), one for each process that writes guest memory, and what they say together.
// Broker, main thread; made or fetched before lock-down, as they are mapped. What is in them is hostile: it is counted,
// and only where there is memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "broker/kept_fds.h"
#include "ipc/dirty_log.h"
#include "ipc/fd.h"

namespace bulkhead::broker {

class DirtyLogs {
 public:
  // For these processes of a new VM. Throws FatalError.
  DirtyLogs(uint64_t memory_bytes, const std::vector<std::string>& writers);
  // Those that another broker made of the same VM, and of which AddTo gave the descriptors.
  DirtyLogs(uint64_t memory_bytes, const std::vector<std::string>& writers, KeptFds& kept);

  void AddTo(std::vector<int>& fds) const;
  // -1: that process has none.
  int FileOf(const std::string& writer) const;

  Result<void> SwitchOn();
  void SwitchOff();
  // Whether any is on, or says so.
  bool on() const;

  struct Count {
    std::vector<uint64_t> pages;  // of each writer
    uint64_t all = 0;             // pages that any of them wrote
  };
  // Takes all marks, so that none is left.
  Count Take();
  const std::vector<std::string>& writers() const { return writers_; }

 private:
  std::vector<MemoryRegion> regions_;
  std::vector<std::string> writers_;
  std::vector<OwnFd> files_;
  std::vector<DirtyLog> logs_;
};

}  // namespace bulkhead::broker
