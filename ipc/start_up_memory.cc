// SPDX-License-Identifier: Apache-2.0
#include "ipc/start_up_memory.h"

#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstdint>

namespace bulkhead {
namespace {

// By then a guest has found its devices, which is what the code of the start is still needed for.
constexpr auto kStartTime = 1 * kj::SECONDS;

// Nobody writes to them, so the file has all that is in them.
int ForgetReadOnlySegments(dl_phdr_info* info, size_t, void*) {
  constexpr uintptr_t kPage = 4096;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) continue;
    const uintptr_t begin = (info->dlpi_addr + segment.p_vaddr) & ~(kPage - 1);
    const uintptr_t end = (info->dlpi_addr + segment.p_vaddr + segment.p_memsz + kPage - 1) & ~(kPage - 1);
    ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
  return 1;  // the program is the first, and libraries are shared
}

}  // namespace

void ForgetStartUpMemory() {
  // Whole pages in the midst of the heap; its end stays, as moving it is a call that no policy allows.
  ::malloc_trim(SIZE_MAX / 2);
  ::dl_iterate_phdr(ForgetReadOnlySegments, nullptr);
}

void AllowForgetting(SyscallPolicy& policy) {
  policy.Allow(SYS_madvise, "giving back memory that only the start needed", {Equals(2, MADV_DONTNEED)});
}

// A kernel without huge pages refuses, which is as good.
void RefuseHugePages() { ::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); }

void AllowHugePages() { ::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0); }

void StartUpMemory::ForgetSoon() {
  under_way_ = timer_.afterDelay(kStartTime).then([] { ForgetStartUpMemory(); }).eagerlyEvaluate(nullptr);
}

}  // namespace bulkhead
