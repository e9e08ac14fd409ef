// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/ring_backend.h"

#include <array>
#include <vector>

#include "ipc/packet_ring.h"

namespace bulkhead::device {
namespace {

static_assert(kMaxFrameBytes == kMaxRingFrameBytes);

// The vectors without the packet's header, which stands before the frame and in the first of them.
void SkipHeader(std::span<const iovec> packet, std::vector<iovec>& frame) {
  frame.assign(packet.begin(), packet.end());
  iovec& first = frame.front();
  first = {static_cast<std::byte*>(first.iov_base) + sizeof(PacketHeader), first.iov_len - sizeof(PacketHeader)};
}

Error PortError(const Error& error) {
  return error.code == EPROTO ? Error{ENODEV, "the outside broke the packet ring: " + error.message} : error;
}

class RingPort final : public NetPort {
 public:
  explicit RingPort(PacketResources packets)
      : doorbell_(std::move(packets.doorbell)),
        peer_(std::move(packets.peer)),
        memory_(OrThrow(MapPacketLink(packets.memory.get()))),
        sending_(&memory_->to_outside),
        receiving_(&memory_->to_net) {}

  int fd() const override { return doorbell_.get(); }

  Result<void> Send(std::span<const iovec> packet) override {
    SkipHeader(packet, sent_);
    auto pushed = sending_.Push(sent_);
    if (pushed.ok() && !*pushed) {
      const auto congested = sending_.Congested();
      if (!congested.ok()) return PortError(congested.error());
      if (*congested) return Error{EAGAIN, "send a packet: the outside is not keeping up"};
      pushed = sending_.Push(sent_);  // half of the ring became free meanwhile
    }
    if (!pushed.ok()) return PortError(pushed.error());
    if (!*pushed) return Error{ENOBUFS, "send a packet: the outside takes back room"};
    return {};
  }

  // Not for each packet: who is woken by the first may push this thread off the processor, and take them one by one.
  void Flush() override {
    if (sending_.TakeWakeRequest()) SignalEventFd(peer_.get());
  }

  Result<size_t> Receive(std::span<const iovec> space) override {
    SkipHeader(space, received_);
    for (;;) {
      auto popped = receiving_.Pop(received_);
      if (!popped.ok()) return PortError(popped.error());
      if (receiving_.TakeRoomRequest()) SignalEventFd(peer_.get());
      if (*popped != 0) {
        *static_cast<PacketHeader*>(space.front().iov_base) = {};
        return *popped + sizeof(PacketHeader);
      }
      if (receiving_.PrepareToSleep()) return size_t{0};
    }
  }

 private:
  OwnFd doorbell_;
  OwnFd peer_;
  PacketLinkMemory* memory_;
  PacketProducer sending_;
  PacketConsumer receiving_;
  std::vector<iovec> sent_, received_;
};

class RingBackend final : public NetBackend {
 public:
  explicit RingBackend(PacketResources packets) : port_(std::move(packets)) {}

  uint16_t pair_count() const override { return 1; }
  bool has_offloads() const override { return false; }
  NetPort& port(uint16_t) override { return port_; }
  void SetOffloads(const Offloads&) override {}
  void SetActivePairs(uint16_t) override {}

 private:
  RingPort port_;
};

}  // namespace

std::unique_ptr<NetBackend> MakeRingBackend(PacketResources packets) {
  return std::make_unique<RingBackend>(std::move(packets));
}

}  // namespace bulkhead::device
