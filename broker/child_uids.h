// SPDX-License-Identifier: Apache-2.0
// User ids for child processes, when root starts Bulkhead: each process of each VM has one that no other has, so that
// what the kernel decides by user id keeps them apart too. Broker, main thread, before lock-down.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "ipc/fd.h"

namespace bulkhead::broker {

struct UidRange {
  uint32_t first = 0x7000'0000;  // beyond what user databases and containers commonly use
  uint32_t count = 0x0100'0000;
};

class ChildUids {
 public:
  // An ordinary user has one id, which all processes share; so has root in a container that maps no more. Throws
  // FatalError if `range` is not all there.
  explicit ChildUids(std::optional<UidRange> range);

  // An id that is this broker's until it ends; none where they are shared.
  std::optional<uint32_t> Take();
  // Where they are locked, for as long as somebody has it open; invalid: nowhere.
  const OwnFd& file() const { return file_; }
  // Why processes share one id, in one line; empty: they do not.
  const std::string& missing() const { return missing_; }

 private:
  UidRange range_;
  OwnFd file_;  // the byte at each id's number is locked by the broker that has taken it; invalid: shared
  uint32_t next_ = 0;
  std::set<uint32_t> taken_;
  std::string missing_;
};

// Whether the ids [range.first, range.first + range.count) are all mapped, by the lines of a uid_map
// (user_namespaces(7)).
bool IsMapped(const UidRange& range, const std::string& uid_map);

}  // namespace bulkhead::broker
