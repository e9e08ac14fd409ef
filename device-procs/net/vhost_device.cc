// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/vhost_device.h"

#define VIRTIO_RING_NO_LEGACY  // that part of the kernel's header is C only
#include <linux/vhost.h>
#include <sys/ioctl.h>

#include <vector>

#include "device-procs/net/features.h"

namespace bulkhead::device {
namespace {

// What of a driver's features the kernel has a part in; the tap's header is as these make it (virtio 1.2 §5.1.6.1, §6).
constexpr uint64_t kIndirect = FeatureBit(28);
constexpr uint64_t kEventIndex = FeatureBit(29);
constexpr uint64_t kVersion1 = FeatureBit(32);
constexpr uint64_t kLogAll = FeatureBit(VHOST_F_LOG_ALL);
constexpr uint64_t kFeatures = net_feature::kMergeBuffers | kIndirect | kEventIndex | kVersion1;

uint64_t Number(const void* address) { return reinterpret_cast<uint64_t>(address); }

class Vhost final : public VhostDevice {
 public:
  Vhost(OwnFd file, const GuestMemory& memory) : file_(std::move(file)), memory_(memory) {}

  void SetUp(const std::array<int, kQueues>& kicks, int broken) {
    uint64_t has = 0;
    OrThrow(Ask(VHOST_GET_FEATURES, &has, "ask vhost-net what it can do"));
    if ((kFeatures & ~has) != 0) throw FatalError("this kernel's vhost-net is too old");
    OrThrow(Ask(VHOST_SET_OWNER, nullptr, "take vhost-net"));
    SetMemory();
    SetLog();
    for (unsigned queue = 0; queue < kQueues; ++queue) {
      vhost_vring_file kick{queue, kicks[queue]}, error{queue, broken};
      OrThrow(Ask(VHOST_SET_VRING_KICK, &kick, "give vhost-net a queue's kicks"));
      OrThrow(Ask(VHOST_SET_VRING_ERR, &error, "have vhost-net tell of errors"));
    }
  }

  Result<void> SetFeatures(uint64_t features) override {
    features &= kFeatures;
    if (memory_.logs_writes()) features |= kLogAll;
    return Ask(VHOST_SET_FEATURES, &features, "set vhost-net's features");
  }

  Result<void> Start(Queue queue, const Virtqueue& from, int call, int tap) override {
    vhost_vring_state size{queue, from.layout().size}, base{queue, from.position().next_available};
    vhost_vring_file outside{queue, tap};
    if (auto set = Ask(VHOST_SET_VRING_NUM, &size, "set a queue's size"); !set.ok()) return set;
    if (auto set = Ask(VHOST_SET_VRING_BASE, &base, "set a queue's position"); !set.ok()) return set;
    if (auto set = SetPlace(queue, from); !set.ok()) return set;
    if (auto set = SetCall(queue, call); !set.ok()) return set;
    return Ask(VHOST_NET_SET_BACKEND, &outside, "join a queue to the tap");
  }

  Result<void> SetPlace(Queue queue, const Virtqueue& of) override {
    const auto addresses = of.Addresses();
    if (!addresses.ok()) return addresses.error();
    vhost_vring_addr places{.index = queue,
                            .flags = memory_.logs_writes() ? 1u << VHOST_VRING_F_LOG : 0,
                            .desc_user_addr = Number(addresses->descriptors),
                            .used_user_addr = Number(addresses->used),
                            .avail_user_addr = Number(addresses->available),
                            .log_guest_addr = of.layout().used.value};
    return Ask(VHOST_SET_VRING_ADDR, &places, "set a queue's place");
  }

  Result<void> SetCall(Queue queue, int call) override {
    vhost_vring_file file{queue, call};
    return Ask(VHOST_SET_VRING_CALL, &file, "set a queue's interrupt");
  }

  Result<uint16_t> Stop(Queue queue) override {
    vhost_vring_file outside{queue, VHOST_FILE_UNBIND};
    if (auto set = Ask(VHOST_NET_SET_BACKEND, &outside, "part a queue from the tap"); !set.ok()) return set.error();
    vhost_vring_state base{queue, 0};
    if (auto got = Ask(VHOST_GET_VRING_BASE, &base, "get a queue's position"); !got.ok()) return got.error();
    return static_cast<uint16_t>(base.num);
  }

 private:
  Result<void> Ask(unsigned long request, void* argument, const char* what) {
    if (::ioctl(file_.get(), request, argument) != 0) return ErrnoError(errno, what);
    return {};
  }

  void SetMemory() {
    const auto mappings = memory_.mappings();
    // A head and an array behind it.
    std::vector<uint64_t> words((sizeof(vhost_memory) + mappings.size() * sizeof(vhost_memory_region)) /
                                sizeof(uint64_t));
    auto* table = reinterpret_cast<vhost_memory*>(words.data());
    table->nregions = static_cast<uint32_t>(mappings.size());
    for (size_t i = 0; i < mappings.size(); ++i) {
      const GuestMemory::Mapping& mapping = mappings[i];
      table->regions[i] = {.guest_phys_addr = mapping.region.base.value,
                           .memory_size = mapping.region.size_bytes,
                           .userspace_addr = Number(mapping.host),
                           .flags_padding = 0};
    }
    OrThrow(Ask(VHOST_SET_MEM_TABLE, table, "give vhost-net guest memory"));
  }

  void SetLog() {
    if (memory_.log() == nullptr) return;
    uint64_t marks = Number(memory_.log()->marks());
    OrThrow(Ask(VHOST_SET_LOG_BASE, &marks, "give vhost-net the dirty log"));
  }

  OwnFd file_;
  const GuestMemory& memory_;
};

}  // namespace

std::unique_ptr<VhostDevice> MakeVhostDevice(OwnFd file, const GuestMemory& memory,
                                             const std::array<int, VhostDevice::kQueues>& kicks, int broken) {
  auto vhost = std::make_unique<Vhost>(std::move(file), memory);
  vhost->SetUp(kicks, broken);
  return vhost;
}

}  // namespace bulkhead::device
