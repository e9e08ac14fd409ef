// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/kvm/kvm_vm.h"

#include <sys/ioctl.h>

#include <algorithm>

#include "ipc/platform.h"
#include "vcpu-runner/kvm/cpuid.h"
#include "vcpu-runner/kvm/kvm_table.h"
#include "vcpu-runner/kvm/kvm_vcpu.h"

namespace bulkhead::runner {
namespace {

constexpr uint32_t kPicPins = 8;
// What KVM_CLEAR_DIRTY_LOG does at once, while all vCPUs that need a page wait.
constexpr uint64_t kPagesClearedAtOnce = 64 * 1024;

Result<void> Require(int kvm_fd, long capability, const char* name) {
  if (::ioctl(kvm_fd, KVM_CHECK_EXTENSION, capability) > 0) return {};
  return Error{ENOSYS,
               std::string("this host's KVM is too old: it lacks ") + name + "; a Linux kernel of 5.4 or later has it"};
}

Result<void> CheckCapabilities(int kvm_fd) {
  if (::ioctl(kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
    return Error{ENOSYS, "this host's KVM has another API version than 12: Bulkhead cannot use it"};
  }
  struct Needed {
    long capability;
    const char* name;
  };
  constexpr Needed kNeeded[] = {
      {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
      {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
      {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
      {KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE"},
      {KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH"},
      {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
      {KVM_CAP_PIT2, "KVM_CAP_PIT2"},
      {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
  };
  for (const Needed& needed : kNeeded) {
    if (auto result = Require(kvm_fd, needed.capability, needed.name); !result.ok()) return result;
  }
  return {};
}

uint64_t PagesOf(const kvm_userspace_memory_region& region) { return region.memory_size / kGuestPageBytes; }
uint64_t WordsFor(uint64_t pages) { return (pages + 63) / 64; }

}  // namespace

Result<std::unique_ptr<Vm>> CreateKvmVm(int kvm_fd) {
  if (auto result = CheckCapabilities(kvm_fd); !result.ok()) return result.error();
  OwnFd vm(::ioctl(kvm_fd, KVM_CREATE_VM, 0));
  if (!vm.valid()) return ErrnoError(errno, "create a virtual machine (KVM_CREATE_VM)");
  auto cpuid = SupportedCpuid(kvm_fd);
  if (!cpuid.ok()) return cpuid.error();
  const int run_bytes = ::ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_bytes <= 0) return ErrnoError(errno, "KVM_GET_VCPU_MMAP_SIZE");

  uint64_t identity_map = platform::kKvmIdentityMapBase;
  if (::ioctl(vm.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0)
    return ErrnoError(errno, "KVM_SET_IDENTITY_MAP_ADDR");
  if (::ioctl(vm.get(), KVM_SET_TSS_ADDR, platform::kKvmTssBase) != 0) return ErrnoError(errno, "KVM_SET_TSS_ADDR");
  if (::ioctl(vm.get(), KVM_CREATE_IRQCHIP, 0) != 0) return ErrnoError(errno, "KVM_CREATE_IRQCHIP");
  kvm_pit_config pit{};
  pit.flags = KVM_PIT_SPEAKER_DUMMY;
  if (::ioctl(vm.get(), KVM_CREATE_PIT2, &pit) != 0) return ErrnoError(errno, "KVM_CREATE_PIT2");
  // Without it KVM_GET_DIRTY_LOG write-protects all that is dirty in one go (api.rst §7.18).
  kvm_enable_cap clears_log{};
  clears_log.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  clears_log.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  const bool clears = ::ioctl(vm.get(), KVM_ENABLE_CAP, &clears_log) == 0;
  return std::unique_ptr<Vm>(
      std::make_unique<KvmVm>(std::move(vm), *std::move(cpuid), static_cast<size_t>(run_bytes), clears));
}

KvmVm::KvmVm(OwnFd vm, std::vector<kvm_cpuid_entry2> supported_cpuid, size_t run_bytes, bool clears_log)
    : vm_(std::move(vm)),
      supported_cpuid_(std::move(supported_cpuid)),
      run_bytes_(run_bytes),
      clears_log_(clears_log),
      next_gsi_(platform::kIoApicPins) {
  AddPinRoutes();
}

void KvmVm::AddPinRoutes() {
  // KVM_SET_GSI_ROUTING replaces the whole table, so the pins' default routes are part of ours: GSI n is IOAPIC pin n
  // and PIC line n, but for IRQ 0, which ISA machines wire to IOAPIC pin 2.
  for (uint32_t pin = 0; pin < platform::kIoApicPins; ++pin) {
    const uint32_t gsi = pin;
    if (pin < 2 * kPicPins) {
      kvm_irq_routing_entry pic{};
      pic.gsi = gsi;
      pic.type = KVM_IRQ_ROUTING_IRQCHIP;
      pic.u.irqchip.irqchip = pin < kPicPins ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
      pic.u.irqchip.pin = pin % kPicPins;
      routes_.push_back(pic);
    }
    if (pin == 2) continue;
    kvm_irq_routing_entry io_apic{};
    io_apic.gsi = gsi;
    io_apic.type = KVM_IRQ_ROUTING_IRQCHIP;
    io_apic.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    io_apic.u.irqchip.pin = gsi == 0 ? 2 : pin;
    routes_.push_back(io_apic);
  }
}

Result<void> KvmVm::SetRegion(const kvm_userspace_memory_region& region) {
  if (::ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) == 0) return {};
  return ErrnoError(errno, "give the guest its memory (KVM_SET_USER_MEMORY_REGION)");
}

Result<void> KvmVm::AddMemory(const GuestMemory& memory) {
  uint64_t most_pages = 0;
  for (const GuestMemory::Mapping& mapping : memory.mappings()) {
    kvm_userspace_memory_region region{};
    region.slot = static_cast<uint32_t>(regions_.size());
    region.guest_phys_addr = mapping.region.base.value;
    region.memory_size = mapping.region.size_bytes;
    region.userspace_addr = reinterpret_cast<uint64_t>(mapping.host);
    if (auto result = SetRegion(region); !result.ok()) return result;
    regions_.push_back(region);
    most_pages = std::max(most_pages, PagesOf(region));
  }
  dirty_pages_ = std::make_unique_for_overwrite<uint64_t[]>(WordsFor(most_pages));
  return {};
}

Result<std::unique_ptr<Vcpu>> KvmVm::CreateVcpu(uint32_t index, uint32_t vcpu_count) {
  OwnFd vcpu(::ioctl(vm_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(index)));
  if (!vcpu.valid()) return ErrnoError(errno, "create vCPU " + std::to_string(index) + " (KVM_CREATE_VCPU)");
  return KvmVcpu::Create(std::move(vcpu), run_bytes_, CpuidFor(supported_cpuid_, index, vcpu_count));
}

Result<void> KvmVm::ConnectLine(uint32_t gsi, int signal_fd, int resample_fd) {
  kvm_irqfd irqfd{};
  irqfd.fd = static_cast<uint32_t>(signal_fd);
  irqfd.gsi = gsi;
  if (resample_fd >= 0) {
    irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
    irqfd.resamplefd = static_cast<uint32_t>(resample_fd);
  }
  if (::ioctl(vm_.get(), KVM_IRQFD, &irqfd) == 0) return {};
  return ErrnoError(errno, "connect interrupt line " + std::to_string(gsi) + " (KVM_IRQFD)");
}

Result<uint32_t> KvmVm::ConnectMessage(int signal_fd) {
  const uint32_t gsi = next_gsi_++;
  if (auto result = ConnectLine(gsi, signal_fd, -1); !result.ok()) return result.error();
  return gsi;
}

Result<void> KvmVm::SetMessageRoute(uint32_t gsi, uint64_t address, uint32_t data) {
  std::lock_guard lock(routes_mutex_);
  auto found = routes_.begin();
  while (found != routes_.end() && found->gsi != gsi) ++found;
  if (found == routes_.end()) {
    kvm_irq_routing_entry entry{};
    entry.gsi = gsi;
    entry.type = KVM_IRQ_ROUTING_MSI;
    found = routes_.insert(routes_.end(), entry);
  }
  found->u.msi.address_lo = static_cast<uint32_t>(address);
  found->u.msi.address_hi = static_cast<uint32_t>(address >> 32);
  found->u.msi.data = data;

  KvmTable<kvm_irq_routing_entry> table(routes_);
  if (::ioctl(vm_.get(), kSetGsiRouting, table.argument()) == 0) return {};
  return ErrnoError(errno, "KVM_SET_GSI_ROUTING");
}

Result<void> KvmVm::Kick(Gpa address, int kick_fd, uint32_t flags) {
  // Length 0 matches a write of any width, and is the fastest path KVM has (api.rst §4.59).
  kvm_ioeventfd ioeventfd{};
  ioeventfd.addr = address.value;
  ioeventfd.fd = kick_fd;
  ioeventfd.flags = flags;
  if (::ioctl(vm_.get(), KVM_IOEVENTFD, &ioeventfd) == 0) return {};
  return ErrnoError(errno, "KVM_IOEVENTFD");
}

Result<void> KvmVm::ConnectKick(Gpa address, int kick_fd) { return Kick(address, kick_fd, 0); }

Result<void> KvmVm::DisconnectKick(Gpa address, int kick_fd) {
  return Kick(address, kick_fd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

Result<void> KvmVm::SetDirtyLogging(bool on) {
  for (kvm_userspace_memory_region& region : regions_) {
    region.flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0;
    if (auto result = SetRegion(region); !result.ok()) return result;
  }
  return {};
}

Result<std::span<const uint64_t>> KvmVm::TakeDirtyPages(size_t region) {
  if (region >= regions_.size()) return Error{EINVAL, "no such memory region"};
  const uint64_t pages = PagesOf(regions_[region]);
  kvm_dirty_log log{};
  log.slot = static_cast<uint32_t>(region);
  log.dirty_bitmap = dirty_pages_.get();
  if (::ioctl(vm_.get(), KVM_GET_DIRTY_LOG, &log) != 0) return ErrnoError(errno, "KVM_GET_DIRTY_LOG");
  const std::span<const uint64_t> taken(dirty_pages_.get(), WordsFor(pages));
  if (!clears_log_) return taken;
  for (uint64_t first = 0; first < pages; first += kPagesClearedAtOnce) {
    kvm_clear_dirty_log clear{};
    clear.slot = static_cast<uint32_t>(region);
    clear.first_page = first;
    clear.num_pages = static_cast<uint32_t>(std::min(kPagesClearedAtOnce, pages - first));
    clear.dirty_bitmap = dirty_pages_.get() + first / 64;
    if (::ioctl(vm_.get(), KVM_CLEAR_DIRTY_LOG, &clear) != 0) return ErrnoError(errno, "KVM_CLEAR_DIRTY_LOG");
  }
  return taken;
}

}  // namespace bulkhead::runner
