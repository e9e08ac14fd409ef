// SPDX-License-Identifier: Apache-2.0
// Real-time clock and CMOS RAM: an MC146818A (Motorola data sheet; register and flag names are its) behind
// ports 0x70 and 0x71, with the bytes that PC firmware keeps there. Chipset process, device thread; all
// values are hostile.
//
// The guest's clock is the host's UTC plus an offset, which changes when the guest sets its clock. Events
// (update, alarm, periodic) are worked out when someone looks; a timer runs only for an enabled interrupt
// that has not yet come.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>

#include "device-procs/chipset/calendar.h"
#include "device-procs/chipset/chipset_state.capnp.h"
#include "device-procs/chipset/clock.h"
#include "ipc/fd.h"
#include "ipc/result.h"

namespace bulkhead::chipset {

class CmosRtc {
 public:
  static constexpr size_t kRegisters = 128;

  // `irq` is signalled when IRQF rises; `on_alarm` runs when it rises by the alarm (ACPI's RTC_STS). A fresh
  // clock is paused.
  CmosRtc(device::EventLoop& loop, uint64_t memory_bytes, OwnFd irq, std::function<void()> on_alarm, Clock realtime_ns);

  uint64_t Read(uint64_t offset, uint8_t width);
  void Write(uint64_t offset, uint8_t width, uint64_t value);

  void Pause();
  void Resume();
  void Save(state::CmosState::Builder state) const;
  Result<void> Restore(state::CmosState::Reader state);

  // The timer's handler: brings flags, interrupt and timer up to the present.
  void Update();
  std::optional<int64_t> timer_at_ns() const { return timer_.armed_at_ns(); }

 private:
  // A point on the guest's clock.
  struct Instant {
    int64_t seconds = 0;
    int64_t nanoseconds = 0;  // below one second
    auto operator<=>(const Instant&) const = default;
  };

  uint8_t ReadRegister(uint8_t index);
  void WriteRegister(uint8_t index, uint8_t value);
  void FillMemorySize(uint64_t memory_bytes);

  bool Running() const;
  Instant Now() const;
  int64_t HostTimeOf(const Instant& instant) const;
  bool UpdateInProgress() const;

  void ShowTime(int64_t seconds);
  int64_t ShownTime() const;
  void SetTime(int64_t seconds, int64_t nanoseconds);
  void WriteControl(uint8_t index, uint8_t value);

  uint8_t Encode(int value) const;
  int Decode(uint8_t value) const;
  uint8_t EncodeHour(int hour) const;
  int DecodeHour(uint8_t value) const;

  std::optional<Instant> NextAlarm(const Instant& after) const;
  std::optional<Instant> NextPeriodic(const Instant& after) const;
  void Collect();
  void UpdateInterrupt();
  void ArmTimer();

  Clock realtime_ns_;
  OwnFd irq_;
  std::function<void()> on_alarm_;
  Timer timer_;
  bool paused_ = true;
  bool line_ = false;

  uint8_t index_ = 0;
  // The clock's own bytes are valid while it is stopped; otherwise they are computed.
  std::array<uint8_t, kRegisters> registers_{};
  uint8_t flags_ = 0;  // PF, AF, UF of register C
  int64_t offset_seconds_ = 0;
  int64_t offset_nanoseconds_ = 0;  // below one second
  Instant checked_;                 // events up to here are in flags_
};

}  // namespace bulkhead::chipset
