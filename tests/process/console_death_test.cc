// SPDX-License-Identifier: Apache-2.0
// The processes that write what a guest says to somebody outside, killed at any moment meanwhile: nothing gets out
// twice, and nothing is lost. BULKHEAD_CHAOS_FAULTS, BULKHEAD_CHAOS_SEED.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "device-procs/chipset/regions.h"
#include "ipc/rpc.h"
#include "tests/process/device_process.h"
#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

struct Ends {
  OwnFd reader;
  OwnFd writer;
};

Ends MakeEnds(const std::function<int(int*)>& make) {
  std::array<int, 2> fds{-1, -1};
  EXPECT_EQ(make(fds.data()), 0);
  return {OwnFd(fds[0]), OwnFd(fds[1])};
}

Ends MakeFile(const TempDir& dir) {
  const std::string path = dir.MakeImage("console.log", 0);
  return {OwnFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)),
          OwnFd(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC))};
}

Ends MakePipe(const TempDir&) {
  return MakeEnds([](int* fds) { return ::pipe2(fds, O_CLOEXEC | O_NONBLOCK); });
}

Ends MakeSocket(const TempDir&) {
  return MakeEnds([](int* fds) { return ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds); });
}

// A way for the guest to say something.
struct Console {
  void (*plan)(broker::Planner&);
  void (*configure)(control::VmConfig::Builder, int output);
  void (*say)(runner::DeviceChannel&, const std::string&);
};

const Console kSerial{
    .plan = broker::PlanConsole,
    .configure = [](control::VmConfig::Builder vm, int output) { vm.initSerial().setOutput(ShareFile(output)); },
    .say =
        [](runner::DeviceChannel& channel, const std::string& text) {
          constexpr uint64_t kData = 0, kLineStatus = 5, kRoom = 0x20;
          while ((channel.Read(0, kLineStatus, 1) & kRoom) == 0) continue;
          for (const char c : text) channel.Post(0, kData, 1, static_cast<uint8_t>(c));
        }};

// Its output is lost where nobody takes it, so each line is waited for.
const Console kDebugPort{
    .plan = broker::PlanChipset,
    .configure = [](control::VmConfig::Builder vm, int output) { vm.setDebugConsole(ShareFile(output)); },
    .say =
        [](runner::DeviceChannel& channel, const std::string& text) {
          constexpr auto kRegion = static_cast<uint16_t>(chipset::Region::kDebugConsole);
          for (const char c : text) channel.Post(kRegion, 0, 1, static_cast<uint8_t>(c));
          channel.Read(kRegion, 0, 1);
        }};

struct Case {
  const char* name;
  Console console;
  Ends (*outside)(const TempDir&);
};

void PrintTo(const Case& each, std::ostream* out) { *out << each.name; }

class ConsoleDeath : public testing::TestWithParam<Case> {};

TEST_P(ConsoleDeath, RepeatsAndLosesNoByte) {
  // So that the memory by which it goes is given back, too.
  constexpr size_t kMuch = 200'000;
  const unsigned kills = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 100) / 4;
  std::mt19937_64 random(FromEnvironment("BULKHEAD_CHAOS_SEED", 1));
  const TempDir dir;
  const Ends outside = GetParam().outside(dir);
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, {.configure = [&](auto vm) { GetParam().console.configure(vm, outside.writer.get()); },
                             .plan = GetParam().console.plan});
  std::string said, heard;
  unsigned lines = 0;
  const auto say = [&] {
    const std::string text = std::to_string(++lines) + "\n";
    GetParam().console.say(process.channel(), text);
    said += text;
  };
  const auto listen = [&] {
    std::array<char, 4096> bytes;
    for (ssize_t count; (count = ::read(outside.reader.get(), bytes.data(), bytes.size())) > 0;)
      heard.append(bytes.data(), static_cast<size_t>(count));
  };
  for (unsigned i = 0; i < kills; ++i) {
    std::atomic<bool> stop = false;
    std::thread vcpu([&] {
      while (!stop) say();
    });
    std::thread listener([&] {
      while (!stop) listen();
    });
    ::usleep(static_cast<useconds_t>(random() % 1500));
    ASSERT_EQ(::kill(process.pid(), SIGKILL), 0);
    process.Replace();
    ::usleep(1000);
    stop = true;
    vcpu.join();
    listener.join();
    ASSERT_FALSE(process.channel().failed());
  }
  while (said.size() < kMuch) say(), listen();
  EXPECT_TRUE(Eventually([&] { return listen(), heard.size() >= said.size(); }));
  const auto [difference, expected] = std::ranges::mismatch(heard, said);
  EXPECT_TRUE(heard == said) << "of " << said.size() << " bytes " << heard.size() << ", the same up to "
                             << difference - heard.begin();
}

INSTANTIATE_TEST_SUITE_P(Outsides, ConsoleDeath,
                         testing::Values(Case{"SerialToFile", kSerial, MakeFile},
                                         Case{"SerialToPipe", kSerial, MakePipe},
                                         Case{"SerialToSocket", kSerial, MakeSocket},
                                         Case{"DebugPortToPipe", kDebugPort, MakePipe},
                                         Case{"DebugPortToFile", kDebugPort, MakeFile}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace bulkhead::test
