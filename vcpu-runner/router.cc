// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/router.h"

#include <algorithm>
#include <cstring>

namespace bulkhead::runner {
namespace {

constexpr uint64_t kAllOnes = ~uint64_t{0};
constexpr uint64_t kConfigSpaceBytes = 4096;
constexpr uint32_t kConfigEnable = 0x8000'0000;
constexpr uint64_t kBusSlotFunctionShift = 12;  // in an ECAM offset (PCIe 4.0 §7.2.2)

uint64_t Load(std::span<const std::byte> bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), bytes.size());
  return value;
}

void Store(std::span<std::byte> bytes, uint64_t value) { std::memcpy(bytes.data(), &value, bytes.size()); }

bool InEcam(uint64_t address) {
  return address >= platform::kEcamBase && address - platform::kEcamBase < platform::kEcamSize;
}

bool IsConfigDataPort(uint16_t port) {
  return port >= platform::kPortPciConfigData && port < platform::kPortPciConfigData + 4;
}

}  // namespace

void Router::AddPorts(uint16_t first, uint16_t count, DeviceChannel& device, uint16_t region) {
  ports_[first] = PortRange{static_cast<uint16_t>(first + count - 1), &device, region};
}

Result<void> Router::AddFunction(FunctionWiring wiring, DeviceChannel& device) {
  if (wiring.slot >= platform::kMaxPciSlots || functions_[wiring.slot]) return Error{EINVAL, "PCI slot is taken"};
  auto function = std::make_unique<Function>();
  for (const OwnFd& interrupt : wiring.interrupts) {
    auto gsi = vm_.ConnectMessage(interrupt.get());
    if (!gsi.ok()) return gsi.error();
    function->gsis.push_back(*gsi);
  }
  function->device = &device;
  const uint8_t slot = wiring.slot;
  function->wiring = std::move(wiring);
  functions_[slot] = std::move(function);
  return {};
}

void Router::Pio(const PioExit& exit) {
  // A string instruction's accesses all go to the one port.
  for (size_t at = 0; at < exit.data.size(); at += exit.width) {
    const auto bytes = exit.data.subspan(at, exit.width);
    if (exit.is_write) {
      WritePort(exit.port, exit.width, Load(bytes));
    } else {
      Store(bytes, ReadPort(exit.port, exit.width));
    }
  }
}

void Router::Mmio(const MmioExit& exit) {
  const auto width = static_cast<uint8_t>(exit.data.size());
  if (exit.is_write) {
    WriteMemory(exit.address.value, width, Load(exit.data));
  } else {
    Store(exit.data, ReadMemory(exit.address.value, width));
  }
}

uint64_t Router::ReadPort(uint16_t port, uint8_t width) {
  if (port == platform::kPortPciConfigAddress && width == 4) return config_address_.load();
  if (IsConfigDataPort(port)) {
    const uint32_t address = config_address_.load();
    if ((address & kConfigEnable) == 0) return kAllOnes;
    return ReadConfig(address >> 8 & 0xFFFF, (address & 0xFC) + (port & 3), width);
  }
  auto next = ports_.upper_bound(port);
  if (next == ports_.begin()) return kAllOnes;
  const auto& [first, range] = *std::prev(next);
  if (uint32_t{port} + width - 1 > range.last) return kAllOnes;
  return range.device->Read(range.region, port - first, width);
}

void Router::WritePort(uint16_t port, uint8_t width, uint64_t value) {
  if (port == platform::kPortPciConfigAddress && width == 4) {
    config_address_ = static_cast<uint32_t>(value);
    return;
  }
  if (IsConfigDataPort(port)) {
    const uint32_t address = config_address_.load();
    if ((address & kConfigEnable) != 0) WriteConfig(address >> 8 & 0xFFFF, (address & 0xFC) + (port & 3), width, value);
    return;
  }
  auto next = ports_.upper_bound(port);
  if (next == ports_.begin()) return;
  const auto& [first, range] = *std::prev(next);
  if (uint32_t{port} + width - 1 > range.last) return;
  range.device->Post(range.region, port - first, width, value);
}

Router::Function* Router::ConfigTarget(uint64_t bus_slot_function) {
  // Bus 0 and function 0 only: the bus number and the function number must be 0.
  if ((bus_slot_function & ~uint64_t{0xF8}) != 0) return nullptr;
  return functions_[bus_slot_function >> 3].get();
}

uint64_t Router::ReadConfig(uint64_t bus_slot_function, uint64_t offset, uint8_t width) {
  Function* function = ConfigTarget(bus_slot_function);
  if (function == nullptr || offset + width > kConfigSpaceBytes) return kAllOnes;
  return function->device->Read(function->wiring.config_region, offset, width);
}

void Router::WriteConfig(uint64_t bus_slot_function, uint64_t offset, uint8_t width, uint64_t value) {
  Function* function = ConfigTarget(bus_slot_function);
  if (function == nullptr || offset + width > kConfigSpaceBytes) return;
  // A configuration write takes effect before the next instruction (PCIe 4.0 §2.2.7: non-posted).
  Apply(*function, function->device->Write(function->wiring.config_region, offset, width, value));
}

std::optional<std::pair<Router::Function*, uint64_t>> Router::FindBar(uint64_t address, uint8_t width) {
  std::shared_lock lock(bars_mutex_);
  auto next = bars_.upper_bound(address);
  if (next == bars_.begin()) return std::nullopt;
  const auto& [base, range] = *std::prev(next);
  const uint64_t offset = address - base;
  if (offset >= range.size || range.size - offset < width) return std::nullopt;
  return std::pair(range.function, offset);
}

// KVM hands over an access to unmapped memory in pieces of any length up to 8; devices know power-of-two widths.
uint64_t Router::ReadMemory(uint64_t address, uint8_t width) {
  if ((width & (width - 1)) != 0) return kAllOnes;
  if (InEcam(address)) {
    const uint64_t offset = address - platform::kEcamBase;
    return ReadConfig(offset >> kBusSlotFunctionShift, offset % kConfigSpaceBytes, width);
  }
  const auto target = FindBar(address, width);
  if (!target) return kAllOnes;
  const auto [function, offset] = *target;
  return function->device->Read(function->wiring.bar0_region, offset, width);
}

void Router::WriteMemory(uint64_t address, uint8_t width, uint64_t value) {
  if ((width & (width - 1)) != 0) return;
  if (InEcam(address)) {
    const uint64_t offset = address - platform::kEcamBase;
    WriteConfig(offset >> kBusSlotFunctionShift, offset % kConfigSpaceBytes, width, value);
    return;
  }
  const auto target = FindBar(address, width);
  if (!target) return;
  const auto [function, offset] = *target;
  // The device must not use a vector before its new route is installed, so these writes are waited for.
  if (offset >= virtio_pci::kMsixBegin && offset < virtio_pci::kMsixEnd) {
    Apply(*function, function->device->Write(function->wiring.bar0_region, offset, width, value));
  } else {
    function->device->Post(function->wiring.bar0_region, offset, width, value);
  }
}

void Router::Apply(Function& function, const ExitReply& reply) {
  if (reply.has_route && reply.vector < function.gsis.size()) {
    // A route that KVM refuses is one the device made up: the interrupt is lost, as on a board with a cut wire.
    (void)vm_.SetMessageRoute(function.gsis[reply.vector], reply.route_address, reply.route_data).ok();
    if (reply.deliver) SignalEventFd(function.wiring.interrupts[reply.vector].get());
  }
  if (reply.has_decode) MoveBar(function, reply.memory_enabled, reply.bar0_address);
}

bool Router::MayMapBar(const Function& function, uint64_t address) const {
  const uint64_t size = function.wiring.bar0_size;
  if (size == 0 || address % size != 0) return false;
  const auto inside = [&](uint64_t base, uint64_t length) {
    return address >= base && size <= length && address - base <= length - size;
  };
  // Only where the host bridge forwards to PCI, so never over RAM, ECAM or the interrupt controllers.
  const bool low = inside(platform::kPciMmio32Base, platform::kPciMmio32Size);
  if (!low && !inside(mmio64_base_, platform::kPciMmio64Size)) return false;
  auto next = bars_.lower_bound(address);
  if (next != bars_.end() && next->first < address + size) return false;
  return next == bars_.begin() || std::prev(next)->first + std::prev(next)->second.size <= address;
}

void Router::MoveBar(Function& function, bool enabled, uint64_t address) {
  std::unique_lock lock(bars_mutex_);
  const std::optional<uint64_t> wanted = enabled ? std::optional(address) : std::nullopt;
  if (function.bar0_mapped == wanted) return;
  const auto kick_address = [](uint64_t bar, size_t queue) {
    return Gpa{bar + virtio_pci::kNotify + queue * virtio_pci::kNotifyMultiplier};
  };
  const std::vector<OwnFd>& kicks = function.wiring.kicks;
  if (function.bar0_mapped) {
    const uint64_t old = *function.bar0_mapped;
    for (size_t i = 0; i < kicks.size(); ++i) (void)vm_.DisconnectKick(kick_address(old, i), kicks[i].get()).ok();
    bars_.erase(old);
    function.bar0_mapped.reset();
  }
  if (!wanted || !MayMapBar(function, *wanted)) return;
  bars_[*wanted] = BarRange{function.wiring.bar0_size, &function};
  function.bar0_mapped = wanted;
  // Without its ioeventfd a kick reaches the device as an ordinary write: slower, not wrong.
  for (size_t i = 0; i < kicks.size(); ++i) (void)vm_.ConnectKick(kick_address(*wanted, i), kicks[i].get()).ok();
}

}  // namespace bulkhead::runner
