// SPDX-License-Identifier: Apache-2.0
#include "ipc/dirty_log.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>

namespace bulkhead {
namespace {

static_assert(std::atomic<uint64_t>::is_always_lock_free, "shared between processes");

Result<void> Barrier(int command) {
  if (::syscall(SYS_membarrier, command, 0, 0) == 0) return {};
  return ErrnoError(errno, "membarrier, which dirty logging needs of the kernel");
}

// Bits [first, last] of a word.
uint64_t Mask(uint64_t first, uint64_t last) { return (~uint64_t{0} << first) & (~uint64_t{0} >> (63 - last)); }

}  // namespace

// The switch in a page of its own, which is read all along.
struct DirtyLog::Memory {
  std::atomic<uint32_t> on;
  alignas(4096) std::atomic<uint64_t> words[];
};

uint64_t DirtyLog::PagesUpTo(Gpa end) { return end.value / kGuestPageBytes; }

uint64_t DirtyLog::Bytes(uint64_t pages) {
  const uint64_t words = (pages + kPagesPerWord - 1) / kPagesPerWord;
  return sizeof(Memory) + (words * sizeof(uint64_t) + 4095) / 4096 * 4096;
}

Result<OwnFd> DirtyLog::Make(const std::string& name, Gpa end) { return MakeSealedMemory(name, Bytes(PagesUpTo(end))); }

Result<DirtyLog> DirtyLog::Map(int file, Gpa end) {
  const uint64_t pages = PagesUpTo(end), bytes = Bytes(pages);
  struct stat status;
  if (::fstat(file, &status) != 0) return ErrnoError(errno, "look at a dirty log");
  const int seals = ::fcntl(file, F_GET_SEALS);
  if (static_cast<uint64_t>(status.st_size) != bytes || seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return Error{EINVAL, "a dirty log is of the wrong size"};
  }
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (at == MAP_FAILED) return ErrnoError(errno, "map a dirty log");
  return DirtyLog(static_cast<Memory*>(at), pages);
}

// Mapped as long as the process lives: one that is locked down may unmap nothing.
DirtyLog::~DirtyLog() = default;

const std::atomic<uint32_t>& DirtyLog::on() const { return memory_->on; }

std::atomic<uint64_t>& DirtyLog::Word(uint64_t word) const { return memory_->words[word]; }

void* DirtyLog::marks() const { return memory_->words; }

Result<void> DirtyLog::TakePart() { return Barrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED); }

void DirtyLog::Mark(Gpa address, uint64_t size_bytes) const {
  const uint64_t first = address.value / kGuestPageBytes;
  if (size_bytes == 0 || first >= pages_) return;
  const uint64_t in_first = address.value % kGuestPageBytes;
  // How many further pages it reaches into; as a difference, since the end of a hostile range may wrap around.
  const uint64_t further =
      (size_bytes - 1) / kGuestPageBytes + (in_first + (size_bytes - 1) % kGuestPageBytes) / kGuestPageBytes;
  const uint64_t last = first + std::min(further, pages_ - 1 - first);
  for (uint64_t word = first / kPagesPerWord; word <= last / kPagesPerWord; ++word) {
    const uint64_t from = std::max(first, word * kPagesPerWord) % kPagesPerWord;
    const uint64_t to = std::min(last, word * kPagesPerWord + kPagesPerWord - 1) % kPagesPerWord;
    // Also where the bit is set already: it may be taken before this write is seen.
    Word(word).fetch_or(Mask(from, to), std::memory_order_release);
  }
}

void DirtyLog::Mark(uint64_t first_page, std::span<const uint64_t> bits) const {
  const uint64_t words = (pages_ + kPagesPerWord - 1) / kPagesPerWord;
  uint64_t word = first_page / kPagesPerWord;
  for (const uint64_t marks : bits) {
    if (word == words) return;
    if (marks != 0) Word(word).fetch_or(marks, std::memory_order_release);
    ++word;
  }
}

Result<void> DirtyLog::SwitchOn(std::span<const DirtyLog> logs) {
  for (const DirtyLog& log : logs) log.memory_->on.store(1, std::memory_order_relaxed);
  return Barrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

void DirtyLog::SwitchOff() const { memory_->on.store(0, std::memory_order_relaxed); }

uint64_t DirtyLog::Take(uint64_t word) const {
  std::atomic<uint64_t>& marks = Word(word);
  // Most have none, and reading leaves the line with those who write.
  if (marks.load(std::memory_order_relaxed) == 0) return 0;
  return marks.exchange(0, std::memory_order_acquire);
}

}  // namespace bulkhead
