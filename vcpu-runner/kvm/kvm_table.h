// SPDX-License-Identifier: Apache-2.0
// KVM's variable-length arguments: a header of two 32-bit words, the first a count, then that many entries
// (api.rst §4.3, §4.19, §4.52). Declared here because the kernel's header, compiled as C++, gives these structs another
// size and so other request numbers: an empty struct inside its flexible arrays counts a byte there.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace bulkhead::runner {

struct KvmTableHeader {
  uint32_t count;
  uint32_t reserved;
};

inline constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, KvmTableHeader);
inline constexpr unsigned long kSetMsrs = _IOW(KVMIO, 0x89, KvmTableHeader);
inline constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, KvmTableHeader);
inline constexpr unsigned long kSetGsiRouting = _IOW(KVMIO, 0x6A, KvmTableHeader);

template <typename Entry>
class KvmTable {
 public:
  explicit KvmTable(uint32_t count) : words_((sizeof(KvmTableHeader) + count * sizeof(Entry) + 7) / 8) {
    header()->count = count;
  }
  explicit KvmTable(std::span<const Entry> entries) : KvmTable(static_cast<uint32_t>(entries.size())) {
    if (!entries.empty()) std::memcpy(header() + 1, entries.data(), entries.size_bytes());
  }

  void* argument() { return words_.data(); }
  // The entries KVM filled in, at most those there is room for.
  std::vector<Entry> Entries() const {
    const auto* table = reinterpret_cast<const KvmTableHeader*>(words_.data());
    std::vector<Entry> entries(table->count);
    if (!entries.empty()) std::memcpy(entries.data(), table + 1, entries.size() * sizeof(Entry));
    return entries;
  }

 private:
  KvmTableHeader* header() { return reinterpret_cast<KvmTableHeader*>(words_.data()); }

  std::vector<uint64_t> words_;
};

}  // namespace bulkhead::runner
