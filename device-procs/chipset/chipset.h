// SPDX-License-Identifier: Apache-2.0
// The chipset process's device: the models that make a PC of a virtual machine, behind the regions of
// regions.h. Device thread; regions, offsets and values are hostile.
#pragma once

#include <cstdint>
#include <functional>

#include "device-procs/chipset/acpi_pm.h"
#include "device-procs/chipset/clock.h"
#include "device-procs/chipset/cmos_rtc.h"
#include "device-procs/chipset/debug_console.h"
#include "device-procs/chipset/host_bridge.h"
#include "device-procs/chipset/i8042.h"
#include "device-procs/chipset/level_line.h"
#include "device-procs/chipset/regions.h"
#include "device-procs/chipset/reset_control.h"
#include "device-procs/common/device_model.h"

namespace bulkhead::chipset {

struct ChipsetSettings {
  uint64_t memory_bytes = 0;
  OwnFd debug_output;  // invalid: the debug port's output is discarded
  OutputStage debug_stage = {};
  OwnFd rtc_irq;     // edge
  OwnFd sci_assert;  // level
  OwnFd sci_resample;
  Clock realtime_ns = RealtimeNs;
  Clock monotonic_ns = MonotonicNs;
};

class Chipset final : public device::DeviceModel {
 public:
  // Before lock-down (timers are made here); throws FatalError. `power_off` and `reset` run on the device
  // thread and do not block; a guest may cause them any number of times.
  Chipset(device::EventLoop& loop, ChipsetSettings settings, std::function<void()> power_off,
          std::function<void()> reset);

  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override;
  device::WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override;
  void Flush() override;
  void Pause() override;
  void Resume() override;
  void Save(capnp::AnyPointer::Builder state) const override;
  Result<void> Restore(capnp::AnyPointer::Reader state) override;
  void CatchUp(int64_t elapsed_ns) override { acpi_pm_.CatchUp(elapsed_ns); }
  bool ReadChanges(uint16_t region, uint64_t offset) const override;
  void PressPowerButton() override;

 private:
  LevelLine sci_;
  AcpiPm acpi_pm_;
  CmosRtc cmos_;
  I8042 i8042_;
  ResetControl reset_control_;
  DebugConsole debug_console_;
  HostBridge host_bridge_;
  uint8_t post_code_ = 0;
};

}  // namespace bulkhead::chipset
