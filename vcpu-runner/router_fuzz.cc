// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the runner between a guest that accesses anything and device processes that answer anything. A device's
// reply may move its own BAR inside the PCI windows and route its own vectors, and nothing else.
#include <array>
#include <map>
#include <memory>

#include "ipc/fuzz_input.h"
#include "vcpu-runner/router.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::runner;
using fuzz::FuzzInput;
using fuzz::Require;

constexpr uint64_t kMemoryBytes = 128 * platform::kMiB;
constexpr uint16_t kConfigRegion = 1;
constexpr uint16_t kBarRegion = 2;
constexpr Deadline kNow{};

// The processor's part: it knows what may be asked of it.
class CheckingVm final : public Vm {
 public:
  Result<void> AddMemory(const GuestMemory&) override { return {}; }
  Result<std::unique_ptr<Vcpu>> CreateVcpu(uint32_t, uint32_t) override { return Error{ENOSYS, "no vCPUs here"}; }
  Result<void> ConnectLine(uint32_t, int, int) override { return {}; }
  Result<uint32_t> ConnectMessage(int) override { return messages_++; }
  Result<void> SetMessageRoute(uint32_t gsi, uint64_t address, uint32_t) override {
    Require(gsi < messages_);
    if (address % 16 == 3) return Error{EINVAL, "such a route is refused"};
    return {};
  }
  Result<void> ConnectKick(Gpa address, int kick_fd) override {
    const uint64_t high = platform::PciMmio64Base(kMemoryBytes);
    const bool low_window = address.value >= platform::kPciMmio32Base &&
                            address.value - platform::kPciMmio32Base < platform::kPciMmio32Size;
    Require(low_window || (address.value >= high && address.value - high < platform::kPciMmio64Size));
    Require(kicks.emplace(address.value, kick_fd).second);
    return {};
  }
  Result<void> DisconnectKick(Gpa address, int kick_fd) override {
    const auto found = kicks.find(address.value);
    Require(found != kicks.end() && found->second == kick_fd);
    kicks.erase(found);
    return {};
  }
  Result<void> SetDirtyLogging(bool) override { return {}; }
  Result<std::span<const uint64_t>> TakeDirtyPages(size_t) override { return std::span<const uint64_t>{}; }

  std::map<uint64_t, int> kicks;

 private:
  uint32_t messages_ = 0;
};

// A device process that the guest owns: its answers are there before the question.
struct RogueDevice {
  explicit RogueDevice(const char* name)
      : channel(name, memory.get(), OrThrow(MakeEventFd()), {.deadline_ns = 1},
                {.failed = [this](const std::string& line) {
                  Require(!reported && !line.empty());
                  reported = true;
                }}) {}

  // Takes what was asked, so that there is room, and learns the number of the next request.
  void TakeRequests() {
    for (Frame frame;;) {
      auto popped = requests.Pop(frame);
      if (!popped.ok() || !*popped) return;
      const ExitRequest request = OrThrow(DecodeRequest(frame));
      Require(request.region <= kBarRegion);
      if (request.kind != exit::Request::Kind::POSTED_WRITE) sequence = request.sequence;
    }
  }

  void Answer(FuzzInput& input) {
    TakeRequests();
    const auto how = input.Take<uint8_t>();
    if (how == 0) return;  // none: the deadline passes at once
    if (how == 1) {
      (void)replies.Push(input.TakeBytes(input.Take<uint8_t>() % (kFrameCapacity + 1)), kNow).ok();
      return;
    }
    if (how == 2) {
      memory->replies.head += static_cast<uint32_t>(input.Take<int8_t>());
      return;
    }
    if (how == 3) {
      memory->requests.tail += static_cast<uint32_t>(input.Take<int8_t>());
      return;
    }
    if (how == 4) {
      channel.MarkDead();
      return;
    }
    if (memory->replies.head != memory->replies.tail) return;  // an answer nobody took
    const uint64_t base =
        (how & 0x10) != 0 ? platform::PciMmio64Base(kMemoryBytes) : uint64_t{platform::kPciMmio32Base};
    const uint64_t place = input.Take<uint16_t>() * ((how & 0x20) != 0 ? virtio_pci::kBarSize : uint64_t{0x1000});
    const ExitReply reply{.sequence = sequence + (how == 5 ? 2 : 1),
                          .data = input.Take<uint64_t>(),
                          .has_decode = (how & 0x40) != 0,
                          .memory_enabled = (how & 0x08) != 0,
                          .bar0_address = how == 0xFF ? input.Take<uint64_t>() : base + place,
                          .has_route = (how & 0x80) != 0,
                          .vector = input.Take<uint8_t>(),
                          .route_address = input.Take<uint8_t>(),
                          .route_data = 0,
                          .deliver = (how & 0x04) != 0};
    Frame frame;
    EncodeReply(reply, frame);
    (void)replies.Push(std::span(frame.bytes).first(frame.length_bytes), kNow).ok();
  }

  std::unique_ptr<ChannelMemory> memory = std::make_unique<ChannelMemory>();
  RingConsumer requests{&memory->requests};
  RingProducer replies{&memory->replies};
  uint32_t sequence = 0;
  bool reported = false;
  DeviceChannel channel;
};

class Machine {
 public:
  Machine() {
    router_.AddPorts(0x3F8, 8, first_.channel, 0);
    router_.AddPorts(0xFFFF, 1, first_.channel, 0);
    for (uint8_t slot = 1; slot <= 2; ++slot) AddFunction(first_, slot);
    AddFunction(second_, 31);
  }

  void Step(FuzzInput& input) {
    const auto action = input.Take<uint8_t>();
    ((action & 0x80) != 0 ? second_ : first_).Answer(input);
    const bool is_write = (action & 0x40) != 0;
    const auto value = input.Take<uint64_t>();
    std::array<std::byte, 8> bytes;
    std::memcpy(bytes.data(), &value, sizeof value);
    const size_t width = 1 + input.TakeBelow(8);
    if (action % 4 == 0) {
      const auto port_width = static_cast<uint8_t>(1u << width % 3);
      router_.Pio({.port = Port(input),
                   .width = port_width,
                   .is_write = is_write,
                   .data = std::span(bytes).first(port_width * (width > 4 ? 2u : 1u))});
    } else {
      router_.Mmio({.address = Address(input, action), .is_write = is_write, .data = std::span(bytes).first(width)});
    }
    first_.TakeRequests();
    second_.TakeRequests();
    Require(first_.channel.failed() || !first_.reported);
  }

 private:
  void AddFunction(RogueDevice& device, uint8_t slot) {
    FunctionWiring wiring{.slot = slot,
                          .kicks = {},
                          .interrupts = {},
                          .config_region = kConfigRegion,
                          .bar0_region = kBarRegion,
                          .bar0_size = virtio_pci::kBarSize};
    wiring.kicks.push_back(OrThrow(MakeEventFd()));
    wiring.interrupts.push_back(OrThrow(MakeEventFd()));
    OrThrow(router_.AddFunction(std::move(wiring), device.channel));
  }

  static uint16_t Port(FuzzInput& input) {
    const auto choice = input.Take<uint8_t>();
    if (choice < 0x40) return static_cast<uint16_t>(platform::kPortPciConfigAddress + choice % 8);
    if (choice < 0x80) return static_cast<uint16_t>(0x3F6 + choice % 12);
    return choice < 0x90 ? static_cast<uint16_t>(0xFFFF - choice % 4) : input.Take<uint16_t>();
  }

  Gpa Address(FuzzInput& input, uint8_t action) {
    const uint64_t offset = input.Take<uint16_t>();
    if (action % 4 == 1) {
      // Configuration space of a slot that there is, most of the time.
      const uint64_t slot = std::array<uint64_t, 4>{1, 2, 31, offset % 256}[offset % 4];
      return Gpa{platform::kEcamBase + (slot << 15) + offset % 4096};
    }
    if (action % 4 == 2 && !vm_.kicks.empty()) {
      // Near a BAR.
      const auto at = std::next(vm_.kicks.begin(), static_cast<ptrdiff_t>(offset % vm_.kicks.size()));
      return Gpa{at->first - virtio_pci::kNotify + offset % (virtio_pci::kBarSize + 16)};
    }
    return Gpa{input.Take<uint64_t>()};
  }

  CheckingVm vm_;
  RogueDevice first_{"first"};
  RogueDevice second_{"second"};
  Router router_{vm_, kMemoryBytes};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  Machine machine;
  while (!input.empty()) machine.Step(input);
  return 0;
}
