// SPDX-License-Identifier: Apache-2.0
// libFuzzer: a disk queue from the rings in guest memory to the image, which completes its work late, in any order, or
// with errors. What reaches the image lies on the disk and in guest memory, and each request is given back once.
#include <deque>
#include <string>

#include "device-procs/common/virtqueue_driver.h"
#include "device-procs/disk/queue_server.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using bulkhead::fuzz::FuzzInput;
using bulkhead::fuzz::Require;

constexpr uint64_t kMemoryBytes = 64 * 1024;
constexpr uint64_t kDiskBytes = 1 << 20;
constexpr uint16_t kQueueSize = 16;
constexpr uint64_t kMaxTransfer = kQueueSize * uint64_t{1} << 32;

class LateChannel final : public BlockChannel {
 public:
  void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override {
    CheckVectors(offset, to);
    for (const iovec& piece : to) std::memset(piece.iov_base, 0x5A, piece.iov_len);
    outstanding.push_back(&done);
  }
  void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) override {
    Require(!read_only);
    CheckVectors(offset, from);
    for (const iovec& piece : from) {
      for (size_t i = 0; i < piece.iov_len; i += 512) (void)*(static_cast<volatile char*>(piece.iov_base) + i);
    }
    outstanding.push_back(&done);
  }
  void Flush(BlockCompletion& done) override { outstanding.push_back(&done); }
  void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override {
    Require(!read_only);
    CheckRange(offset, size_bytes);
    outstanding.push_back(&done);
  }
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool, BlockCompletion& done) override {
    Discard(offset, size_bytes, done);
  }

  std::deque<BlockCompletion*> outstanding;
  bool read_only = false;

 private:
  static void CheckRange(uint64_t offset, uint64_t size_bytes) {
    Require(offset % 512 == 0 && size_bytes % 512 == 0);
    Require(offset <= kDiskBytes && size_bytes <= kDiskBytes - offset);
  }
  static void CheckVectors(uint64_t offset, std::span<const iovec> vectors) {
    uint64_t total = 0;
    for (const iovec& piece : vectors) {
      total += piece.iov_len;
      Require(total <= kMaxTransfer);
    }
    CheckRange(offset, total);
  }
};

class CountingTransport final : public VirtioTransport {
 public:
  Virtqueue* Queue(uint16_t) override { return nullptr; }
  int KickFd(uint16_t) const override { return -1; }
  void SignalQueue(uint16_t index) override { Require(index == 0); }
  void SignalConfigChange() override {}
  void MarkNeedsReset() override { needs_reset = true; }
  bool needs_reset = false;
};

const GuestMemory& Memory() {
  static const GuestMemory memory = device::test::MakeGuestMemory(kMemoryBytes);
  return memory;
}

class Disk {
 public:
  explicit Disk(uint8_t flags)
      : driver_(Memory(), Gpa{0}, kQueueSize, (flags & 1) != 0),
        rules_{.capacity_bytes = kDiskBytes,
               .read_only = (flags & 2) != 0,
               .discard = (flags & 4) != 0,
               .write_zeroes = (flags & 8) != 0},
        write_through_((flags & 16) != 0) {
    channel_.read_only = rules_.read_only;
    Start();
  }
  ~Disk() {
    while (!channel_.outstanding.empty()) Complete(0, 0);
    Require(server_.in_flight() == 0);
    server_.End();
  }

  void Step(FuzzInput& input) {
    switch (input.Take<uint8_t>() % 12) {
      case 0:
        (void)Memory().Write(Gpa{input.Take<uint16_t>()}, input.TakeBytes(input.Take<uint8_t>())).ok();
        break;
      case 1:
      case 2:
        server_.TakeChains();
        break;
      case 3:
        server_.SignalCompletions();
        break;
      case 4:
      case 5:
        Complete(input.TakeBelow(64), 0);
        break;
      case 6:
        Complete(input.TakeBelow(64), EIO);
        break;
      case 7:
        write_through_ = input.Take<uint8_t>() % 2 == 0;
        break;
      case 8:
        Restart(input.Take<uint8_t>() % 2 == 0);
        break;
      default:
        Offer(input);
        break;
    }
    // A request is in flight as long as the image works on it.
    // Of requests that lie side by side the channel has only one.
    Require(server_.in_flight() >= channel_.outstanding.size() && server_.in_flight() <= kQueueSize);
    Require((server_.in_flight() == 0) == channel_.outstanding.empty());
  }

 private:
  void Start() {
    auto queue = Virtqueue::Create(Memory(), driver_.layout());
    queue_.emplace(*std::move(queue));
    server_.Start(
        {.queue = &*queue_, .transport = &transport_, .index = 0, .rules = rules_, .write_through = &write_through_});
  }
  void Restart(bool abandon) {
    if (abandon) server_.Abandon();
    while (!channel_.outstanding.empty()) Complete(0, 0);
    Require(server_.in_flight() == 0);
    server_.End();
    Start();
  }
  void Complete(size_t which, int error) {
    if (channel_.outstanding.empty()) return;
    const auto at = channel_.outstanding.begin() + static_cast<ptrdiff_t>(which % channel_.outstanding.size());
    BlockCompletion* done = *at;
    channel_.outstanding.erase(at);
    done->Completed(error);
  }

  // A request with the right shape and arbitrary contents.
  void Offer(FuzzInput& input) {
    struct {
      uint32_t type, reserved;
      uint64_t sector;
    } header{input.Take<uint8_t>() % 16u, 0, input.Take<uint16_t>()};
    const Gpa at{0x1000 + input.TakeBelow(256) * 64};
    OrThrow(Memory().WriteObject(at, header));
    std::vector<device::test::Buffer> buffers{{at, 16}};
    for (unsigned left = input.Take<uint8_t>() % 4; left != 0; --left) {
      const auto length = input.Take<uint16_t>();
      buffers.push_back(
          {Gpa{input.Take<uint16_t>()}, length % 4 == 0 ? length & ~511u : length, input.Take<uint8_t>() % 2 == 0});
    }
    buffers.push_back({at + 32, 1, true});
    driver_.Add(buffers);
  }

  device::test::QueueDriver driver_;
  RequestRules rules_;
  std::atomic<bool> write_through_;
  LateChannel channel_;
  CountingTransport transport_;
  std::optional<Virtqueue> queue_;
  Throttle throttle_;
  QueueServer server_{Memory(), channel_,   throttle_,
                      "fuzzed", kQueueSize, [](const std::string& line) { Require(!line.empty()); }};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  OrThrow(Memory().Fill(Gpa{0}, kMemoryBytes, std::byte{0}));
  Disk disk(input.Take<uint8_t>());
  while (!input.empty()) disk.Step(input);
  return 0;
}
