// SPDX-License-Identifier: Apache-2.0
// Two network interfaces on one bridge: frames go from the first to the second and back, whole and from the right one,
// with interrupts; one with another's address goes nowhere, and with spoofing=1 in the command line is heard.
#include "tests/payload/lib/apic.h"
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

constexpr uint64_t kMergeBuffers = 1ull << 15;
constexpr uint32_t kHeaderBytes = 12;
constexpr uint32_t kFrameBytes = 1514;
constexpr unsigned kBuffers = 16;
constexpr uint8_t kVector = kFirstVector;

volatile unsigned g_interrupts;

struct Packet {
  uint8_t header[kHeaderBytes];
  uint8_t to[6];
  uint8_t from[6];
  uint8_t type[2];
  uint8_t data[kFrameBytes - 14];
};

class Interface {
 public:
  bool Start(unsigned n) {
    if (!Expect("net-start", "no such interface", device_.Find(kVirtioNet, n))) return false;
    device_.pci().SetMsix(true, false);
    device_.pci().SetMsixVector(0, kVector, LocalApicId(), false);
    if (!Expect("net-start", "features refused", device_.Start(kMergeBuffers | kFeatureEventIndex))) return false;
    if (!Expect("net-start", "queue refused", device_.SetUpQueue(0, &receive_, 0) && device_.SetUpQueue(1, &transmit_)))
      return false;
    device_.Ready();
    for (unsigned i = 0; i < 6; ++i) mac_[i] = device_.Config<uint8_t>(i);
    for (Packet& room : rooms_) Post(room);
    return true;
  }
  const uint8_t* mac() const { return mac_; }

  // A frame of which every byte says which one it is.
  bool Send(const uint8_t* to, const uint8_t* from, uint8_t number) {
    __builtin_memset(static_cast<void*>(&packet_), 0, sizeof packet_);
    __builtin_memcpy(packet_.to, to, 6);
    __builtin_memcpy(packet_.from, from, 6);
    packet_.type[0] = 0x88;
    packet_.type[1] = 0xB5;
    for (unsigned i = 0; i < sizeof packet_.data; ++i) packet_.data[i] = static_cast<uint8_t>(number + i);
    const Buffer buffer{&packet_, sizeof packet_, false};
    uint32_t used;
    return Transact(&transmit_, &buffer, 1, &used);
  }
  // The next frame of that type, in one of the rooms; null if none comes. The host has things to say on the bridge,
  // too.
  const Packet* Receive() {
    for (;;) {
      uint16_t head;
      uint32_t bytes;
      if (!Await([&] { return receive_.TakeUsed(&head, &bytes); })) return nullptr;
      const Packet& room = rooms_[head % kBuffers];
      received_ = room;
      Post(rooms_[head % kBuffers]);
      if (received_.type[0] == 0x88 && received_.type[1] == 0xB5 && bytes == sizeof(Packet)) return &received_;
    }
  }

 private:
  void Post(Packet& room) {
    const auto index = static_cast<uint16_t>(&room - rooms_);
    const Buffer buffer{&room, sizeof room, true};
    receive_.Describe(index, &buffer, 1);
    receive_.Offer(index);
    receive_.NotifyIfAsked();
  }

  VirtioDevice device_;
  VirtioQueue receive_, transmit_;
  uint8_t mac_[6];
  Packet packet_, received_;
  Packet rooms_[kBuffers];
};

bool Carries(const char* name, Interface& a, Interface& b, uint8_t number) {
  if (!Expect(name, "not sent", a.Send(b.mac(), a.mac(), number))) return false;
  const Packet* packet = b.Receive();
  if (!Expect(name, "not received", packet != nullptr)) return false;
  if (!Expect(name, "from another", __builtin_memcmp(packet->from, a.mac(), 6) == 0)) return false;
  for (unsigned i = 0; i < sizeof packet->data; ++i) {
    if (!ExpectEqual(name, "data", packet->data[i], static_cast<uint8_t>(number + i))) return false;
  }
  return true;
}

}  // namespace

void Main() {
  static Interface a, b;
  SetHandler(kVector, [](uint8_t) { g_interrupts = g_interrupts + 1; });
  InterruptsOn();
  if (!a.Start(0) || !b.Start(1)) return;
  for (unsigned i = 0; i < 40; ++i) {
    if (!Carries("net-frames", a, b, static_cast<uint8_t>(i)) ||
        !Carries("net-frames", b, a, static_cast<uint8_t>(i + 90)))
      return;
  }
  Pass("net-frames");
  if (Expect("net-msix", "no interrupt", g_interrupts != 0)) Pass("net-msix");
  const uint8_t other[6] = {2, 2, 2, 2, 2, 2};
  if (!Expect("net-spoofed", "not taken", a.Send(b.mac(), other, 7))) return;
  if (Parameter("spoofing", 0) != 0) {
    const Packet* packet = b.Receive();
    if (!Expect("net-spoofed", "not received", packet != nullptr)) return;
    if (!ExpectEqual("net-spoofed", "from", packet->from[5], other[5])) return;
  }
  if (Carries("net-spoofed", a, b, 8)) Pass("net-spoofed");
}
