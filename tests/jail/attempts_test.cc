// SPDX-License-Identifier: Apache-2.0
// A hostile program in the place of each real child, with the grants, sandbox and ring of that kind. Each attempt works
// outside (or the test would prove nothing), is stopped by the filter of each kind of process, with the call named, and
// where the filter is gone by the wall behind it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "broker/image_job.h"
#include "ipc/image.capnp.h"
#include "ipc/mailbox.h"
#include "ipc/rpc.h"
#include "tests/jail/attempts.h"
#include "tests/process/device_process.h"
#include "tests/process/harness.h"

namespace bulkhead::jail {
namespace {

using test::DeviceProcess;

bool IsRoot() { return ::geteuid() == 0; }

// What the attempts are aimed at.
class AttemptTest : public testing::Test {
 protected:
  AttemptTest() {
    targets_.file = dir_.MakeFile("secret", "secret");
    dir_.MakeFile("secret.other", "secret");
    targets_.socket = dir_.Path("socket");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, targets_.socket.c_str(), sizeof address.sun_path - 1);
    listener_ = OwnFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 64), 0);
    targets_.victim = ::fork();
    if (targets_.victim == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) ::pause();
    }
  }
  ~AttemptTest() override {
    ::kill(targets_.victim, SIGKILL);
    ::waitpid(targets_.victim, nullptr, 0);
  }

  // Whether it works for a process of this user that no wall stands around.
  bool WorksOutside(const Attempt& attempt) const {
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      // What root may do stays here: the host keeps its mounts and its name.
      const int flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC;
      if (IsRoot() && (::unshare(flags) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0))
        ::_exit(2);
      ::_exit(attempt.make(targets_) ? 0 : 1);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

  struct Outcome {
    bool got_through = false;
    std::string death;  // empty: it lives
  };
  // Made by a rogue in the place of a process of this name.
  Outcome Make(const Attempt& attempt, const std::string& name) {
    if (name.starts_with("img")) return MakeFromImg(attempt, name.ends_with("unfiltered"));
    const std::string settings = Orders(attempt);
    DeviceProcess process(*io_, {.configure =
                                     [this, &name](auto config) {
                                       if (name.starts_with("usernet")) {
                                         test::ConfigureUserNet(config);
                                       } else {
                                         Configure(config);
                                       }
                                     },
                                 .plan = PlannerOf(name),
                                 .executable = test::BuildDir() + "/tests/rogue",
                                 .name = name,
                                 .settings_text = settings});
    if (!process.plan().reached_by_guest()) return MakeAtRestore(process);
    Mailbox mailbox(io_->unixEventPort);
    auto answered = kj::newPromiseAndFulfiller<uint64_t>();
    // As a vCPU does: it waits while the broker goes on.
    std::thread vcpu([&] {
      const uint64_t value = process.channel().Read(0, 0, 1);
      mailbox.Post([&, value] { answered.fulfiller->fulfill(uint64_t{value}); });
    });
    auto served = mailbox.Serve().eagerlyEvaluate([](kj::Exception&&) {});
    auto lives = answered.promise.then([](uint64_t value) { return value == 1; });
    Outcome outcome = Await(kj::mv(lives), process.WhenDead());
    process.channel().MarkDead();
    vcpu.join();
    return outcome;
  }

  // Whether it got through, if it lives.
  Outcome Await(kj::Promise<bool> lives, kj::Promise<std::string> died) {
    std::string death;
    auto died_first = died.then([&death](std::string how) {
      death = std::move(how);
      return false;
    });
    const bool got_through = lives.exclusiveJoin(kj::mv(died_first)).wait(io_->waitScope);
    return {got_through, death};
  }
  // How one died that was asked by a call is told by its end.
  static kj::Promise<bool> Refused(const kj::Exception& error) {
    if (error.getType() == kj::Exception::Type::DISCONNECTED) return kj::NEVER_DONE;
    return false;
  }
  Outcome MakeAtRestore(DeviceProcess& process) {
    auto lives = process.device().restoreRequest().send().then([](auto) -> kj::Promise<bool> { return true; },
                                                               [](kj::Exception&& error) { return Refused(error); });
    return Await(kj::mv(lives), process.WhenDead());
  }

  void ExpectStoppedAndNamed(const std::string& kind) {
    for (const Attempt& attempt : Attempts()) {
      const Outcome outcome = Make(attempt, kind);
      EXPECT_FALSE(outcome.got_through) << attempt.name << " from " << kind;
      EXPECT_NE(outcome.death.find("forbidden system call"), std::string::npos)
          << attempt.name << " from " << kind << ": " << outcome.death;
    }
  }
  void ExpectStoppedByTheWallBehind(const std::string& kind) {
    for (const Attempt& attempt : Attempts()) {
      if (attempt.second_wall == nullptr) continue;
      // It keeps the host's network; its rules are its own.
      if (kind.starts_with("usernet") && std::string(attempt.name).starts_with("socket-inet")) continue;
      EXPECT_FALSE(Make(attempt, kind).got_through) << attempt.name << " from " << kind << ": " << attempt.second_wall;
    }
  }

  // The same in the place of the process that works for `bulkhead img`, whose image is one that it may only read.
  Outcome MakeFromImg(const Attempt& attempt, bool unfiltered) {
    capnp::MallocMessageBuilder message;
    auto file = message.initRoot<capnp::List<control::ImageChain>>(1)[0].initFiles(1)[0];
    const OwnFd image(::open(targets_.file.c_str(), O_RDONLY | O_CLOEXEC));
    file.setFile(ShareFile(image.get()));
    file.setName((unfiltered ? "unfiltered " : "") + Orders(attempt));
    file.setReadOnly(true);
    broker::ImageJob job(*io_, test::BuildDir() + "/tests/rogue-img",
                         message.getRoot<capnp::List<control::ImageChain>>().asReader());
    auto lives = job.worker().infoRequest().send().then(
        [](auto response) -> kj::Promise<bool> { return response.getInfo().getVirtualBytes() == 1; },
        [](kj::Exception&& error) { return Refused(error); });
    return Await(kj::mv(lives), job.WhenDead());
  }
  std::string Orders(const Attempt& attempt) const {
    return std::string(attempt.name) + " " + std::to_string(targets_.victim) + " " + targets_.file + " " +
           targets_.socket;
  }

  // The disk's image is one that it may only read.
  void Configure(control::VmConfig::Builder config) const {
    config.initSerial();
    auto disk = config.initDisks(1)[0];
    const OwnFd image(::open(targets_.file.c_str(), O_RDONLY | O_CLOEXEC));
    disk.setFile(ShareFile(image.get()));
    disk.setReadOnly(true);
    // In the place of a tap, which takes rights to make.
    auto net = config.initNets(1)[0];
    net.initTaps(1).set(0, ShareFile(image.get()));
    net.initMac(6)[0] = 2;
    net.setMtu(1500);
  }
  static std::function<void(broker::Planner&)> PlannerOf(const std::string& name) {
    if (name.starts_with("disk")) return broker::PlanDisks;
    if (name.starts_with("net") || name.starts_with("usernet")) return broker::PlanNets;
    if (name == "console") return broker::PlanConsole;
    if (name == "chipset") return broker::PlanChipset;
    if (name == "vcpu-runner") return PlanRunner;
    return broker::PlanRng;
  }
  // What a device has, and beside that a VM and a vCPU.
  static void PlanRunner(broker::Planner& planner) {
    broker::DevicePlan& plan = planner.Add("vcpu-runner", "");
    planner.AddVirtioFunction(plan, 1);
    const OwnFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    OwnFd vm(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
    OwnFd vcpu(::ioctl(vm.get(), KVM_CREATE_VCPU, 0));
    EXPECT_TRUE(vcpu.valid());
    plan.files.push_back(std::move(vm));
    plan.files.push_back(std::move(vcpu));
    plan.uses_guest_memory = true;
  }

  test::TempDir dir_;
  OwnFd listener_;
  Targets targets_;
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
};

TEST_F(AttemptTest, EachWorksWhereNothingStandsInItsWay) {
  for (const Attempt& attempt : Attempts()) {
    if (attempt.needs_root && !IsRoot()) continue;
    if (attempt.needs_device != nullptr && ::access(attempt.needs_device, R_OK | W_OK) != 0) continue;
    dir_.MakeFile("secret.other", "secret");
    EXPECT_TRUE(WorksOutside(attempt)) << attempt.name;
  }
}

TEST_F(AttemptTest, EachIsStoppedByTheFilterOfEachKindOfProcessAndNamed) {
  for (const char* kind : {"rng", "disk0", "net0", "console", "chipset", "vcpu-runner"}) ExpectStoppedAndNamed(kind);
}

TEST_F(AttemptTest, EachIsStoppedByTheWallBehindTheFilter) {
  for (const char* kind : {"disk0-unfiltered", "rng-unfiltered"}) ExpectStoppedByTheWallBehind(kind);
}

// Needs no KVM.
TEST_F(AttemptTest, EachIsStoppedInTheProcessThatKeepsTheNetwork) {
  ExpectStoppedAndNamed("usernet0");
  ExpectStoppedByTheWallBehind("usernet0-unfiltered");
}

// Needs no KVM.
TEST_F(AttemptTest, EachIsStoppedInTheProcessThatWorksOnImages) {
  ExpectStoppedAndNamed("img");
  ExpectStoppedByTheWallBehind("img-unfiltered");
}

}  // namespace
}  // namespace bulkhead::jail
