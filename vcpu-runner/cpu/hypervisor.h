// SPDX-License-Identifier: Apache-2.0
// The processor as the runner sees it: create, run until an exit, registers, memory slots, interrupts, dirty pages.
// KVM implements it; nothing outside the implementation knows KVM. A Vcpu is run by its own thread; a Vm's methods
// may be called from any vCPU thread and the main thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "ipc/guest_memory.h"
#include "ipc/result.h"
#include "vcpu-runner/cpu/registers.h"

namespace bulkhead::runner {

// `count` accesses of `width` bytes at one port; `data` is what is written, or where the values read go.
struct PioExit {
  uint16_t port = 0;
  uint8_t width = 0;
  bool is_write = false;
  std::span<std::byte> data;  // width * count bytes
};

struct MmioExit {
  Gpa address;
  bool is_write = false;
  std::span<std::byte> data;  // 1 to 8 bytes
};

struct InterruptedExit {};  // Interrupt was called, or a signal came
struct ShutdownExit {};     // triple fault: the processor asks for a reset
struct FailureExit {        // the host cannot go on with this vCPU
  std::string line;
};

using Exit = std::variant<PioExit, MmioExit, InterruptedExit, ShutdownExit, FailureExit>;

class Vcpu {
 public:
  virtual ~Vcpu() = default;
  // Puts the boot processor where a boot protocol wants it. Before its thread runs it.
  virtual Result<void> SetStartState(const StartState& state) = 0;
  // Runs the guest until something needs doing. The spans of an exit stay valid until the next Run, which finishes
  // the access. vCPU thread.
  // On the thread that will call Run, before it does and before lock-down.
  virtual void Bind() = 0;
  virtual Exit Run() = 0;
  // Makes the current or next Run return InterruptedExit. Any thread.
  virtual void Interrupt() = 0;
};

class Vm {
 public:
  virtual ~Vm() = default;
  virtual Result<void> AddMemory(const GuestMemory& memory) = 0;
  virtual Result<std::unique_ptr<Vcpu>> CreateVcpu(uint32_t index, uint32_t vcpu_count) = 0;

  // Raises interrupt line `gsi` whenever the eventfd is signalled. With `resample_fd` >= 0 the line is level-triggered:
  // it stays asserted until the guest acknowledges it, which signals resample_fd.
  virtual Result<void> ConnectLine(uint32_t gsi, int signal_fd, int resample_fd) = 0;
  // Delivers a message-signalled interrupt whenever the eventfd is signalled, once it has a route.
  virtual Result<uint32_t> ConnectMessage(int signal_fd) = 0;  // the new GSI
  virtual Result<void> SetMessageRoute(uint32_t gsi, uint64_t address, uint32_t data) = 0;

  // Turns guest writes at `address` into signals of `kick_fd` without an exit.
  virtual Result<void> ConnectKick(Gpa address, int kick_fd) = 0;
  virtual Result<void> DisconnectKick(Gpa address, int kick_fd) = 0;

  // Whether pages that vCPUs write are logged. A main thread's.
  virtual Result<void> SetDirtyLogging(bool on) = 0;
  // Dirty pages since the last call, one bit a 4 KiB page of the memory's region `region`; logging must be on. Valid
  // until the next call.
  virtual Result<std::span<const uint64_t>> TakeDirtyPages(size_t region) = 0;
};

}  // namespace bulkhead::runner
