// SPDX-License-Identifier: Apache-2.0
// Decodes a guest's port, memory and PCI configuration accesses to (device process, region, offset) and routes them.
// It knows where things answer, never what they do. Called by all vCPU threads. Addresses and data are the guest's;
// the wiring is the broker's; effects that come back from device processes are hostile and checked here.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <vector>

#include "ipc/platform.h"
#include "vcpu-runner/cpu/hypervisor.h"
#include "vcpu-runner/device_channel.h"

namespace bulkhead::runner {

// A device process's PCI function as the runner has to serve it.
struct FunctionWiring {
  uint8_t slot = 0;
  std::vector<OwnFd> kicks;
  std::vector<OwnFd> interrupts;
  uint16_t config_region = 0;
  uint16_t bar0_region = 0;
  uint64_t bar0_size = 0;  // bytes; 0: the function has no BAR
};

class Router {
 public:
  // `memory_bytes` decides where the PCI window above RAM lies.
  Router(Vm& vm, uint64_t memory_bytes) : vm_(vm), mmio64_base_(platform::PciMmio64Base(memory_bytes)) {}

  // Set-up, before any vCPU runs.
  void AddPorts(uint16_t first, uint16_t count, DeviceChannel& device, uint16_t region);
  Result<void> AddFunction(FunctionWiring wiring, DeviceChannel& device);

  void Pio(const PioExit& exit);
  void Mmio(const MmioExit& exit);

 private:
  struct PortRange {
    uint16_t last;
    DeviceChannel* device;
    uint16_t region;
  };
  struct Function {
    FunctionWiring wiring;
    DeviceChannel* device;
    std::vector<uint32_t> gsis;           // of each MSI-X vector
    std::optional<uint64_t> bar0_mapped;  // where BAR 0 answers now
  };
  struct BarRange {
    uint64_t size;
    Function* function;
  };

  uint64_t ReadPort(uint16_t port, uint8_t width);
  void WritePort(uint16_t port, uint8_t width, uint64_t value);
  Function* ConfigTarget(uint64_t bus_slot_function);
  uint64_t ReadConfig(uint64_t bus_slot_function, uint64_t offset, uint8_t width);
  void WriteConfig(uint64_t bus_slot_function, uint64_t offset, uint8_t width, uint64_t value);
  uint64_t ReadMemory(uint64_t address, uint8_t width);
  void WriteMemory(uint64_t address, uint8_t width, uint64_t value);
  std::optional<std::pair<Function*, uint64_t>> FindBar(uint64_t address, uint8_t width);
  void Apply(Function& function, const ExitReply& reply);
  void MoveBar(Function& function, bool enabled, uint64_t address);
  bool MayMapBar(const Function& function, uint64_t address) const;

  Vm& vm_;
  uint64_t mmio64_base_;
  std::map<uint16_t, PortRange> ports_;
  std::array<std::unique_ptr<Function>, platform::kMaxPciSlots> functions_;
  std::atomic<uint32_t> config_address_ = 0;  // the CF8 latch (PCI 3.0 §3.2.2.3.2)
  std::shared_mutex bars_mutex_;
  std::map<uint64_t, BarRange> bars_;
};

}  // namespace bulkhead::runner
