// SPDX-License-Identifier: Apache-2.0
// What becomes of the processes of a VM that is under load, by chance, and a table of it. Held processes and those
// without memory are for who may do that (ProcessCgroup).
#pragma once

#include <sys/types.h>

#include <array>
#include <functional>
#include <map>
#include <random>
#include <string>

namespace bulkhead::test {

class Faults {
 public:
  // Waits for what it is given; false if that does not come.
  using Wait = std::function<bool(const std::function<bool()>&)>;
  Faults(std::string vm, unsigned seed, Wait wait);

  // A fault by chance, of the process that serves this device, if there is one. Whether another one has to come.
  bool Do(const std::string& device, pid_t pid);
  // The broker's death, if there is one.
  bool KillBroker(pid_t pid);
  uint64_t Random() { return random_(); }
  unsigned total() const;

  // Counts by process and kind, and from what the VM's processes said, how long it took until the next one served.
  std::string Table(const std::string& said) const;

 private:
  enum Kind { kKilled, kStopped, kLetGo, kHeld, kHeldTooLong, kOutOfMemory, kKinds };
  static constexpr std::array<const char*, kKinds> kNames{"killed", "stopped",       "stopped and let go",
                                                          "held",   "held too long", "out of memory"};
  // By chance, of those that may be.
  Kind Choose(bool may_hold);
  bool HoldTooLong(const std::string& device, pid_t pid);
  bool Count(const std::string& process, Kind kind, bool done);

  const std::string vm_;
  std::mt19937 random_;
  const Wait wait_;
  std::map<std::string, std::array<unsigned, kKinds>> counts_;
};

}  // namespace bulkhead::test
