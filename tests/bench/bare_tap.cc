// SPDX-License-Identifier: Apache-2.0
// bare_tap: the frames of the network benchmark's guest (tests/payload/bench-net.cc) with build/tests/net-peer at the
// other end, but with neither guest nor VMM: the physical limit of both. One process, one thread.
//
//   bare_tap INTERFACE LOAD...   an existing tap; loads are as the guest's: send,BYTES,COUNT receive,BYTES,COUNT
//                                echo,BYTES,COUNT (one at a time)
//
// Prints for each load "load NANOSECONDS CPU", the second one this process's CPU time in nanoseconds.
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/bench/bare_frames.h"

namespace {

using namespace bulkhead::bench;

constexpr size_t kHeader = sizeof(PacketHeader);
constexpr int kQuietMs = 20;
constexpr unsigned kPatienceS = 120;  // of each load

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "bare_tap: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

int Open(const char* interface) {
  const int tap = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  ifreq request{};
  std::snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (tap < 0 || ::ioctl(tap, TUNSETIFF, &request) != 0) Fail(interface);
  // What the guest negotiates: segments come whole.
  if (::ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) != 0) Fail("TUNSETOFFLOAD");
  return tap;
}

int64_t Nanoseconds(clockid_t clock) {
  timespec now;
  ::clock_gettime(clock, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

std::vector<std::byte> Asking(const Message& message, uint32_t bytes) {
  auto packet = Packet(kHeader, bytes, kHost, kGuest);
  if (bytes <= kWholeFrame) std::memcpy(packet.data() + kHeader + kEthernetBytes, &message, sizeof message);
  return packet;
}

struct Load {
  std::string kind;
  uint32_t bytes = 0;
  uint64_t count = 0;
};

Load Parse(const std::string& word) {
  const size_t first = word.find(','), second = word.find(',', first + 1);
  if (second == std::string::npos) return {};
  return {word.substr(0, first), static_cast<uint32_t>(std::strtoul(word.c_str() + first + 1, nullptr, 10)),
          std::strtoull(word.c_str() + second + 1, nullptr, 10)};
}

class Meter {
 public:
  void Print() const {
    std::printf("load %ld %ld\n", Nanoseconds(CLOCK_MONOTONIC) - wall_, Nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_);
  }

 private:
  const int64_t wall_ = Nanoseconds(CLOCK_MONOTONIC), cpu_ = Nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
};

// From the first frame on, as the guest counts.
bool Receive(BareTap& tap, const Load& load) {
  const size_t packet_bytes = kHeader + load.bytes;
  if (!tap.Send(Asking({kFlood, load.bytes}, kSmallestFrame)) || !tap.Receive(packet_bytes)) return false;
  const Meter meter;
  if (!tap.Receive(packet_bytes, load.count - 1)) return false;
  meter.Print();
  if (!tap.Send(Asking({kStop, 0}, kSmallestFrame))) return false;
  tap.Drain(kQuietMs);
  return true;
}

bool Run(BareTap& tap, const Load& load) {
  if (load.kind == "receive") return Receive(tap, load);
  const auto packet = Asking({load.kind == "echo" ? kEcho : kSink, 0}, load.bytes);
  const Meter meter;
  const bool done = load.kind == "echo" ? tap.ThereAndBack(packet, load.count) : tap.Send(packet, load.count);
  if (done) meter.Print();
  return done;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("usage: bare_tap INTERFACE send|receive|echo,BYTES,COUNT...\n", stderr);
    return 2;
  }
  BareTap tap(Open(argv[1]));
  for (int i = 2; i < argc; ++i) {
    const Load load = Parse(argv[i]);
    const bool known = load.kind == "send" || load.kind == "receive" || load.kind == "echo";
    if (!known || load.bytes < kSmallestFrame || load.bytes > kLargestFrame || load.count < 2) {
      std::fprintf(stderr, "bare_tap: not a load: %s\n", argv[i]);
      return 2;
    }
    ::alarm(kPatienceS);
    if (!Run(tap, load)) Fail(argv[i]);
    std::fflush(stdout);
  }
}
