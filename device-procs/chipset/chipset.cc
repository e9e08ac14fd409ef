// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/chipset.h"

#include <kj/exception.h>

#include <optional>
#include <string>
#include <utility>

namespace bulkhead::chipset {
namespace {

constexpr uint32_t kStateVersion = 1;

}  // namespace

Chipset::Chipset(device::EventLoop& loop, ChipsetSettings settings, std::function<void()> power_off,
                 std::function<void()> reset)
    : sci_(loop, std::move(settings.sci_assert), std::move(settings.sci_resample)),
      acpi_pm_(loop, sci_, std::move(power_off), std::move(settings.monotonic_ns)),
      cmos_(
          loop, settings.memory_bytes, std::move(settings.rtc_irq), [this] { acpi_pm_.RaiseRtcStatus(); },
          std::move(settings.realtime_ns)),
      i8042_(reset),
      reset_control_(reset),
      debug_console_(loop, std::move(settings.debug_output), std::move(settings.debug_stage)) {}

uint64_t Chipset::Read(uint16_t region, uint64_t offset, uint8_t width) {
  switch (static_cast<Region>(region)) {
    case Region::kCmos:
      return cmos_.Read(offset, width);
    case Region::kI8042Data:
      return i8042_.ReadData();
    case Region::kI8042Status:
      return i8042_.ReadStatus();
    case Region::kPostCode:
      return post_code_;
    case Region::kDebugConsole:
      return debug_console_.Read();
    case Region::kPm1aEvent:
      return acpi_pm_.ReadEvent(offset, width);
    case Region::kPm1aControl:
      return acpi_pm_.ReadControl(offset, width);
    case Region::kPmTimer:
      return acpi_pm_.ReadTimer(offset, width);
    case Region::kResetControl:
      return reset_control_.Read();
    case Region::kHostBridge:
      return host_bridge_.Read(offset, width);
  }
  return device::AllOnes(width);
}

device::WriteEffect Chipset::Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) {
  const auto byte = static_cast<uint8_t>(value);
  switch (static_cast<Region>(region)) {
    case Region::kCmos:
      cmos_.Write(offset, width, value);
      break;
    case Region::kI8042Data:
      i8042_.WriteData(byte);
      break;
    case Region::kI8042Status:
      i8042_.WriteCommand(byte);
      break;
    case Region::kPostCode:
      post_code_ = byte;
      break;
    case Region::kDebugConsole:
      debug_console_.Write(byte);
      break;
    case Region::kPm1aEvent:
      acpi_pm_.WriteEvent(offset, width, value);
      break;
    case Region::kPm1aControl:
      acpi_pm_.WriteControl(offset, width, value);
      break;
    case Region::kPmTimer:
      break;  // read-only
    case Region::kResetControl:
      reset_control_.Write(byte);
      break;
    case Region::kHostBridge:
      host_bridge_.Write(offset, width, value);
      break;
  }
  return {};
}

// Register C of the clock, the keyboard controller's output; status bits that a look at them sets are found again.
bool Chipset::ReadChanges(uint16_t region, uint64_t) const {
  return region == static_cast<uint16_t>(Region::kCmos) || region == static_cast<uint16_t>(Region::kI8042Data);
}

void Chipset::Flush() { debug_console_.Flush(); }

void Chipset::Pause() {
  cmos_.Pause();
  acpi_pm_.Pause();
  sci_.Pause();
  debug_console_.Pause();
}

void Chipset::Resume() {
  sci_.Resume();
  acpi_pm_.Resume();
  cmos_.Resume();
  debug_console_.Resume();
}

void Chipset::PressPowerButton() { acpi_pm_.PressPowerButton(); }

void Chipset::Save(capnp::AnyPointer::Builder state) const {
  auto saved = state.initAs<state::ChipsetState>();
  saved.setVersion(kStateVersion);
  cmos_.Save(saved.initCmos());
  acpi_pm_.Save(saved.initAcpiPm());
  i8042_.Save(saved.initI8042());
  debug_console_.Save(saved.initDebugConsole());
  host_bridge_.Save(saved.initHostBridge());
  saved.setPostCode(post_code_);
  saved.setResetControl(reset_control_.Read());
}

Result<void> Chipset::Restore(capnp::AnyPointer::Reader state) {
  Result<void> restored;
  // Cap'n Proto throws where a message is malformed, and it may be.
  auto malformed = kj::runCatchingExceptions([&] {
    const auto saved = state.getAs<state::ChipsetState>();
    if (saved.getVersion() == 0 || saved.getVersion() > kStateVersion) {
      restored = Error{EPROTO, "the saved state of the chipset has version " + std::to_string(saved.getVersion()) +
                                   ", this program knows 1 to " + std::to_string(kStateVersion)};
      return;
    }
    restored = cmos_.Restore(saved.getCmos());
    if (!restored.ok()) return;
    restored = debug_console_.Restore(saved.getDebugConsole());
    if (!restored.ok()) return;
    acpi_pm_.Restore(saved.getAcpiPm());
    i8042_.Restore(saved.getI8042());
    host_bridge_.Restore(saved.getHostBridge());
    post_code_ = saved.getPostCode();
    reset_control_.Restore(saved.getResetControl());
  });
  KJ_IF_MAYBE (exception, malformed) {
    return Error{EPROTO,
                 std::string("the saved state of the chipset is malformed: ") + exception->getDescription().cStr()};
  }
  return restored;
}

}  // namespace bulkhead::chipset
