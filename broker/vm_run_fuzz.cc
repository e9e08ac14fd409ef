// SPDX-License-Identifier: Apache-2.0
// libFuzzer: a VM's run whose children are all owned by an attacker. They send any bytes over their connections and
// logs, attach descriptors, hang up and die, while the VM's user pauses, resumes and presses buttons.
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <deque>
#include <optional>
#include <string>

#include "broker/fuzz_peer.h"
#include "broker/spawn.h"
#include "broker/vm_run.h"

namespace bulkhead::broker {
namespace {

using fuzz::FuzzInput;
using fuzz::HostilePeer;
using fuzz::Loop;
using fuzz::Require;
using fuzz::Settle;

struct Process {
  HostilePeer peer;
  OwnFd log;
  OwnFd death;
};

// In the order in which the broker started them: the runner's and the devices'.
std::deque<Process>* processes = nullptr;

bool IsPlain(const std::string& line) {
  return std::all_of(line.begin(), line.end(), [](char c) { return c >= 0x20 && c < 0x7F; });
}

std::unique_ptr<DevicePlan> MakePlan(const char* name) {
  auto plan = std::make_unique<DevicePlan>();
  plan->name = name;
  plan->executable = "none";
  plan->regions.push_back({PlannedRegion::Kind::kPort, 0x70, 2});
  plan->lines.push_back({.gsi = 9, .level = true});
  plan->replacement = DevicePlan::Replacement::kAlways;
  return plan;
}

VmSettings MakeSettings(uint8_t flags) {
  VmSettings settings;
  settings.name = "fuzz";
  settings.memory_bytes = 16 << 20;
  settings.vcpu_count = 1;
  settings.kernel = OrThrow(MakeEventFd());
  settings.kernel_name = "kernel";
  settings.keep_on_device_failure = (flags & 1) != 0;
  settings.device_restarts = flags & 2;
  settings.devices.push_back(MakePlan("chipset"));
  settings.devices.back()->controls_machine = true;
  settings.devices.back()->takes_power_button = true;
  settings.devices.push_back(MakePlan("disk0"));
  DevicePlan& disk = *settings.devices.back();
  disk.uses_guest_memory = true;
  disk.kernel_writes = true;
  // One kind is as good as another: it is a network interface, too.
  disk.takes_throttle = true;
  disk.has_link = true;
  disk.files.push_back(OrThrow(MakeEventFd()));
  disk.functions.push_back({.slot = 1, .bar0_address = 0, .queues = 1, .vectors = 2});
  disk.regions.push_back({PlannedRegion::Kind::kConfig, 0, 4096});
  return settings;
}

// No process either.
class FakeSpawner final : public Spawner {
 public:
  void Enroll(const std::string&, const std::string&, const Birthplace&) override {}
  void Seal() override {}
  kj::Promise<Newborn> Spawn(uint32_t, bool anew) override {
    if (anew) return Failure("it is not installed");
    return Newborn{.process = SpawnChild("none", "none", Birthplace()),
                   .reports_violations = false,
                   .was_ready = false,
                   .listener = {},
                   .take_listener = {},
                   .reap = [] {
                     return ProcessEnd{CLD_KILLED, SIGKILL};
                   }};
  }
  kj::Promise<Newborn> Adopt(uint32_t) override { return Failure("there is none"); }
  void Keep(uint32_t) override {}
  kj::Promise<uint32_t> NextStopped() override { return kj::NEVER_DONE; }
  kj::Promise<void> Store(Kept, size_t, uint8_t, std::vector<int>) override { return kj::READY_NOW; }
  kj::Promise<std::vector<OwnFd>> Fetch(Kept, size_t, uint8_t) override { return std::vector<OwnFd>(); }
};

class Vm {
 public:
  explicit Vm(uint8_t flags) : settings_(MakeSettings(flags)) {
    processes = &processes_;
    run_.emplace(Loop(), settings_, memory_, spawner_, [this] { WriteDown(); });
    run_->Start("/nowhere", kvm_, [](const std::string&) { return Birthplace(); });
    calls_.emplace(ignore_);
    calls_->add(run_->WhenEnded().then([](VmEnd end) { Require(IsPlain(end.detail)); }));
  }
  ~Vm() {
    // As when the VM is killed while its user's calls are still open.
    run_.reset();
    Settle();
    calls_.reset();
    Settle();
  }

  void Step(FuzzInput& input) {
    const auto action = input.Take<uint8_t>();
    Process& process = processes_[action % processes_.size()];
    switch (action / 16) {
      case 0:
        process.peer.HangUp();
        break;
      case 1:
        SignalEventFd(process.death.get());
        Settle();
        break;
      case 2: {
        const auto bytes = input.TakeBytes(input.Take<uint8_t>());
        (void)!::write(process.log.get(), bytes.data(), bytes.size());
        Settle();
        break;
      }
      case 3:
        Command(input);
        Settle();
        break;
      case 4:
      case 5:
        process.peer.Send(input.TakeBytes(input.Take<uint16_t>()), input.Take<uint8_t>());
        break;
      default:
        process.peer.Send(input.TakeBytes(input.Take<uint16_t>()), 0);
        break;
    }
  }

 private:
  struct Ignore final : kj::TaskSet::ErrorHandler {
    void taskFailed(kj::Exception&&) override {}
  };

  void WriteDown() {
    capnp::MallocMessageBuilder message;
    if (run_) run_->WriteDown(message.initRoot<record::VmRecord>());
  }

  void Command(FuzzInput& input) {
    const auto command = input.Take<uint8_t>();
    switch (command >= 0xF0 ? command : command % 8) {
      case 0:
        calls_->add(run_->Pause());
        break;
      case 1:
        calls_->add(run_->Resume());
        break;
      case 2:
        run_->PressPowerButton();
        break;
      case 3: {
        capnp::MallocMessageBuilder message;
        run_->Describe(message.initRoot<control::VmReport>().initProcesses(run_->process_count()));
        break;
      }
      case 4:
        run_->Attach(input.TakeBelow(2), 0, OrThrow(MakeEventFd()));
        break;
      case 5:
        run_->Go();
        break;
      case 6: {
        capnp::MallocMessageBuilder message;
        calls_->add(run_->Throttle("disk0", message.initRoot<control::DiskThrottle>()));
        break;
      }
      case 0xF0:
        calls_->add(run_->AskInterfaces().ignoreResult());
        break;
      case 0xF3:
        calls_->add(run_->Upgrade(input.TakeBelow(2) == 0 ? "" : "disk0").ignoreResult());
        break;
      case 0xF4:
        calls_->add(run_->BeginLog(1));
        break;
      case 0xF5:
        calls_->add(run_->TakeLog(1).ignoreResult());
        break;
      case 0xF6:
        run_->StopLog(1);
        break;
      case 0xF1:
      case 0xF2:
        calls_->add(run_->SetLink("disk0", command == 0xF2));
        break;
      default:
        TryPrepare();
        break;
    }
  }

  // Once; it waits for the children or for an end, so there is one.
  void TryPrepare() {
    if (std::exchange(prepared_, true)) return;
    run_->End({control::ExitReport::Kind::KILLED, "killed"});
    try {
      run_->Prepare();
    } catch (const kj::Exception& error) {
      Require(IsPlain(ReasonOf(error)));
    }
  }

  std::deque<Process> processes_;
  VmSettings settings_;
  OwnFd kvm_ = OrThrow(MakeEventFd());
  OwnFd memory_ = OrThrow(MakeSealedMemory("guest-fuzz", 16 << 20));
  Ignore ignore_;
  FakeSpawner spawner_;
  std::optional<VmRun> run_;
  std::optional<kj::TaskSet> calls_;
  bool prepared_ = false;
};

}  // namespace

// In place of broker/spawn.cc: no process, but what the broker sees of one.
ChildProcess SpawnChild(const std::string&, const std::string&, const Birthplace&) {
  auto [ours, theirs] = MakeSocketPair();
  std::array<int, 2> log;
  Require(::pipe2(log.data(), O_CLOEXEC | O_NONBLOCK) == 0);
  OwnFd death = OrThrow(MakeEventFd());
  processes->push_back({HostilePeer(std::move(theirs)), OwnFd(log[1]), OrThrow(DuplicateFd(death.get()))});
  return {.pid = 0, .pidfd = std::move(death), .control = std::move(ours), .log = OwnFd(log[0]), .spare = {}};
}

}  // namespace bulkhead::broker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bulkhead;
  fuzz::FuzzInput input(data, size);
  broker::Vm vm(input.Take<uint8_t>());
  while (!input.empty()) vm.Step(input);
  return 0;
}
