// SPDX-License-Identifier: Apache-2.0
// libFuzzer: a qcow file of version 1 whose author may have written anything. Every request ends once, and nothing is
// asked for where no file can be.
#include "device-procs/common/block/qcow1_channel.h"
#include "device-procs/common/block/qcow2/memory_file.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using bulkhead::device::test::LateOffload;
using bulkhead::device::test::MemoryFile;
using bulkhead::fuzz::FuzzInput;
using bulkhead::fuzz::Require;

class WatchedFile final : public BlockChannel {
 public:
  void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override {
    Require(offset % 512 == 0 && offset < uint64_t{1} << 32);
    for (const iovec& vector : to) Require(vector.iov_len % 512 == 0 && vector.iov_len <= 1 << 20);
    memory.Read(offset, to, done);
  }
  void Write(uint64_t, std::span<const iovec>, BlockCompletion&) override { Require(false); }
  void Flush(BlockCompletion&) override { Require(false); }
  void Discard(uint64_t, uint64_t, BlockCompletion&) override { Require(false); }
  void WriteZeroes(uint64_t, uint64_t, bool, BlockCompletion&) override { Require(false); }

  MemoryFile memory;
};

struct Request final : BlockCompletion {
  void Completed(int) override {
    Require(!ended);
    ended = true;
  }
  std::vector<std::byte> bytes;
  iovec vector{};
  bool ended = false;
};

// A header that can be, most of the time, and tables behind it.
void MakeFile(FuzzInput& input, std::vector<std::byte>& bytes) {
  bytes.assign(64 * 1024, std::byte{0});
  const auto how = input.Take<uint8_t>();
  qcow2::StoreBe32(bytes.data(), qcow2::kMagic);
  qcow2::StoreBe32(bytes.data() + 4, 1);
  qcow2::StoreBe64(bytes.data() + 24, uint64_t{input.Take<uint16_t>()} << (how & 31));
  bytes[32] = static_cast<std::byte>(9 + input.TakeBelow(8));
  bytes[33] = static_cast<std::byte>(6 + input.TakeBelow(8));
  qcow2::StoreBe64(bytes.data() + 40, 512);
  for (size_t left = input.Take<uint8_t>() % 32; left != 0; --left) {
    const auto what = input.Take<uint8_t>();
    const size_t at = input.Take<uint16_t>() % (bytes.size() - 8);
    if ((what & 1) == 0) {
      const uint64_t entry = uint64_t{input.Take<uint8_t>()} << 56 | uint64_t{input.Take<uint8_t>()} << 48 |
                             uint64_t{input.Take<uint16_t>()} << (what & 2 ? 9 : 0);
      const size_t near = (what & 4) != 0 ? 512 + at % 64 : at;
      qcow2::StoreBe64(bytes.data() + near / 8 * 8, entry);
      continue;
    }
    const size_t from = (what & 2) != 0 ? at % 48 : at;
    const auto taken = input.TakeBytes(std::min<size_t>(1 + what / 4, bytes.size() - from));
    std::copy(taken.begin(), taken.end(), bytes.begin() + static_cast<ptrdiff_t>(from));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  WatchedFile file;
  MakeFile(input, file.memory.bytes);
  MemoryFile base;
  base.bytes.assign(4096, std::byte{0x42});
  qcow2::Backing below;
  if (input.Take<uint8_t>() % 2 == 0) below = {&base, base.bytes.size()};
  LateOffload offload(file.memory);
  qcow1::Qcow1Channel disk(file, {.size_bytes = file.memory.bytes.size(), .read_only = true}, offload, below);
  if (!file.memory.Do(disk.Open()).ok()) return 0;
  std::vector<std::unique_ptr<Request>> requests;
  const uint64_t sectors = disk.header().size_bytes / 512;
  for (int left = 64; left != 0 && !input.empty() && sectors != 0; --left) {
    const auto what = input.Take<uint8_t>();
    if (what < 0x80) {
      MemoryFile& memory = what % 8 == 0 ? base : file.memory;
      memory.fault = what % 16 == 1 ? EIO : 0;
      memory.CarryOut(what / 8);
      memory.fault = 0;
      continue;
    }
    const uint64_t offset = (uint64_t{input.Take<uint16_t>()} << (what & 15)) % sectors * 512;
    const uint64_t size_bytes = std::min((1 + input.TakeBelow(256)) * 512, sectors * 512 - offset);
    if (what < 0x90) {
      Spawn(disk.Map(offset, size_bytes), [size_bytes](Result<BlockExtent> extent) {
        Require(!extent.ok() || (extent->size_bytes != 0 && extent->size_bytes <= size_bytes));
      });
      continue;
    }
    requests.push_back(std::make_unique<Request>());
    Request& request = *requests.back();
    request.bytes.resize(size_bytes);
    request.vector = {request.bytes.data(), size_bytes};
    if (what < 0xA0) {
      disk.Write(offset, {&request.vector, 1}, request);
      Require(request.ended);
    } else {
      disk.Read(offset, {&request.vector, 1}, request);
    }
  }
  while (file.memory.Step() || base.Step()) {
  }
  for (const auto& request : requests) Require(request->ended);
  return 0;
}
