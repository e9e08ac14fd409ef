// SPDX-License-Identifier: Apache-2.0
// What the runtime of a device process asks of the device in it. All calls come on the device thread, one at a time,
// so a device needs no locks of its own (one that starts queue threads synchronizes with those itself). Regions,
// offsets, widths and values come from the guest through the runner, and from a runner that the guest may own:
// hostile. A bad access reads all ones and writes nothing; it never aborts the process.
#pragma once

#include <capnp/any.h>

#include <cstdint>
#include <optional>

#include "ipc/control.capnp.h"
#include "ipc/fd.h"
#include "ipc/result.h"

namespace bulkhead::device {

// The route of one MSI-X vector: what the function would write, and where (PCIe 4.0 §6.1.4).
struct MsiRoute {
  uint16_t vector = 0;
  uint64_t address = 0;
  uint32_t data = 0;
  bool deliver = false;  // an interrupt was pending: the runner raises it once the route is installed
};

// Where a PCI function answers after a configuration write: its BAR 0, if memory decoding is on.
struct PciDecode {
  bool memory_enabled = false;
  uint64_t bar0_address = 0;
};

// What the runner must know before the writing vCPU goes on. Only writes that the runner waits for can have one
// (configuration space and the MSI-X structures).
struct WriteEffect {
  std::optional<PciDecode> decode;
  std::optional<MsiRoute> route;
};

inline uint64_t AllOnes(uint8_t width) { return width >= 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * width)) - 1; }

class DeviceModel {
 public:
  virtual ~DeviceModel() = default;

  // After lock-down, once, before everything else: reads what the device was given that somebody hostile may have
  // written, such as an image's header. An error is one line for the user, and the device's end.
  virtual Result<void> ReadInput() { return {}; }

  // `region` numbers the process's regions in the order of its grants; `width` is 1, 2, 4 or 8 bytes; the bytes
  // [offset, offset + width) lie inside the region (the runtime has checked it).
  virtual uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) = 0;
  virtual WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) = 0;

  // The exits that were there have all been handled: the time to pass on what several writes gathered.
  virtual void Flush() {}

  // After Pause returns the device has no request in flight and touches neither guest memory nor interrupts until
  // Resume. A fresh device is paused; the runtime resumes it when the VM starts.
  virtual void Pause() = 0;
  virtual void Resume() = 0;

  // The device's whole state as its versioned Cap'n Proto struct; only while paused. Restore takes what any earlier
  // version wrote; the bytes may be hostile (a snapshot file): an error leaves the device unusable, not the process.
  // Save is called while the device works, too, for its journal (recorder.h): what a queue's own thread changes is left
  // out then, as the queue's log has it.
  virtual void Save(capnp::AnyPointer::Builder state) const = 0;
  virtual Result<void> Restore(capnp::AnyPointer::Reader state) = 0;
  // So much time has passed since the state that was restored was saved, while the guest went on.
  virtual void CatchUp(int64_t /*elapsed_ns*/) {}
  // Whether a read there changes the device's state.
  virtual bool ReadChanges(uint16_t /*region*/, uint64_t /*offset*/) const { return false; }

  // What the host's user does to some devices; others ignore it.
  virtual void PressPowerButton() {}
  virtual void Attach(uint8_t /*port*/, OwnFd /*input*/, OwnFd /*output*/) {}
  virtual void SetThrottle(control::DiskThrottle::Reader /*limits*/) {}
  virtual void LoseOutside() {}
  virtual control::LinkState SetLink(bool /*up*/) { return control::LinkState::DOWN; }
  virtual void ReportNet(control::NetReport::Builder /*report*/) const {}
  // The dirty log was switched on or off: for the kernel, where that writes to guest memory by itself.
  virtual void FollowLog() {}

  // Asks each thread that serves its queues for a sign of life, and waits for none: what Pulse::Ask (pulse.h) says of
  // the slowest.
  virtual unsigned AskPulse() { return 0; }
};

}  // namespace bulkhead::device
