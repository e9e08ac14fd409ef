// SPDX-License-Identifier: Apache-2.0
// The real device processes are asked for a sign of life while one of their threads is held by a tracer, and the others
// go on: the answer tells, whichever thread that is.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "ipc/rpc.h"
#include "tests/process/device_process.h"
#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

struct Kind {
  const char* name;
  void (*configure)(control::VmConfig::Builder vm, const std::string& image);
  void (*plan)(broker::Planner&);
  const char* plan_name;
  std::vector<std::string> threads;  // beside the main thread
};

void ConfigureDisk(control::VmConfig::Builder vm, const std::string& image) {
  auto disk = vm.initDisks(1)[0];
  disk.setFile(MakeFile(OwnFd(::open(image.c_str(), O_RDWR | O_CLOEXEC))));
  disk.setName(image);
  disk.setQueues(2);
}

const Kind kKinds[] = {
    {"Disk", ConfigureDisk, broker::PlanDisks, "disk0", {"device", "queue0", "queue1"}},
    {"Net", [](auto vm, const auto&) { ConfigureUserNet(vm); }, broker::PlanNets, "net0", {"device", "queue0"}},
    {"UserNet", [](auto vm, const auto&) { ConfigureUserNet(vm); }, broker::PlanNets, "usernet0", {"device"}},
    {"Rng", [](auto, const auto&) {}, broker::PlanRng, "rng", {"device"}},
    {"Chipset", [](auto, const auto&) {}, broker::PlanChipset, "chipset", {"device"}},
    {"Console", [](auto, const auto&) {}, broker::PlanConsole, "console", {"device"}},
};

// Holds one thread of a process until its end.
class Held {
 public:
  explicit Held(pid_t thread) : thread_(thread) {
    seized_ = ::ptrace(PTRACE_SEIZE, thread_, nullptr, nullptr) == 0;
    if (seized_ && ::ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr) == 0) {
      held_ = ::waitpid(thread_, nullptr, __WALL) == thread_;
    }
  }
  ~Held() {
    if (seized_) ::ptrace(PTRACE_DETACH, thread_, nullptr, nullptr);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  bool held() const { return held_; }

 private:
  const pid_t thread_;
  bool seized_ = false;
  bool held_ = false;
};

std::map<std::string, pid_t> ThreadsOf(pid_t pid) {
  std::map<std::string, pid_t> threads;
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::string name = ReadFile(task.path() / "comm");
    name.pop_back();
    threads[name] = std::stoi(task.path().filename());
  }
  return threads;
}

class Pulse : public testing::TestWithParam<Kind> {};

std::string NameOf(const testing::TestParamInfo<Kind>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Kinds, Pulse, testing::ValuesIn(kKinds), NameOf);

TEST_P(Pulse, TellsOfEachThreadThatHangs) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may trace a process that is locked down";
  const Kind& kind = GetParam();
  const TempDir dir;
  const std::string image = dir.MakeImage("image", 1 << 20);
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, {.configure = [&](control::VmConfig::Builder vm) { kind.configure(vm, image); },
                             .plan = kind.plan,
                             .plan_name = kind.plan_name});
  const PulseLine& line = process.pulse();
  // What it has answered, when it does.
  const auto ask = [&] {
    line.TakeAnswer();
    line.Ask();
    std::optional<uint32_t> open;
    EXPECT_TRUE(Eventually([&] { return (open = line.TakeAnswer()).has_value(); }));
    return open.value_or(0);
  };
  const auto all_answer = [&] { return ask() == 0; };
  const auto threads = ThreadsOf(process.pid());
  for (const std::string& name : kind.threads) {
    ASSERT_TRUE(threads.contains(name)) << name;
    ASSERT_TRUE(Eventually(all_answer)) << name;
    {
      const Held held(threads.at(name));
      ASSERT_TRUE(held.held()) << name;
      if (name == "device") {
        // Which is the one that would answer.
        line.TakeAnswer();
        line.Ask();
        ::usleep(10'000);
        EXPECT_FALSE(line.TakeAnswer());
      } else {
        // The first may have been answered before.
        ask();
        const unsigned before = ask();
        EXPECT_EQ(ask(), before + 1) << name;
      }
    }
    EXPECT_TRUE(Eventually(all_answer)) << name;
  }
}

}  // namespace
}  // namespace bulkhead::test
