// SPDX-License-Identifier: Apache-2.0
// What frames cost the real, sandboxed net process on a real tap, without a guest: this program is its driver, polls
// its rings, and is the other end of the tap. Beside each row the limit: the same system calls for the same frames in a
// loop that does nothing else. Root. Prints a table of microseconds; "CPU" is the net process's own.
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include "tests/bench/bare_frames.h"
#include "tests/bench/polled_queue.h"
#include "tests/process/process_function.h"
#include "tests/process/tap_network.h"

namespace {

using namespace bulkhead;
using bench::PolledQueue;
using device::FeatureBit;

constexpr uint16_t kSlots = 128;
constexpr uint32_t kHeader = 12;
constexpr uint32_t kSlotBytes = 80 << 10;
constexpr uint32_t kRoomBytes = 4096;
constexpr Gpa kFrames{0x100000};
constexpr Gpa kRooms = kFrames + uint64_t{kSlots} * kSlotBytes;
using bench::kGuest;
using bench::kHost;
constexpr uint64_t kFeatures =
    FeatureBit(0) | FeatureBit(1) | FeatureBit(7) | FeatureBit(11) | FeatureBit(15) | FeatureBit(29) | FeatureBit(32);

using Clock = std::chrono::steady_clock;
double MicrosecondsSince(Clock::time_point begun) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begun).count();
}

// CPU time of all threads of a process, in microseconds.
double CpuOf(pid_t pid) {
  clockid_t clock;
  timespec time{};
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) std::abort();
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
}

std::vector<std::byte> Packet(uint32_t bytes, uint8_t to, uint8_t from) {
  return bench::Packet(kHeader, bytes, to, from);
}

struct Cost {
  double time_us = 0;
  double cpu_us = 0;
};

class Driver {
 public:
  Driver(kj::AsyncIoContext& io, test::TapNetwork& network)
      : process_(io, Options(network)),
        function_(process_),
        memory_(process_.memory().mappings()[0].host),
        receive_(memory_, Gpa{0x10000}, kSlots),
        transmit_(memory_, Gpa{0x20000}, kSlots) {
    if (!function_.Negotiate(kFeatures)) std::abort();
    function_.SetUpQueue(0, receive_.layout());
    function_.SetUpQueue(1, transmit_.layout());
    function_.GoLive();
    for (uint16_t slot = 0; slot < kSlots; ++slot) {
      receive_.Describe(slot, kRooms + uint64_t{slot} * kRoomBytes, kRoomBytes, true);
      receive_.Offer(slot);
    }
    Kick(receive_, 0);
  }

  pid_t pid() const { return process_.pid(); }

  void Prepare(uint32_t bytes) {
    const auto packet = Packet(bytes, kHost, kGuest);
    for (uint16_t slot = 0; slot < kSlots; ++slot) {
      std::memcpy(memory_ + kFrames.value + uint64_t{slot} * kSlotBytes, packet.data(), packet.size());
      transmit_.Describe(slot, kFrames + uint64_t{slot} * kSlotBytes, static_cast<uint32_t>(packet.size()), false);
    }
  }
  void Send() {
    while (sending_ == kSlots) Reclaim();
    transmit_.Offer(next_slot_);
    next_slot_ = static_cast<uint16_t>((next_slot_ + 1) % kSlots);
    ++sending_;
  }
  void Flush() { Kick(transmit_, 1); }
  void Reclaim() {
    PolledQueue::Used used;
    while (transmit_.Take(used)) --sending_;
  }
  void Drain() {
    while (sending_ != 0) Reclaim();
  }
  // Frames that have come; their rooms are given back.
  unsigned Take() {
    unsigned frames = 0;
    PolledQueue::Used used;
    while (receive_.Take(used)) {
      const std::byte* room = memory_ + (kRooms + uint64_t{used.slot} * kRoomBytes).value;
      if (more_ != 0) {
        --more_;
      } else {
        ++frames;
        more_ = static_cast<unsigned>(room[10]) - 1;
      }
      receive_.Offer(static_cast<uint16_t>(used.slot));
    }
    Kick(receive_, 0);
    return frames;
  }

 private:
  static test::DeviceProcess::Options Options(test::TapNetwork& network) {
    return {.configure =
                [&network](control::VmConfig::Builder vm) {
                  auto net = vm.initNets(1)[0];
                  std::vector<OwnFd> queues = network.TakeQueues();
                  net.initTaps(1).set(0, MakeFile(std::move(queues[0])));
                  auto mac = net.initMac(6);
                  mac[0] = 2;
                  mac[5] = kGuest;
                  net.setMtu(1500);
                },
            .plan = broker::PlanNets};
  }
  void Kick(PolledQueue& queue, size_t index) {
    if (queue.KickWanted()) process_.Kick(index);
  }

  test::DeviceProcess process_;
  test::ProcessFunction function_;
  std::byte* const memory_;
  PolledQueue receive_, transmit_;
  unsigned sending_ = 0, more_ = 0;
  uint16_t next_slot_ = 0;
};

// Sends frames to the tap from the host's side until it goes out of scope, or sends back what comes.
class OtherEnd {
 public:
  OtherEnd(const test::TapNetwork& network, uint32_t flood_bytes)
      : thread_([this, &network, flood_bytes] { flood_bytes == 0 ? Echo(network) : Flood(network, flood_bytes); }) {}
  ~OtherEnd() {
    over_ = true;
    thread_.join();
  }

 private:
  void Flood(const test::TapNetwork& network, uint32_t bytes) {
    const auto packet = Packet(bytes, kGuest, kHost);
    const std::string frame(reinterpret_cast<const char*>(packet.data()) + kHeader, bytes);
    while (!over_) network.TrySend(frame);
  }
  void Echo(const test::TapNetwork& network) {
    while (!over_) {
      if (!network.WaitForFrame(100)) continue;
      std::string frame = network.Receive();
      std::swap_ranges(frame.begin(), frame.begin() + 6, frame.begin() + 6);
      network.TrySend(frame);
    }
  }

  std::atomic<bool> over_ = false;
  std::thread thread_;
};

Cost Send(kj::AsyncIoContext& io, uint32_t bytes, unsigned count) {
  test::TapNetwork network(1);
  Driver driver(io, network);
  driver.Prepare(bytes);
  const double cpu = CpuOf(driver.pid());
  const auto begun = Clock::now();
  for (unsigned i = 0; i < count; ++i) {
    driver.Send();
    if (i % 32 == 0) driver.Flush();
  }
  driver.Flush();
  driver.Drain();
  return {MicrosecondsSince(begun) / count, (CpuOf(driver.pid()) - cpu) / count};
}

Cost Receive(kj::AsyncIoContext& io, uint32_t bytes, unsigned count) {
  test::TapNetwork network(1);
  Driver driver(io, network);
  OtherEnd peer(network, bytes);
  while (driver.Take() == 0) continue;
  const double cpu = CpuOf(driver.pid());
  const auto begun = Clock::now();
  for (unsigned received = 0; received < count;) received += driver.Take();
  return {MicrosecondsSince(begun) / count, (CpuOf(driver.pid()) - cpu) / count};
}

Cost RoundTrip(kj::AsyncIoContext& io, uint32_t bytes, unsigned count) {
  test::TapNetwork network(1);
  Driver driver(io, network);
  OtherEnd peer(network, 0);
  driver.Prepare(bytes);
  const double cpu = CpuOf(driver.pid());
  const auto begun = Clock::now();
  for (unsigned i = 0; i < count; ++i) {
    driver.Send();
    driver.Flush();
    while (driver.Take() == 0) continue;
    driver.Drain();
  }
  return {MicrosecondsSince(begun) / count, (CpuOf(driver.pid()) - cpu) / count};
}

// The limits.
void Require(bool done) {
  if (!done) std::abort();
}

double BareSend(uint32_t bytes, unsigned count) {
  test::TapNetwork network(1);
  const auto queues = network.TakeQueues();
  bench::BareTap tap(queues[0].get());
  const auto packet = Packet(bytes, kHost, kGuest);
  const auto begun = Clock::now();
  Require(tap.Send(packet, count));
  return MicrosecondsSince(begun) / count;
}

double BareReceive(uint32_t bytes, unsigned count) {
  test::TapNetwork network(1);
  const auto queues = network.TakeQueues();
  bench::BareTap tap(queues[0].get());
  OtherEnd peer(network, bytes);
  Require(tap.Receive(kHeader + bytes));
  const auto begun = Clock::now();
  Require(tap.Receive(kHeader + bytes, count));
  return MicrosecondsSince(begun) / count;
}

double BareRoundTrip(uint32_t bytes, unsigned count) {
  test::TapNetwork network(1);
  const auto queues = network.TakeQueues();
  bench::BareTap tap(queues[0].get());
  OtherEnd peer(network, 0);
  const auto packet = Packet(bytes, kHost, kGuest);
  const auto begun = Clock::now();
  Require(tap.ThereAndBack(packet, count));
  return MicrosecondsSince(begun) / count;
}

void Print(const char* name, const Cost& cost, double limit) {
  std::printf("| %s | %.2f | %.2f | %.2f |\n", name, cost.time_us, cost.cpu_us, limit);
  std::fflush(stdout);
}

}  // namespace

int main() {
  if (!test::TapNetwork::Possible()) {
    std::fputs("net-device: only root can make a tap, where there is /dev/net/tun\n", stderr);
    return 1;
  }
  auto io = kj::setupAsyncIo();
  constexpr unsigned kMany = 500'000, kFew = 100'000;
  std::puts("| µs for a frame | time | CPU | bare system calls |\n|---|---|---|---|");
  Print("send 64 bytes", Send(io, 60, kMany), BareSend(60, kMany));
  Print("send 1500 bytes", Send(io, 1514, kMany), BareSend(1514, kMany));
  Print("send 64 KiB", Send(io, bench::kLargestFrame, kFew), BareSend(bench::kLargestFrame, kFew));
  Print("receive 64 bytes", Receive(io, 60, kMany), BareReceive(60, kMany));
  Print("receive 1500 bytes", Receive(io, 1514, kMany), BareReceive(1514, kMany));
  Print("there and back", RoundTrip(io, 60, kFew), BareRoundTrip(60, kFew));
}
