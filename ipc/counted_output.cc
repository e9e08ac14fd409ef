// SPDX-License-Identifier: Apache-2.0
#include "ipc/counted_output.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

namespace bulkhead {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kFirstByte = kPageBytes;  // of the stream, in the stage
// Never reached; no more of it takes up memory than is on its way.
constexpr uint64_t kMostStageBytes = uint64_t{1} << 60;
constexpr size_t kMostAtATime = 64 << 10;
constexpr uint64_t kFreedAtATime = 64 << 10;

Error WriteError(int code) { return ErrnoError(code, "write to an output"); }

}  // namespace

// What is under way by write(2), in two places by turns, so that one is whole at any time; as in ipc/journal.h only the
// order of this program's own stores counts.
struct CountedOutput::Header {
  struct Attempt {
    uint64_t noted;     // all before
    uint64_t position;  // of the output, then
    uint64_t bytes;
  };
  std::atomic<uint32_t> count;
  std::array<Attempt, 2> attempts;
};

Result<OwnFd> CountedOutput::MakeStage(const std::string& name) {
  rlimit files{};
  if (::getrlimit(RLIMIT_FSIZE, &files) != 0) return ErrnoError(errno, "look how large a file may be");
  // A file beyond that ends who makes it so, by a signal.
  const uint64_t bytes = std::min<uint64_t>(files.rlim_cur / kPageBytes * kPageBytes, kMostStageBytes);
  auto stage = MakeSealedMemory(name, std::max(bytes, kFirstByte));
  if (!stage.ok()) return stage;
  if (::lseek(stage->get(), kFirstByte, SEEK_SET) < 0) return ErrnoError(errno, "make an output's stage");
  return stage;
}

CountedOutput::CountedOutput(OutputStage stage)
    : stage_(std::move(stage)), taking_over_(stage_.successor && stage_.file.valid()) {
  if (!stage_.file.valid()) return;
  struct stat status;
  if (::fstat(stage_.file.get(), &status) != 0) ThrowErrno("look at an output's stage");
  room_ = static_cast<uint64_t>(std::max<off_t>(status.st_size, kFirstByte)) - kFirstByte;
  void* at = ::mmap(nullptr, sizeof(Header), PROT_READ | PROT_WRITE, MAP_SHARED, stage_.file.get(), 0);
  if (at == MAP_FAILED) ThrowErrno("map an output's stage");
  header_ = static_cast<Header*>(at);
  // A predecessor that came to save nothing may have written, all the same.
  if (taking_over_) Owe(0);
}

CountedOutput::~CountedOutput() {
  if (header_ != nullptr) ::munmap(header_, sizeof(Header));
}

// By write(2). A file that is appended to may have got longer by others' hands in between: then it was all.
uint64_t CountedOutput::NotedBefore() const {
  const Header::Attempt& last = header_->attempts[header_->count.load() % 2];
  const off_t now = last.bytes == 0 || output_ < 0 ? -1 : ::lseek(output_, 0, SEEK_CUR);
  const uint64_t moved = now < 0 ? 0 : static_cast<uint64_t>(now) - last.position;
  return last.noted + std::min(moved, last.bytes);
}

void CountedOutput::SetOutput(int output) {
  output_ = output;
  by_write_ = false;
  if (taking_over_) Owe(0);
}

void CountedOutput::GoOn(uint64_t written) {
  written_ = written;
  if (std::exchange(taking_over_, false)) Owe(written);
}

void CountedOutput::Owe(uint64_t written) {
  const off_t position = ::lseek(stage_.file.get(), 0, SEEK_CUR);
  staged_ = position < static_cast<off_t>(kFirstByte) ? 0 : static_cast<uint64_t>(position) - kFirstByte;
  freed_ = 0;
  noted_ = NotedBefore();
  const uint64_t before = staged_ + noted_;
  owed_ = before - std::min(before, written);
}

size_t CountedOutput::TakeOwed(size_t bytes) {
  const auto taken = static_cast<size_t>(std::min<uint64_t>(bytes, owed_));
  owed_ -= taken;
  written_ += taken;
  return taken;
}

Result<size_t> CountedOutput::Write(std::span<const std::byte> bytes) {
  bytes = bytes.first(std::min(bytes.size(), kMostAtATime));
  auto count = by_write_ || header_ == nullptr ? WriteNoted(bytes) : WriteByStage(bytes);
  if (!count.ok() && count.error().code == EINVAL && !std::exchange(by_write_, true)) {
    count = WriteNoted(bytes);
  }
  if (count.ok()) written_ += *count;
  return count;
}

Result<size_t> CountedOutput::WriteByStage(std::span<const std::byte> bytes) {
  if (bytes.size() > room_ - std::min(room_, staged_)) return WriteError(EINVAL);
  const auto at = static_cast<off_t>(kFirstByte + staged_);
  const ssize_t put = ::pwrite(stage_.file.get(), bytes.data(), bytes.size(), at);
  if (put <= 0) return WriteError(put < 0 ? errno : ENOSPC);
  const ssize_t sent = ::sendfile(output_, stage_.file.get(), nullptr, static_cast<size_t>(put));
  if (sent < 0) return WriteError(errno);
  staged_ += static_cast<uint64_t>(sent);
  FreeStage();
  return static_cast<size_t>(sent);
}

// Whoever reads the output may not have come to it, and has the pages until then: none is used again.
void CountedOutput::FreeStage() {
  const uint64_t done = staged_ / kPageBytes * kPageBytes;
  if (done - std::min(done, freed_) < kFreedAtATime) return;
  ::fallocate(stage_.file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kFirstByte, static_cast<off_t>(done));
  freed_ = done;
}

Result<size_t> CountedOutput::WriteNoted(std::span<const std::byte> bytes) {
  if (header_ != nullptr) {
    const off_t position = ::lseek(output_, 0, SEEK_CUR);
    const uint32_t count = header_->count.load(std::memory_order_relaxed) + 1;
    header_->attempts[count % 2] = {
        .noted = noted_, .position = static_cast<uint64_t>(position), .bytes = position < 0 ? 0 : bytes.size()};
    std::atomic_signal_fence(std::memory_order_seq_cst);
    header_->count.store(count, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  const ssize_t count = ::write(output_, bytes.data(), bytes.size());
  if (count < 0) return WriteError(errno);
  noted_ += static_cast<uint64_t>(count);
  return static_cast<size_t>(count);
}

void AllowCountedOutput(SyscallPolicy& policy) {
  policy.Allow(SYS_pwrite64, "output, into its stage");
  policy.Allow(SYS_sendfile, "output, from its stage");
  policy.Allow(SYS_lseek, "how much of it got out", {Equals(1, 0), Equals(2, SEEK_CUR)});
  policy.Allow(SYS_fallocate, "memory of the stage that is done with",
               {Equals(1, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)});
}

}  // namespace bulkhead
