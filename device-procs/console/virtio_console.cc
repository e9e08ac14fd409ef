// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/virtio_console.h"

#include <algorithm>
#include <cstring>

#include "device-procs/console/virtio_console_state.capnp.h"

namespace bulkhead::device {
namespace {

enum Queue : uint16_t { kReceiveQueue, kTransmitQueue };  // §5.3.2

// Feature bits (§5.3.3) and the configuration structure (§5.3.4).
constexpr uint64_t kFeatureSize = FeatureBit(0);
constexpr uint64_t kFeatureEmergencyWrite = FeatureBit(2);
constexpr size_t kColumnsOffset = 0;
constexpr size_t kRowsOffset = 2;
constexpr size_t kMaxPortsOffset = 4;
constexpr size_t kEmergencyOffset = 8;

constexpr uint16_t kStateVersion = 1;
constexpr size_t kPieceBytes = 4096;
// What one queue may do before the loop sees to other events, so that endless input or a request of gigabytes does not
// keep exits waiting.
constexpr uint64_t kRoundBytes = 256 * 1024;
constexpr unsigned kRoundChains = 256;
// Emergency writes that a slow outside has not taken: a guest's last words fit, an endless stream does not.
constexpr size_t kMaxEmergencyBytes = 16 * 1024;

}  // namespace

VirtioConsole::VirtioConsole(const GuestMemory& memory, std::unique_ptr<BytePort> port, ConsoleSize size)
    : memory_(memory), port_(std::move(port)) {
  PutSize(size);
  const uint32_t max_ports = 1;
  std::memcpy(config_.data() + kMaxPortsOffset, &max_ports, sizeof max_ports);
  port_->SetHandlers([this] { ProcessQueue(kReceiveQueue); },
                     [this] {
                       if (!paused_) FlushEmergency();
                       ProcessQueue(kTransmitQueue);
                     });
}

VirtioConsole::~VirtioConsole() { port_->SetHandlers({}, {}); }

// The size is always offered, so that a guest may move between hosts with and without a terminal: zeros say unknown.
uint64_t VirtioConsole::Features() const { return kFeatureSize | kFeatureEmergencyWrite; }

void VirtioConsole::PutSize(ConsoleSize size) {
  std::memcpy(config_.data() + kColumnsOffset, &size.columns, sizeof size.columns);
  std::memcpy(config_.data() + kRowsOffset, &size.rows, sizeof size.rows);
}

void VirtioConsole::SetSize(ConsoleSize size) {
  PutSize(size);
  if (transport_ != nullptr) transport_->SignalConfigChange();
}

void VirtioConsole::WriteConfig(uint64_t offset, std::span<const std::byte> data) {
  // emerg_wr is the only field to write, and its low byte all that counts. It works at any time, before the driver has
  // set up anything too.
  if (offset > kEmergencyOffset || kEmergencyOffset - offset >= data.size()) return;
  if (emergency_.size() >= kMaxEmergencyBytes) return;
  emergency_.push_back(data[kEmergencyOffset - offset]);
  if (!paused_) FlushEmergency();
}

bool VirtioConsole::FlushEmergency() {
  if (emergency_.empty()) return true;
  const size_t taken = port_->Write(emergency_);
  emergency_.erase(emergency_.begin(), emergency_.begin() + static_cast<ptrdiff_t>(taken));
  return emergency_.empty();
}

void VirtioConsole::Activate(uint64_t, VirtioTransport& transport) { transport_ = &transport; }

void VirtioConsole::Deactivate() {
  transport_ = nullptr;
  broken_ = false;
  transmitting_ = false;
  transmit_done_ = 0;
}

void VirtioConsole::ProcessQueue(uint16_t index) {
  // The port's handlers come here too, at any time.
  if (paused_ || broken_ || transport_ == nullptr) return;
  Virtqueue* queue = transport_->Queue(index);
  if (queue == nullptr) return;
  const Result<void> worked = index == kReceiveQueue ? Receive(*queue) : Transmit(*queue);
  const Result<bool> wanted = worked.ok() ? queue->NeedsInterrupt() : worked.error();
  if (!wanted.ok()) {
    broken_ = true;
    transmitting_ = false;
    transport_->MarkNeedsReset();
    return;
  }
  if (*wanted) transport_->SignalQueue(index);
}

Result<void> VirtioConsole::Receive(Virtqueue& queue) {
  std::array<std::byte, kPieceBytes> bytes;
  for (unsigned served = 0; served < kRoundChains; ++served) {
    auto popped = queue.PopOrEnableKicks(receive_chain_);
    if (!popped.ok()) return popped.error();
    if (!*popped) return {};
    size_t got = 0;
    // A buffer without room would otherwise wait for ever, and all behind it.
    if (const uint64_t room = TotalBytes(receive_chain_.writable); room != 0) {
      got = port_->Read(std::span(bytes).first(std::min<uint64_t>(room, bytes.size())));
      if (got == 0) {
        queue.UndoPop();
        return {};
      }
      auto written = WritePieces(memory_, receive_chain_.writable, 0, std::span(bytes).first(got));
      if (!written.ok()) return written;
    }
    if (auto pushed = queue.Push(receive_chain_.head, static_cast<uint32_t>(got)); !pushed.ok()) return pushed;
  }
  SignalEventFd(transport_->KickFd(kReceiveQueue));  // neither side owes an event for what is left
  return {};
}

Result<void> VirtioConsole::Transmit(Virtqueue& queue) {
  if (!FlushEmergency()) return {};
  std::array<std::byte, kPieceBytes> bytes;
  uint64_t round_bytes = 0;
  for (unsigned served = 0; served < kRoundChains && round_bytes < kRoundBytes;) {
    if (!transmitting_) {
      auto popped = queue.PopOrEnableKicks(transmit_chain_);
      if (!popped.ok()) return popped.error();
      if (!*popped) return {};
      transmitting_ = true;
    }
    const uint64_t total = TotalBytes(transmit_chain_.readable);
    if (transmit_done_ < total) {
      const auto piece = std::span(bytes).first(std::min<uint64_t>(total - transmit_done_, bytes.size()));
      auto read = ReadPieces(memory_, transmit_chain_.readable, transmit_done_, piece);
      if (!read.ok()) return read;
      const size_t taken = port_->Write(piece);
      transmit_done_ += taken;
      round_bytes += taken;
      if (taken < piece.size()) return {};  // until the port is writable
      continue;
    }
    transmitting_ = false;
    transmit_done_ = 0;
    ++served;
    if (auto pushed = queue.Push(transmit_chain_.head, 0); !pushed.ok()) return pushed;
  }
  SignalEventFd(transport_->KickFd(kTransmitQueue));  // neither side owes an event for what is left
  return {};
}

void VirtioConsole::Pause() {
  paused_ = true;
  if (!transmitting_) return;
  // The queue's position then says that this chain is still to come, and transmit_done_ how much of it is done.
  transport_->Queue(kTransmitQueue)->UndoPop();
  transmitting_ = false;
}

void VirtioConsole::Resume() {
  paused_ = false;
  FlushEmergency();
}

void VirtioConsole::SaveDevice(capnp::AnyPointer::Builder state) const {
  auto out = state.initAs<state::VirtioConsoleState>();
  out.setVersion(kStateVersion);
  out.setTransmitDone(transmit_done_);
  const auto* bytes = reinterpret_cast<const kj::byte*>(emergency_.data());
  out.setEmergency(kj::arrayPtr(bytes, emergency_.size()));
}

Result<void> VirtioConsole::RestoreDevice(capnp::AnyPointer::Reader state) {
  const auto from = state.getAs<state::VirtioConsoleState>();
  if (from.getVersion() != kStateVersion) {
    return Error{EPROTO, "saved console state is of a version that is not known here"};
  }
  const auto emergency = std::as_bytes(std::span(from.getEmergency().begin(), from.getEmergency().size()));
  if (emergency.size() > kMaxEmergencyBytes) return Error{EPROTO, "saved console state holds too many bytes"};
  // More than the chain has counts as all of it.
  transmit_done_ = from.getTransmitDone();
  emergency_.assign(emergency.begin(), emergency.end());
  return {};
}

}  // namespace bulkhead::device
