// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the queues of an interface, from the rings in guest memory to a port that takes and gives anything:
// chains, headers and commands of a rude guest, packets of any size from the outside. What is sent has a checked header
// and its own address; what is received lies in guest memory or nowhere.
#include <deque>
#include <optional>

#include "device-procs/common/virtqueue_driver.h"
#include "device-procs/net/control.h"
#include "device-procs/net/features.h"
#include "device-procs/net/receiver.h"
#include "device-procs/net/transmitter.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using bulkhead::fuzz::FuzzInput;
using bulkhead::fuzz::Require;

constexpr uint64_t kMemoryBytes = 256 * 1024;
constexpr uint16_t kQueueSize = 16;
constexpr MacAddress kMac{2, 0, 0, 0, 0, 1};

const GuestMemory& Memory() {
  static const GuestMemory memory = device::test::MakeGuestMemory(kMemoryBytes);
  return memory;
}

class AnyPort final : public NetPort {
 public:
  int fd() const override { return -1; }
  Result<void> Send(std::span<const iovec> packet) override {
    std::vector<std::byte> bytes;
    for (const iovec& piece : packet) {
      const auto* from = static_cast<const std::byte*>(piece.iov_base);
      bytes.insert(bytes.end(), from, from + piece.iov_len);
    }
    Require(link_up);
    Require(bytes.size() >= sizeof(PacketHeader) + kEthernetBytes && bytes.size() <= kMaxPacketBytes);
    PacketHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    PacketHeader checked = header;
    Require(CheckHeader(checked, bytes.size() - sizeof header, offloads));
    Require(std::memcmp(&checked, &header, sizeof header) == 0);
    Require(std::memcmp(bytes.data() + sizeof header + 6, kMac.data(), kMac.size()) == 0);
    // Every fourth finds no room at first.
    if (++sends_ % 4 == 0) return Error{EAGAIN, "full"};
    return {};
  }
  Result<size_t> Receive(std::span<const iovec> space) override {
    Require(space.size() <= kMaxVectors);
    if (arriving.empty()) return size_t{0};
    const std::vector<std::byte> packet = std::move(arriving.front());
    arriving.pop_front();
    size_t done = 0;
    for (const iovec& piece : space) {
      const size_t bytes = std::min(piece.iov_len, packet.size() - done);
      std::memcpy(piece.iov_base, packet.data() + done, bytes);
      done += bytes;
    }
    return done;
  }

  Offloads offloads;
  bool link_up = true;
  std::deque<std::vector<std::byte>> arriving;

 private:
  unsigned sends_ = 0;
};

class Transport final : public VirtioTransport {
 public:
  explicit Transport(std::span<std::optional<Virtqueue>> queues) : queues_(queues) {}
  Virtqueue* Queue(uint16_t index) override { return queues_[index] ? &*queues_[index] : nullptr; }
  int KickFd(uint16_t) const override { return -1; }
  void SignalQueue(uint16_t) override {}
  void SignalConfigChange() override {}
  void MarkNeedsReset() override {}

 private:
  std::span<std::optional<Virtqueue>> queues_;
};

SourceRules Rules(bool by_ip) {
  SourceRules rules{.mac = kMac};
  if (by_ip) rules.ip4.push_back({192, 0, 2, 1});
  if (by_ip) rules.ip6.push_back({0x20, 1});
  return rules;
}

class Interface {
 public:
  Interface(uint8_t flags, uint64_t features) : guard_(Rules((flags & 1) != 0)), features_(features) {
    for (uint16_t i = 0; i < 3; ++i) {
      drivers_.emplace_back(Memory(), Gpa{i * 0x1000u}, kQueueSize, (flags & 2) != 0);
    }
    port_.offloads = TransmitOffloads(features);
    Start();
  }

  void Step(FuzzInput& input) {
    const auto step = input.Take<uint8_t>();
    if (step >= 0xF8) return SetLink((step & 1) != 0);
    switch (step % 8) {
      case 0:
        (void)Memory().Write(Gpa{input.TakeBelow(0x4000)}, input.TakeBytes(input.Take<uint8_t>())).ok();
        break;
      case 1:
        transmitter_.Serve();
        (void)transmitter_.EnableKicks();
        break;
      case 2:
        receiver_.PortReadable();
        receiver_.Serve();
        (void)receiver_.EnableKicks();
        break;
      case 3:
        Arrive(input);
        break;
      case 4:
        Control(input);
        break;
      case 5:
        receiver_.End();
        transmitter_.End();
        Start();
        break;
      default:
        Offer(input);
        break;
    }
  }

 private:
  void Start() {
    for (size_t i = 0; i < queues_.size(); ++i) {
      const QueuePosition position = queues_[i] ? queues_[i]->position() : QueuePosition{};
      queues_[i].reset();
      auto queue = Virtqueue::Create(Memory(), drivers_[i].layout(), position);
      if (queue.ok()) queues_[i].emplace(*std::move(queue));
    }
    receiver_.Start({transport_, 0}, features_);
    transmitter_.Start({transport_, 1}, features_);
    control_ = {transport_, 2};
  }
  void SetLink(bool up) {
    receiver_.SetLink(up);
    transmitter_.SetLink(up);
    port_.link_up = up;
  }
  void Arrive(FuzzInput& input) {
    std::vector<std::byte> packet(input.Take<uint16_t>() * size_t{input.Take<uint8_t>() % 3u});
    const auto head = input.TakeBytes(input.Take<uint8_t>());
    packet.resize(std::max(packet.size(), head.size()));
    std::copy(head.begin(), head.end(), packet.begin());
    if (!packet.empty()) port_.arriving.push_back(std::move(packet));
  }
  void Control(FuzzInput& input) {
    const ControlRules rules{.receive = true,
                             .vlan = true,
                             .announce = true,
                             .set_mac = true,
                             .own_mac = kMac,
                             .max_pairs = input.Take<uint8_t>(),
                             .coalesce = true,
                             .set_offloads = true,
                             .guest_offloads = features_ & net_feature::kGuestOffloads};
    while (control_.Pop(chain_)) {
      if (ApplyControl(Memory(), chain_, rules, state_)) {
        receiver_.SetFilter(state_.filter);
        receiver_.SetCoalescing(state_.receive_coalescing);
        transmitter_.SetCoalescing(state_.transmit_coalescing);
      }
      for (const CoalesceLimits& limits : {state_.receive_coalescing, state_.transmit_coalescing}) {
        Require(limits.max_usecs <= kMaxCoalesceUsecs);
      }
      Require(state_.filter.unicast.size() <= kMaxFilteredMacs && state_.filter.multicast.size() <= kMaxFilteredMacs);
      Require(state_.active_pairs >= 1 && state_.active_pairs <= 255);
      Require((state_.offloads_off & ~rules.guest_offloads) == 0);
      Require(state_.filter.mac == MacAddress{} || state_.filter.mac == kMac);
      control_.Push({chain_.head, 1});
    }
  }
  // A chain of the right kind for its queue, with arbitrary contents.
  void Offer(FuzzInput& input) {
    const size_t queue = input.TakeBelow(3);
    const Gpa at{0x4000 + input.TakeBelow(64) * 1024};
    const auto bytes = input.TakeBytes(input.Take<uint8_t>());
    (void)Memory().Write(at, bytes).ok();
    std::vector<device::test::Buffer> buffers{{at, static_cast<uint32_t>(bytes.size()), queue == 0}};
    for (unsigned left = input.Take<uint8_t>() % 4; left != 0; --left) {
      const uint32_t length = input.Take<uint16_t>() * (1u + input.Take<uint8_t>() % 2);
      buffers.push_back(
          {Gpa{0x4000 + input.TakeBelow(0xFFFF) * 4}, length, queue == 0 || input.Take<uint8_t>() % 8 == 0});
    }
    drivers_[queue].Add(buffers);
  }

  const SourceGuard guard_;
  const uint64_t features_;
  AnyPort port_;
  std::vector<device::test::QueueDriver> drivers_;
  std::array<std::optional<Virtqueue>, 3> queues_;
  Transport transport_{queues_};
  Throttle throttle_;
  Receiver receiver_{Memory(), port_, throttle_};
  Transmitter transmitter_{Memory(), port_, guard_, throttle_, [](const std::string& line) { Require(!line.empty()); }};
  NetQueue control_;
  ControlState state_;
  Chain chain_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  OrThrow(Memory().Fill(Gpa{0}, kMemoryBytes, std::byte{0}));
  const auto flags = input.Take<uint8_t>();
  Interface interface(flags, (flags & 4) != 0 ? ~uint64_t{0} : input.Take<uint32_t>());
  while (!input.empty()) interface.Step(input);
  return 0;
}
