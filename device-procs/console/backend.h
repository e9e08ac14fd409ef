// SPDX-License-Identifier: Apache-2.0
// The outside of a console as a pair of descriptors: terminal, pipe, socket or file. Console process, device
// thread. What comes from the outside is passed on, never interpreted.
//
// The guest never waits for an outside that is not there: without a connection, after its peer hung up, or on
// a full disk, output is discarded. A peer that is there but slow is waited for by whoever writes (see
// BytePort).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "device-procs/common/event_loop.h"
#include "device-procs/console/byte_port.h"
#include "ipc/counted_output.h"

namespace bulkhead::device {

class FdBytePort final : public BytePort {
 public:
  using Log = std::function<void(const std::string&)>;
  using Clock = std::function<int64_t()>;
  static int64_t MonotonicNs();

  // Nothing is attached yet. SIGPIPE is ignored in the process (KJ's event port sees to that). `log` takes a
  // line about lost output, at most one a minute by `clock_ns`.
  FdBytePort(EventLoop& loop, Log log, OutputStage stage = {}, Clock clock_ns = MonotonicNs);
  ~FdBytePort() override;
  FdBytePort(const FdBytePort&) = delete;
  FdBytePort& operator=(const FdBytePort&) = delete;

  // Connects the console, in place of what was connected. Both descriptors are non-blocking and not the same
  // one; either may be invalid: no input, or output discarded.
  void Attach(OwnFd input, OwnFd output);
  void Detach();
  // False once neither direction is connected any more: the peer is gone, or was never there.
  bool attached() const { return input_.valid() || output_.valid(); }

  // Part of the saved state: a successor writes nothing again.
  uint64_t written() const { return counted_.written(); }
  void GoOn(uint64_t written) { counted_.GoOn(written); }

  size_t Write(std::span<const std::byte> bytes) override;
  size_t Read(std::span<std::byte> bytes) override;
  void SetHandlers(std::function<void()> readable, std::function<void()> writable) override;

 private:
  void EndInput();
  void EndOutput();
  void InputEvent();
  void OutputEvent();
  void LogLostOutput(int code);

  EventLoop& loop_;
  Log log_;
  Clock clock_ns_;
  OwnFd input_;
  OwnFd output_;
  CountedOutput counted_;
  bool output_blocked_ = false;  // a writer waits for room
  bool logged_ = false;
  int64_t logged_at_ns_ = 0;
  std::function<void()> readable_;
  std::function<void()> writable_;
};

}  // namespace bulkhead::device
