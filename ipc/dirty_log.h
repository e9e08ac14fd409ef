// SPDX-License-Identifier: Apache-2.0
// The dirty log of one process: which pages of guest memory it has written, in memory that it shares with the broker.
// KVM logs what the vCPUs write, and nothing else. Each process that writes guest memory has a log of its own, so that
// none can hide what another wrote. A device process marks, on any thread; the runner puts KVM's log into its own; the
// broker switches and takes, on its main thread, and believes no bit: a hostile process can set and clear all of its
// own.
//
// A page is marked after it was written: who takes a mark and copies the page then has what was written.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "ipc/fd.h"
#include "ipc/gpa.h"
#include "ipc/result.h"

namespace bulkhead {

class DirtyLog {
 public:
  // A bit counts for a page of 4 KiB, bit 0 of word 0 for address 0, as vhost writes them (VHOST_SET_LOG_BASE).
  static constexpr uint64_t kPagesPerWord = 64;

  // Sealed shared memory for guest memory that ends at `end`: no page marked, switched off.
  static Result<OwnFd> Make(const std::string& name, Gpa end);
  // EINVAL where it is not of the size that Make gives it, or could shrink.
  static Result<DirtyLog> Map(int file, Gpa end);

  DirtyLog(DirtyLog&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), pages_(std::exchange(other.pages_, 0)) {}
  DirtyLog& operator=(DirtyLog&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(pages_, other.pages_);
    return *this;
  }
  ~DirtyLog();

  // Whether pages are to be marked; not 0: they are. Read after the page was written.
  const std::atomic<uint32_t>& on() const;
  // Once in a process that marks, before lock-down: what it wrote before SwitchOn returned in the broker is in memory
  // by then, and what it writes later is marked.
  static Result<void> TakePart();
  // Marks the pages of a range, as far as they are in the log.
  void Mark(Gpa address, uint64_t size_bytes) const;
  // The same for the pages of a bitmap, whose first is a multiple of kPagesPerWord.
  void Mark(uint64_t first_page, std::span<const uint64_t> bits) const;

  // The marks, for the kernel only, where that makes them (vhost).
  void* marks() const;

  // Of several logs together: see TakePart. ENOSYS where the kernel is too old.
  static Result<void> SwitchOn(std::span<const DirtyLog> logs);
  void SwitchOff() const;
  // Takes the marks of a word's pages, and leaves none.
  uint64_t Take(uint64_t word) const;

 private:
  struct Memory;
  DirtyLog(Memory* memory, uint64_t pages) : memory_(memory), pages_(pages) {}
  static uint64_t PagesUpTo(Gpa end);
  static uint64_t Bytes(uint64_t pages);
  std::atomic<uint64_t>& Word(uint64_t word) const;

  Memory* memory_;
  uint64_t pages_;
};

}  // namespace bulkhead
