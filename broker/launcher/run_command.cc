// SPDX-License-Identifier: Apache-2.0
// `bulkhead run`: one VM from its files to its end.
#include <signal.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <optional>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "broker/launcher/img_session.h"
#include "broker/launcher/runtime_dir.h"
#include "broker/launcher/vm_brokers.h"
#include "broker/launcher/vm_resources.h"
#include "ipc/mailbox.h"
#include "ipc/start_up_memory.h"

namespace bulkhead::launcher {
namespace {

using control::ExitReport;

// As a shell reports a command that a signal ended.
constexpr int kSignalStatus = 128;

// The first signal presses the power button, the next ends the VM.
class Signals {
 public:
  explicit Signals(kj::UnixEventPort& port) : port_(port) {}

  static void Capture() {
    for (const int number : kNumbers) kj::UnixEventPort::captureSignal(number);
  }
  // Fails with the first signal; for as long as there is no guest to ask.
  kj::Promise<void> FailOnFirst() {
    return Next().then([this](int number) {
      fatal_ = number;
      throw Failure(std::string("interrupted by ") + ::strsignal(number) + " before the VM ran");
    });
  }
  // Never resolves.
  kj::Promise<void> Serve(control::VmControl::Client vm) {
    return Next().then([this, vm](int number) mutable {
      if (pressed_) {
        fatal_ = number;
        SendAndForget(vm.killRequest());
      } else {
        PressPowerButton(vm);
      }
      return Serve(kj::mv(vm));
    });
  }
  void PressPowerButton(control::VmControl::Client vm) {
    pressed_ = true;
    std::fprintf(stderr, "bulkhead: asking the guest to shut down; another signal ends it\n");
    SendAndForget(vm.pressPowerButtonRequest());
  }
  // The signal that ended the VM, or 0.
  int fatal() const { return fatal_; }
  kj::Promise<int> Next() {
    auto first = port_.onSignal(kNumbers[0]);
    for (size_t i = 1; i < kNumbers.size(); ++i) first = first.exclusiveJoin(port_.onSignal(kNumbers[i]));
    return first.then([](siginfo_t info) { return info.si_signo; });
  }

 private:
  static constexpr std::array kNumbers{SIGINT, SIGTERM, SIGHUP};

  kj::UnixEventPort& port_;
  bool pressed_ = false;
  int fatal_ = 0;
};

void TellMissingWalls(const std::string& name, capnp::List<capnp::Text>::Reader missing) {
  std::string line;
  for (const auto wall : missing) line += (line.empty() ? "" : "; ") + std::string(wall.cStr());
  if (line.empty()) return;
  std::fprintf(stderr, "bulkhead: VM '%s' runs without some walls of its sandbox: %s\n", name.c_str(), line.c_str());
}

control::VmControl::Client CreateVm(const RunOptions& options, const RuntimeDir& directory, kj::AsyncIoContext& io,
                                    VmBrokers& brokers, Signals& signals, const VmResources& resources,
                                    bool first_boot) {
  auto request = brokers.current().broker().createVmRequest();
  resources.Fill(options, directory, request.initConfig());
  auto created = request.send().then([&](auto response) -> kj::Promise<control::VmControl::Client> {
    if (first_boot) TellMissingWalls(options.name, response.getMissingWalls());
    auto vm = response.getVm();
    return AwaitFile(response.getSpawner()).then([&brokers, vm](OwnFd spawner) mutable {
      brokers.Keep(std::move(spawner));
      return kj::mv(vm);
    });
  });
  auto interrupted = signals.FailOnFirst().then([]() -> control::VmControl::Client { KJ_UNREACHABLE; });
  return created.exclusiveJoin(kj::mv(interrupted)).wait(io.waitScope);
}

// The user's keyboard, if a console is on it, for as long as the guest runs. The keys are for the VM of the current
// boot.
class Keyboard {
 public:
  Keyboard(kj::UnixEventPort& port, Signals& signals, std::optional<StdioConsole>& terminal)
      : keys_(port), signals_(signals), terminal_(terminal) {}
  ~Keyboard() {
    // The reading thread uses the rest.
    if (terminal_) terminal_->StopInput();
  }
  void Start(control::VmControl::Client vm) {
    const bool first = !vm_;
    vm_ = kj::mv(vm);
    if (!first || !terminal_) return;
    raw_.emplace();
    terminal_->StartInput(*raw_, {.quit = [this] { keys_.Post([this] { SendAndForget(vm_->killRequest()); }); },
                                  .power_button = [this] { keys_.Post([this] { signals_.PressPowerButton(*vm_); }); }});
  }
  kj::Promise<void> Serve() { return keys_.Serve(); }

 private:
  Mailbox keys_;
  Signals& signals_;
  std::optional<StdioConsole>& terminal_;
  std::optional<RawTerminal> raw_;
  std::optional<control::VmControl::Client> vm_;
};

// Carries the user's signals and keys until the VM has ended.
capnp::Response<control::VmControl::WaitForEndResults> Attend(kj::AsyncIoContext& io, control::VmControl::Client vm,
                                                              Signals& signals, Keyboard& keyboard) {
  keyboard.Start(vm);
  StartUpMemory start_up(io.provider->getTimer());
  start_up.ForgetSoon();
  auto served = signals.Serve(vm).exclusiveJoin(keyboard.Serve()).eagerlyEvaluate([](kj::Exception&&) {});
  return vm.waitForEndRequest().send().wait(io.waitScope);
}

// The same, by whichever broker there is.
capnp::Response<control::VmControl::WaitForEndResults> AttendAnyway(kj::AsyncIoContext& io,
                                                                    control::VmControl::Client vm, VmBrokers& brokers,
                                                                    Signals& signals, Keyboard& keyboard) {
  for (;;) {
    try {
      return Attend(io, vm, signals, keyboard);
    } catch (const kj::Exception& error) {
      if (error.getType() != kj::Exception::Type::DISCONNECTED) throw;
    }
    vm = brokers.TakeOver();
  }
}

// Writes the guest's last words: all there once the broker, and so everybody who could add to them, has ended. Whoever
// reads stdout may have stopped reading; then a signal ends the wait.
void Drain(kj::AsyncIoContext& io, Signals& signals, VmResources& resources) {
  resources.CloseGuestEnds();
  for (auto* console : {&resources.terminal(), &resources.debug()}) {
    if (!*console || !(*console)->carries_output()) continue;
    kj::UnixEventPort::FdObserver ended(io.unixEventPort, (*console)->output_ended(),
                                        kj::UnixEventPort::FdObserver::OBSERVE_READ);
    auto given_up = signals.Next().then([](int) { return true; });
    const bool stop =
        ended.whenBecomesReadable().then([] { return false; }).exclusiveJoin(kj::mv(given_up)).wait(io.waitScope);
    if (stop) return;
  }
}

int Report(const std::string& name, ExitReport::Reader report, int fatal_signal) {
  switch (report.getKind()) {
    case ExitReport::Kind::POWER_OFF:
      return 0;
    case ExitReport::Kind::RESET:
      // A guest that crashed so hard says nothing itself.
      if (report.getDetail().size() != 0) {
        std::fprintf(stderr, "bulkhead: VM '%s' was reset: %s\n", name.c_str(), report.getDetail().cStr());
      }
      return 0;
    case ExitReport::Kind::KILLED:
      std::fprintf(stderr, "bulkhead: VM '%s' was killed\n", name.c_str());
      return fatal_signal != 0 ? kSignalStatus + fatal_signal : 0;
    case ExitReport::Kind::FAILURE:
    case ExitReport::Kind::DEVICE_FAILURE:
      break;
  }
  std::fprintf(stderr, "bulkhead: VM '%s' failed: %s\n", name.c_str(), report.getDetail().cStr());
  return 1;
}

// One boot, in processes of its own; true if another is due.
bool BootOnce(const RunOptions& options, const RuntimeDir& directory, kj::AsyncIoContext& io, Signals& signals,
              Keyboard& keyboard, VmResources& resources, bool first_boot, int& status) {
  VmBrokers brokers(io, options, directory, resources);
  try {
    auto vm = CreateVm(options, directory, io, brokers, signals, resources, first_boot);
    SendAndForget(vm.resumeRequest());
    auto end = AttendAnyway(io, kj::mv(vm), brokers, signals, keyboard);
    brokers.Finish();
    if (options.reboot && end.getReport().getKind() == ExitReport::Kind::RESET) return true;
    status = Report(options.name, end.getReport(), signals.fatal());
  } catch (const kj::Exception& error) {
    const std::string broker_end = brokers.current().DescribeEnd();
    if (error.getType() == kj::Exception::Type::DISCONNECTED) throw FatalError(broker_end + ", and the VM with it");
    if (signals.fatal() == 0) throw;
    std::fprintf(stderr, "bulkhead: %s\n", ReasonOf(error).c_str());
    status = kSignalStatus + signals.fatal();
  }
  return false;
}

ImgFormat ImgFormatOf(DiskFormat format) {
  switch (format) {
    case DiskFormat::kQcow2:
      return ImgFormat::kQcow2;
    case DiskFormat::kQcow:
      return ImgFormat::kQcow;
    case DiskFormat::kRaw:
      break;
  }
  return ImgFormat::kRaw;
}

DiskFormat DiskFormatOf(ImgFormat format) {
  if (format == ImgFormat::kQcow2) return DiskFormat::kQcow2;
  return format == ImgFormat::kQcow ? DiskFormat::kQcow : DiskFormat::kRaw;
}

// The options with the files that the images' headers name, for the disks whose user lets them: read, as all headers
// are, by a process behind walls. Signals still end this program meanwhile.
RunOptions WithFilesBelow(RunOptions options) {
  for (DiskOption& disk : options.disks) {
    if (!disk.backing_from_header) continue;
    ImgOptions image;
    image.file = disk.path;
    image.format = ImgFormatOf(disk.format);
    image.backing_from_header = true;
    auto io = kj::setupAsyncIo();
    for (const FileBelow& file : FilesBelow(io, image)) {
      disk.backing.push_back({.path = file.path, .format = DiskFormatOf(file.format)});
    }
  }
  return options;
}

}  // namespace

int RunCommand(const RunOptions& given) {
  RefuseHugePages();
  const RuntimeDir directory;
  const RuntimeDir::NameLock name_lock = directory.LockName(given.name);
  const RunOptions options = WithFilesBelow(given);
  Signals::Capture();
  auto io = kj::setupAsyncIo();
  Signals signals(io.unixEventPort);
  VmResources resources(options);
  for (auto* console : {&resources.terminal(), &resources.debug()}) {
    if (*console) (*console)->StartOutput();
  }
  int status = 0;
  {
    KJ_DEFER(Drain(io, signals, resources));
    Keyboard keyboard(io.unixEventPort, signals, resources.terminal());
    bool first_boot = true;
    while (BootOnce(options, directory, io, signals, keyboard, resources, first_boot, status)) first_boot = false;
  }
  return status;
}

}  // namespace bulkhead::launcher
