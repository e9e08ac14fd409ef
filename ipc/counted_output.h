// SPDX-License-Identifier: Apache-2.0
// A stream of bytes to a descriptor, written by a process that may be killed at any moment, so that the one in its
// place knows how many of them got out. What a system call has done shows in the position of an open file, which
// outlives the process where somebody else has the file open: sendfile(2) from a file of memory, the stage, moves the
// stage's by as much as it sent. A file that is only appended to takes nothing by sendfile, but has a position of its
// own; with those of other kinds nobody knows about the last write, nor once the stage is used up, which is never
// unless the size of files is limited (RLIMIT_FSIZE).
//
// Device thread. To a successor the stage is hostile, as its journal is: a wrong count costs output of this VM's guest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ipc/fd.h"
#include "ipc/syscall_policy.h"

namespace bulkhead {

// Memory that goes from one process to the next.
struct OutputStage {
  OwnFd file;              // invalid: nothing is known of a predecessor
  bool successor = false;  // the stage was a predecessor's
};

class CountedOutput {
 public:
  // For the broker. `name` appears in /proc/PID/maps.
  static Result<OwnFd> MakeStage(const std::string& name);

  // Before lock-down. Throws FatalError.
  explicit CountedOutput(OutputStage stage = {});
  ~CountedOutput();
  CountedOutput(const CountedOutput&) = delete;
  CountedOutput& operator=(const CountedOutput&) = delete;

  // How many of the bytes to come next got out before, `bytes` at most: they are not to be written again.
  size_t TakeOwed(size_t bytes);
  // To the output, which does not block: how many bytes it took, an error as of write(2).
  Result<size_t> Write(std::span<const std::byte> bytes);
  // What Write is to from now on, or -1.
  void SetOutput(int output);

  // Bytes taken so far: part of the saved state.
  uint64_t written() const { return written_; }
  // The state says so many. A successor owes the others that its predecessor wrote, the last of them to the output that
  // is set; anyone else begins to count there.
  void GoOn(uint64_t written);

 private:
  struct Header;
  void Owe(uint64_t written);
  Result<size_t> WriteByStage(std::span<const std::byte> bytes);
  Result<size_t> WriteNoted(std::span<const std::byte> bytes);
  uint64_t NotedBefore() const;
  void FreeStage();

  const OutputStage stage_;
  Header* header_ = nullptr;  // of the stage; null without one
  uint64_t room_ = 0;         // bytes that can go by the stage
  uint64_t staged_ = 0;       // and that did
  uint64_t noted_ = 0;        // and by write(2)
  uint64_t freed_ = 0;        // bytes of the stage that take up no memory any more
  uint64_t written_ = 0;
  uint64_t owed_ = 0;
  int output_ = -1;
  bool taking_over_;
  bool by_write_ = false;  // the output is not one for sendfile
};

// What it needs of the kernel beside write.
void AllowCountedOutput(SyscallPolicy& policy);

}  // namespace bulkhead
