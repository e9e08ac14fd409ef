// SPDX-License-Identifier: Apache-2.0
// The host's end of a tap at which a guest sends numbered frames (tests/payload/lib/numbered_frame.h): each is looked
// at, and answered by one of its own, by a thread of the test. As on a wire, one may be lost or come twice.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "tests/process/tap_network.h"

namespace bulkhead::test {

class Wire {
 public:
  // The network outlives it.
  explicit Wire(const TapNetwork& network);
  ~Wire();

  // Frames that were sent to the guest, and the highest number of these that it says it has got.
  uint32_t sent() const { return sent_; }
  uint32_t arrived() const { return arrived_; }
  // The number of the guest's last frame.
  uint32_t heard() const { return heard_; }
  // What was wrong first: a frame that nobody sent, or that came after a later one; empty if nothing was.
  std::string Fault() const;

 private:
  void Serve();
  std::string Take(const std::string& frame);
  void Answer(const std::string& frame);

  const TapNetwork& network_;
  std::atomic<uint32_t> sent_ = 0, arrived_ = 0, heard_ = 0;
  mutable std::mutex mutex_;  // of the fault
  std::string fault_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace bulkhead::test
