// SPDX-License-Identifier: Apache-2.0
// The debug port that firmware writes its messages to. Chipset process, device thread; what is written is
// data, never interpreted. The guest never waits: what a reader does not take in time is bounded, and the
// rest is lost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "device-procs/chipset/chipset_state.capnp.h"
#include "device-procs/common/event_loop.h"
#include "ipc/counted_output.h"
#include "ipc/result.h"

namespace bulkhead::chipset {

class DebugConsole {
 public:
  static constexpr size_t kBufferBytes = 64 * 1024;

  // `output` is non-blocking, or invalid: then all is discarded. SIGPIPE is ignored in the process. A fresh
  // one is paused.
  DebugConsole(device::EventLoop& loop, OwnFd output, OutputStage stage);
  ~DebugConsole();
  DebugConsole(const DebugConsole&) = delete;
  DebugConsole& operator=(const DebugConsole&) = delete;

  uint8_t Read() const;
  void Write(uint8_t value);
  void Flush();  // the end of a batch

  void Pause() { paused_ = true; }
  void Resume();
  void Save(state::DebugConsoleState::Builder state) const;
  Result<void> Restore(state::DebugConsoleState::Reader state);

 private:
  void OutputEvent();
  void EndOutput();

  device::EventLoop& loop_;
  OwnFd output_;
  CountedOutput counted_;
  bool paused_ = true;
  bool blocked_ = false;  // waits for room in the output
  std::vector<std::byte> buffer_;
};

}  // namespace bulkhead::chipset
