// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/acpi_pm.h"

#include <optional>

#include "device-procs/common/byte_access.h"
#include "ipc/platform.h"

namespace bulkhead::chipset {
namespace {

// PM1 status and enable (§4.8.3.1): the same bits in both.
constexpr uint16_t kTimer = 1 << 0;
constexpr uint16_t kGlobalLock = 1 << 5;
constexpr uint16_t kPowerButton = 1 << 8;
constexpr uint16_t kSleepButton = 1 << 9;
constexpr uint16_t kRtc = 1 << 10;
constexpr uint16_t kWake = 1 << 15;  // status only
constexpr uint16_t kEvents = kTimer | kGlobalLock | kPowerButton | kSleepButton | kRtc;
constexpr uint16_t kStatusBits = kEvents | kWake;

// PM1 control (§4.8.3.2).
constexpr uint16_t kSciEnable = 1 << 0;
constexpr uint16_t kBusMasterReload = 1 << 1;
constexpr int kSleepTypeShift = 10;
constexpr uint16_t kSleepType = 7 << kSleepTypeShift;
constexpr uint16_t kSleepEnable = 1 << 13;
constexpr uint16_t kControlKept = kBusMasterReload | kSleepType;

constexpr int64_t kTimerHz = 3'579'545;  // §4.8.3.3
constexpr int kHalfPeriodBits = 31;

uint8_t ByteOf(uint64_t value, uint64_t offset) { return static_cast<uint8_t>(value >> (8 * (offset & 7))); }

}  // namespace

AcpiPm::AcpiPm(device::EventLoop& loop, LevelLine& sci, std::function<void()> power_off, Clock monotonic_ns)
    : sci_(sci),
      power_off_(std::move(power_off)),
      monotonic_ns_(std::move(monotonic_ns)),
      timer_(loop, CLOCK_MONOTONIC, [this] { Update(); }),
      base_ns_(monotonic_ns_()) {}

uint64_t AcpiPm::ReadEvent(uint64_t offset, uint8_t width) {
  CollectTimerStatus();
  const uint32_t both = status_ | static_cast<uint32_t>(enable_) << 16;
  return device::ReadAsBytes(offset, width, [both](uint64_t at) { return ByteOf(both, at); });
}

void AcpiPm::WriteEvent(uint64_t offset, uint8_t width, uint64_t value) {
  CollectTimerStatus();
  device::WriteAsBytes(offset, width, value, [this](uint64_t at, uint8_t byte) {
    if (at < 2) {
      status_ = static_cast<uint16_t>(status_ & ~(byte << (8 * at)));  // a one clears
    } else if (at < 4) {
      const int shift = 8 * static_cast<int>(at - 2);
      enable_ = static_cast<uint16_t>(((enable_ & ~(0xFF << shift)) | byte << shift) & kEvents);
    }
  });
  UpdateSci();
}

uint64_t AcpiPm::ReadControl(uint64_t offset, uint8_t width) const {
  // There is no legacy mode to switch from: SCI_EN is always set.
  const uint16_t value = control_ | kSciEnable;
  return device::ReadAsBytes(offset, width, [value](uint64_t at) { return ByteOf(value, at); });
}

void AcpiPm::WriteControl(uint64_t offset, uint8_t width, uint64_t value) {
  uint16_t written = control_;
  device::WriteAsBytes(offset, width, value, [&written](uint64_t at, uint8_t byte) {
    if (at >= 2) return;
    const int shift = 8 * static_cast<int>(at);
    written = static_cast<uint16_t>((written & ~(0xFF << shift)) | byte << shift);
  });
  control_ = written & kControlKept;
  if ((written & kSleepEnable) == 0) return;
  if ((written & kSleepType) >> kSleepTypeShift == platform::kSleepTypeS5) {
    power_off_();
    return;
  }
  // No other sleep state is offered; a guest that asks for one all the same wakes at once instead of waiting
  // for ever.
  status_ |= kWake;
}

uint64_t AcpiPm::Ticks() const {
  const int64_t elapsed_ns = monotonic_ns_() - base_ns_;
  return base_ticks_ + static_cast<uint64_t>(elapsed_ns / kNsPerSecond * kTimerHz +
                                             elapsed_ns % kNsPerSecond * kTimerHz / kNsPerSecond);
}

uint64_t AcpiPm::ReadTimer(uint64_t offset, uint8_t width) const {
  const uint64_t ticks = Ticks() & 0xFFFF'FFFF;
  return device::ReadAsBytes(offset, width, [ticks](uint64_t at) { return ByteOf(ticks, at); });
}

void AcpiPm::PressPowerButton() {
  status_ |= kPowerButton;
  Update();
}

void AcpiPm::RaiseRtcStatus() {
  status_ |= kRtc;
  Update();
}

// TMR_STS is set whenever the top bit of the timer changes (§4.8.3.3).
void AcpiPm::CollectTimerStatus() {
  const uint64_t half_period = Ticks() >> kHalfPeriodBits;
  if (half_period != checked_half_period_) status_ |= kTimer;
  checked_half_period_ = half_period;
}

// Right after CollectTimerStatus: the next change is counted from the last one that was seen.
void AcpiPm::UpdateSci() {
  sci_.Set((status_ & enable_ & kEvents) != 0);
  if (paused_ || (enable_ & kTimer) == 0 || (status_ & kTimer) != 0) {
    timer_.Arm(std::nullopt);
    return;
  }
  const uint64_t missing = ((checked_half_period_ + 1) << kHalfPeriodBits) - Ticks();
  // In [1, 2^31]: the product cannot overflow. One tick more, so that the change has come when the handler
  // looks.
  const int64_t wait_ns = static_cast<int64_t>(missing + 1) * kNsPerSecond / kTimerHz;
  timer_.Arm(monotonic_ns_() + wait_ns);
}

void AcpiPm::Update() {
  CollectTimerStatus();
  UpdateSci();
}

void AcpiPm::Pause() {
  paused_ = true;
  timer_.Arm(std::nullopt);
}

void AcpiPm::Resume() {
  paused_ = false;
  Update();
}

void AcpiPm::Save(state::AcpiPmState::Builder state) const {
  state.setStatus(status_);
  state.setEnable(enable_);
  state.setControl(control_);
  state.setTimerTicks(Ticks());
  state.setCheckedHalfPeriod(checked_half_period_);
}

void AcpiPm::Restore(state::AcpiPmState::Reader state) {
  // Of the ticks before, only the 32 bits that a guest can see and which half of the period was looked at
  // matter.
  const uint64_t periods_behind = (state.getTimerTicks() >> kHalfPeriodBits) != state.getCheckedHalfPeriod() ? 1 : 0;
  status_ = state.getStatus() & kStatusBits;
  enable_ = state.getEnable() & kEvents;
  control_ = state.getControl() & kControlKept;
  base_ticks_ = state.getTimerTicks() & 0xFFFF'FFFF;
  base_ns_ = monotonic_ns_();
  checked_half_period_ = (base_ticks_ >> kHalfPeriodBits) - periods_behind;
  sci_.Set((status_ & enable_ & kEvents) != 0);
}

}  // namespace bulkhead::chipset
