// SPDX-License-Identifier: Apache-2.0
// The runtime of every device process: connects to the broker, receives grants, builds the device, drops everything,
// locks down, says ready, reads what may be hostile, then serves. Two threads: the main thread speaks RPC with the
// broker (control plane); the device thread owns the device and serves exits, kicks and the device's own descriptors.
#pragma once

#include <capnp/any.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device-procs/common/device_model.h"
#include "device-procs/common/event_loop.h"
#include "device-procs/common/recorder.h"
#include "ipc/child.h"
#include "ipc/counted_output.h"
#include "ipc/guest_memory.h"
#include "ipc/syscall_policy.h"

namespace bulkhead::device {

struct FunctionResources {
  uint8_t slot = 0;
  uint64_t bar0_address = 0;
  std::vector<OwnFd> kicks;       // eventfd of each queue
  std::vector<OwnFd> interrupts;  // eventfd of each MSI-X vector
};

struct LineResources {
  OwnFd signal;
  OwnFd resample;  // invalid for an edge-triggered line
};

// One end of a packet link (ipc/packet_ring.h).
struct PacketResources {
  OwnFd memory;
  OwnFd doorbell;  // eventfd that wakes this process
  OwnFd peer;      // eventfd that wakes the other
};

// What one device is made of. The settings come from the broker; they are only valid during creation.
struct DeviceContext {
  std::string name;
  EventLoop* loop = nullptr;
  const GuestMemory* memory = nullptr;  // null if none was granted
  std::vector<FunctionResources> functions;
  std::vector<LineResources> lines;
  std::vector<OwnFd> files;
  std::vector<OutputStage> stages;
  std::optional<PacketResources> packets;
  capnp::AnyPointer::Reader settings;
  Recorder* recorder = nullptr;  // of the process
  // That of the process's `index`-th output; none from a broker that started before there were any.
  OutputStage TakeStage(size_t index) { return index < stages.size() ? std::move(stages[index]) : OutputStage(); }
  // To the broker; from the device thread, does not block. Null but in the chipset process.
  std::function<void()> power_off;
  std::function<void()> reset;
};

// One kind of device process. `create` runs before lock-down and may throw FatalError; it reads nothing hostile.
struct DeviceKind {
  SyscallPolicy policy;
  std::function<std::unique_ptr<DeviceModel>(DeviceContext)> create;
  size_t heap_bytes = kHeapBytes;  // all that it can ever allocate
  LandlockScope scope = LandlockScope::kAll;
};

// The whole life of the process; the value is main's.
int RunDeviceProcess(const DeviceKind& kind, int argc, char** argv);

// Makes a granted stream non-blocking, so that a slow outside never stops the device thread. Before lock-down.
void SetNonBlocking(const OwnFd& fd);

// The system calls that this runtime itself needs in any device process, each with its reason. A device's own policy
// starts from these.
SyscallPolicy RuntimePolicy();

}  // namespace bulkhead::device
