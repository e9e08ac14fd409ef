// SPDX-License-Identifier: Apache-2.0
// ACPI fixed hardware (ACPI 6.4 §4.8.3): PM1a events and control, and the 32-bit power management timer (the
// FADT sets TMR_VAL_EXT). Chipset process, device thread; all values are hostile.
#pragma once

#include <cstdint>
#include <functional>

#include "device-procs/chipset/chipset_state.capnp.h"
#include "device-procs/chipset/clock.h"
#include "device-procs/chipset/level_line.h"
#include "ipc/result.h"

namespace bulkhead::chipset {

class AcpiPm {
 public:
  // `sci` outlives this object. `power_off` runs when the guest enters S5. A fresh AcpiPm is paused, its
  // timer at 0.
  AcpiPm(device::EventLoop& loop, LevelLine& sci, std::function<void()> power_off, Clock monotonic_ns);

  uint64_t ReadEvent(uint64_t offset, uint8_t width);
  void WriteEvent(uint64_t offset, uint8_t width, uint64_t value);
  uint64_t ReadControl(uint64_t offset, uint8_t width) const;
  void WriteControl(uint64_t offset, uint8_t width, uint64_t value);
  uint64_t ReadTimer(uint64_t offset, uint8_t width) const;

  void PressPowerButton();
  void RaiseRtcStatus();

  void Pause();
  void Resume();
  void Save(state::AcpiPmState::Builder state) const;
  void Restore(state::AcpiPmState::Reader state);
  // The timer went on for so long after the state was saved.
  void CatchUp(int64_t elapsed_ns) { base_ns_ -= elapsed_ns; }

  // The handler of the timer that waits for TMR_STS.
  void Update();

 private:
  uint64_t Ticks() const;
  void CollectTimerStatus();
  void UpdateSci();

  LevelLine& sci_;
  std::function<void()> power_off_;
  Clock monotonic_ns_;
  Timer timer_;
  bool paused_ = true;

  uint16_t status_ = 0;
  uint16_t enable_ = 0;
  uint16_t control_ = 0;
  // The timer runs on while paused, as the guest's TSC does, or the guest would find one of them unstable.
  int64_t base_ns_ = 0;
  uint64_t base_ticks_ = 0;
  uint64_t checked_half_period_ = 0;  // of the timer's 32 bits: TMR_STS is set when it changes
};

}  // namespace bulkhead::chipset
