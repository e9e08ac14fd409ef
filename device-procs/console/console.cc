// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/console.h"

#include <kj/exception.h>

#include <utility>

namespace bulkhead::device {
namespace {

constexpr uint32_t kStateVersion = 1;
constexpr auto kUart = static_cast<uint16_t>(ConsoleRegion::kUart);
constexpr auto kFirstOfVirtio = static_cast<uint16_t>(ConsoleRegion::kVirtioConfig);
constexpr auto kLastOfVirtio = static_cast<uint16_t>(ConsoleRegion::kVirtioBar0);

bool IsVirtio(uint16_t region) { return region >= kFirstOfVirtio && region <= kLastOfVirtio; }

}  // namespace

Console::Console(EventLoop& loop, SerialSettings serial, FdBytePort::Log log, VirtioSide virtio)
    : serial_port_(loop, std::move(log), std::move(serial.stage)),
      uart_(serial_port_, std::move(serial.irq)),
      virtio_port_(virtio.port),
      virtio_(std::move(virtio.model)) {
  serial_port_.Attach(std::move(serial.input), std::move(serial.output));
}

uint64_t Console::Read(uint16_t region, uint64_t offset, uint8_t width) {
  if (region == kUart) return uart_.Read(offset, width);
  if (virtio_ && IsVirtio(region)) {
    return virtio_->Read(static_cast<uint16_t>(region - kFirstOfVirtio), offset, width);
  }
  return AllOnes(width);
}

WriteEffect Console::Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) {
  if (region == kUart) uart_.Write(offset, width, value);
  if (virtio_ && IsVirtio(region)) {
    return virtio_->Write(static_cast<uint16_t>(region - kFirstOfVirtio), offset, width, value);
  }
  return {};
}

// Nearly every register of the UART does something when it is read.
bool Console::ReadChanges(uint16_t region, uint64_t offset) const {
  if (region == kUart) return true;
  return virtio_ && IsVirtio(region) && virtio_->ReadChanges(static_cast<uint16_t>(region - kFirstOfVirtio), offset);
}

void Console::Flush() {
  uart_.Flush();
  if (virtio_) virtio_->Flush();
}

void Console::Pause() {
  uart_.Pause();
  if (virtio_) virtio_->Pause();
}

void Console::Resume() {
  uart_.Resume();
  if (virtio_) virtio_->Resume();
}

void Console::Attach(uint8_t port, OwnFd input, OwnFd output) {
  FdBytePort* const chosen = port == static_cast<uint8_t>(ConsolePort::kSerial)   ? &serial_port_
                             : port == static_cast<uint8_t>(ConsolePort::kVirtio) ? virtio_port_
                                                                                  : nullptr;
  if (chosen != nullptr) chosen->Attach(std::move(input), std::move(output));
}

void Console::Save(capnp::AnyPointer::Builder state) const {
  auto saved = state.initAs<state::ConsoleState>();
  saved.setVersion(kStateVersion);
  uart_.Save(saved.initUart());
  saved.setSerialWritten(serial_port_.written());
  if (!virtio_) return;
  virtio_->Save(saved.initVirtio());
  saved.setVirtioWritten(virtio_port_->written());
}

Result<void> Console::Restore(capnp::AnyPointer::Reader state) {
  Result<void> restored;
  // Cap'n Proto throws where a message is malformed, and it may be.
  auto malformed = kj::runCatchingExceptions([&] { restored = RestoreParts(state.getAs<state::ConsoleState>()); });
  KJ_IF_MAYBE (exception, malformed) {
    return Error{EPROTO,
                 std::string("the saved state of the console is malformed: ") + exception->getDescription().cStr()};
  }
  return restored;
}

Result<void> Console::RestoreParts(state::ConsoleState::Reader saved) {
  if (saved.getVersion() == 0 || saved.getVersion() > kStateVersion) {
    return Error{EPROTO, "the saved state of the console has version " + std::to_string(saved.getVersion()) +
                             ", this program knows 1 to " + std::to_string(kStateVersion)};
  }
  if (saved.hasVirtio() != (virtio_ != nullptr)) {
    return Error{EPROTO, "the saved console and this one differ in having a virtio console"};
  }
  serial_port_.GoOn(saved.getSerialWritten());
  if (virtio_) virtio_port_->GoOn(saved.getVirtioWritten());
  if (auto restored = uart_.Restore(saved.getUart()); !restored.ok() || !virtio_) return restored;
  return virtio_->Restore(saved.getVirtio());
}

}  // namespace bulkhead::device
