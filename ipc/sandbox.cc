// SPDX-License-Identifier: Apache-2.0
#include "ipc/sandbox.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>

namespace bulkhead {
namespace {

void Check(int result, const char* what) {
  if (result != 0) ThrowErrno(what);
}

// capset(2): 64 capabilities as two words each of 32.
using CapabilityWords = std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3>;

__user_cap_header_struct CapabilityHeader() { return {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0}; }

constexpr uint64_t MaskOf(unsigned capability) { return uint64_t{1} << capability; }

uint64_t PermittedCapabilities() {
  auto header = CapabilityHeader();
  CapabilityWords words{};
  Check(static_cast<int>(::syscall(SYS_capget, &header, words.data())), "read the capabilities");
  return words[0].permitted | uint64_t{words[1].permitted} << 32;
}

void SetCapabilities(uint64_t set) {
  auto header = CapabilityHeader();
  CapabilityWords words{};
  for (size_t i = 0; i < words.size(); ++i)
    words[i].effective = words[i].permitted = static_cast<uint32_t>(set >> (32 * i));
  Check(static_cast<int>(::syscall(SYS_capset, &header, words.data())), "drop all capabilities");
}

void DropBoundingSet(uint64_t but) {
  for (unsigned capability = 0; capability < 64; ++capability) {
    if ((but & MaskOf(capability)) != 0 || ::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0) continue;
    if (errno == EINVAL && capability != 0) return;  // the kernel knows no more
    ThrowErrno("drop the bounding capabilities");
  }
}

}  // namespace

void EnterEmptyRoot() {
  // /proc is a directory on any host this runs on; what is mounted over it here is seen by this process alone.
  Check(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "make mounts private");
  Check(::mount("none", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=1,mode=555"),
        "mount an empty root");
  Check(::chdir("/proc"), "enter the empty root");
  // With both paths the same directory the old root ends up on top of the new one and can be detached at once.
  Check(static_cast<int>(::syscall(SYS_pivot_root, ".", ".")), "pivot to the empty root");
  Check(::umount2(".", MNT_DETACH), "detach the host's root");
  Check(::chdir("/"), "enter the empty root");
  Check(::mount(nullptr, "/", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr),
        "make the empty root read-only");
}

void SetProcessName(const std::string& name) {
  Check(::prctl(PR_SET_NAME, name.c_str(), 0, 0, 0), "set the process name");
}

void DropCapabilities() { KeepCapabilities({}); }

void KeepCapabilities(std::initializer_list<unsigned> kept) {
  Check(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges");
  // The broker of an ordinary user has nothing to give up, and may not even say so; no new privileges is enough there.
  const uint64_t permitted = PermittedCapabilities();
  if ((permitted & MaskOf(CAP_SETPCAP)) == 0) return;
  // A uid of 0 means nothing here from now on: neither exec nor setuid gives capabilities back.
  constexpr unsigned long kLocked = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
                                    SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
                                    SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
  Check(::prctl(PR_SET_SECUREBITS, kLocked, 0, 0, 0), "lock the secure bits");
  uint64_t keep = 0;
  for (const unsigned capability : kept) keep |= MaskOf(capability);
  DropBoundingSet(keep);
  Check(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "drop the ambient capabilities");
  SetCapabilities(keep & permitted);
}

void ReserveHeap(size_t bytes) {
  // One arena on brk that neither shrinks nor is passed over for a mapping of its own.
  ::mallopt(M_ARENA_MAX, 1);
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, -1);
  void* volatile reserve = std::malloc(bytes);
  if (reserve == nullptr) throw FatalError("reserve the heap: out of memory");
  // In huge pages a few used bytes here and there would take 2 MiB each. A kernel without them refuses, which is as
  // good.
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(reserve) + kPage - 1) & ~(kPage - 1);
  if (bytes > kPage) ::madvise(reinterpret_cast<void*>(begin), (bytes - kPage) & ~(kPage - 1), MADV_NOHUGEPAGE);
  std::free(reserve);
}

void LimitProcess(std::initializer_list<ResourceLimit> limits, Tracing tracing) {
  for (const ResourceLimit& limit : limits) {
    const rlimit both{limit.value, limit.value};
    Check(::setrlimit(limit.resource, &both), "set a resource limit");
  }
  const rlimit none{0, 0};
  Check(::setrlimit(RLIMIT_CORE, &none), "forbid core dumps");
  ::umask(0777);
  if (tracing == Tracing::kForbidden) Check(::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "forbid tracing");
}

}  // namespace bulkhead
