// SPDX-License-Identifier: Apache-2.0
// `bulkhead run`: one VM from its files to its end.
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <optional>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "broker/launcher/host_files.h"
#include "broker/launcher/runtime_dir.h"
#include "broker/launcher/stdio_console.h"
#include "ipc/mailbox.h"

namespace bulkhead::launcher {
namespace {

using Kind = StreamOption::Kind;
using control::ExitReport;

// As a shell reports a command that a signal ended.
constexpr int kSignalStatus = 128;

// The outsides of the guest's consoles, alive as long as the VM.
struct Outside {
  std::optional<StdioConsole> terminal;  // a console's input and output
  std::optional<StdioConsole> debug;     // the debug console's output: a child gets no descriptor of the user's own
  std::vector<Pty> ptys;
  std::vector<std::string> socket_paths;

  ~Outside() {
    for (const std::string& path : socket_paths) ::unlink(path.c_str());
  }
};

void FillStream(const char* what, const StreamOption& option, control::StreamConfig::Builder out, Outside& outside) {
  switch (option.kind) {
    case Kind::kNone:
      break;
    case Kind::kStdio: {
      const OwnFd end = outside.terminal.emplace().TakeGuestEnd();
      out.setInput(ShareFile(end.get()));
      out.setOutput(ShareFile(end.get()));
      break;
    }
    case Kind::kPty: {
      Pty pty = OpenPty();
      std::fprintf(stderr, "bulkhead: %s is at %s\n", what, pty.path.c_str());
      out.setInput(ShareFile(pty.master.get()));
      out.setOutput(ShareFile(pty.master.get()));
      outside.ptys.push_back(std::move(pty));
      break;
    }
    case Kind::kUnix:
      out.setListener(MakeFile(ListenAt(option.path)));
      outside.socket_paths.push_back(option.path);
      break;
    case Kind::kFile:
      out.setOutput(MakeFile(OpenOutput(option.path)));
      break;
  }
}

void FillDisks(const std::vector<DiskOption>& options, std::vector<OpenDisk>& disks, control::VmConfig::Builder out) {
  auto configs = out.initDisks(static_cast<unsigned>(disks.size()));
  for (unsigned i = 0; i < disks.size(); ++i) {
    configs[i].setFile(MakeFile(std::move(disks[i].file)));
    configs[i].setName(options[i].path);
    configs[i].setReadOnly(options[i].read_only);
    configs[i].setSerial(options[i].id);
    configs[i].setDirectIo(disks[i].direct_io);
    configs[i].setBlockDevice(disks[i].block_device);
    configs[i].setQueues(options[i].queues);
  }
}

// Opens everything the user named, so that a mistake costs nothing yet.
void FillConfig(const RunOptions& options, const RuntimeDir& directory, control::VmConfig::Builder out,
                Outside& outside, DiskLocks& locks) {
  CheckHostMemory(options.memory_bytes);
  out.setName(options.name);
  out.setMemoryBytes(options.memory_bytes);
  out.setVcpuCount(options.cpus);
  out.setKernel(MakeFile(OpenSource("kernel", options.kernel)));
  out.setKernelName(options.kernel);
  if (!options.initrd.empty()) {
    out.setInitrd(MakeFile(OpenSource("initrd", options.initrd)));
    out.setInitrdName(options.initrd);
  }
  out.setCommandLine(options.append);
  auto disks = OpenDisks(options.disks);
  for (const OpenDisk& disk : disks) locks.Add(disk.file);
  FillDisks(options.disks, disks, out);
  FillStream("the serial port", options.console, out.initSerial(), outside);
  if (options.virtio_console) {
    FillStream("the virtio console", *options.virtio_console, out.initVirtioConsole(), outside);
  }
  if (options.debug_console.kind == Kind::kStdio) {
    out.setDebugConsole(MakeFile(outside.debug.emplace().TakeGuestEnd()));
  }
  if (options.debug_console.kind == Kind::kFile) out.setDebugConsole(MakeFile(OpenOutput(options.debug_console.path)));
  out.setRebootOnReset(options.reboot);
  out.setKeepOnDeviceFailure(options.keep_on_device_failure);
  out.setExitDeadlineMs(options.exit_deadline_ms);
  out.setRuntimeDir(directory.path());
}

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

control::VmControl::Client CreateVm(const RunOptions& options, const RuntimeDir& directory, kj::AsyncIoContext& io,
                                    BrokerProcess& broker, Signals& signals, Outside& outside, DiskLocks& locks) {
  auto request = broker.broker().createVmRequest();
  FillConfig(options, directory, request.initConfig(), outside, locks);
  if (outside.terminal) outside.terminal->StartOutput();
  if (outside.debug) outside.debug->StartOutput();
  auto created = request.send().then([](auto response) -> control::VmControl::Client { return response.getVm(); });
  auto interrupted = signals.FailOnFirst().then([]() -> control::VmControl::Client { KJ_UNREACHABLE; });
  return created.exclusiveJoin(kj::mv(interrupted)).wait(io.waitScope);
}

// Carries the guest's consoles and the user's signals until the VM has ended.
capnp::Response<control::VmControl::WaitForEndResults> Attend(kj::AsyncIoContext& io, control::VmControl::Client vm,
                                                              Signals& signals, Outside& outside) {
  Mailbox keys(io.unixEventPort);
  std::optional<RawTerminal> raw;
  // The reading thread uses both.
  KJ_DEFER(if (outside.terminal) outside.terminal->StopInput());
  if (outside.terminal) {
    raw.emplace();
    outside.terminal->StartInput(*raw, {.quit = [&] { keys.Post([&] { SendAndForget(vm.killRequest()); }); },
                                        .power_button = [&] { keys.Post([&] { signals.PressPowerButton(vm); }); }});
  }
  auto served = signals.Serve(vm).exclusiveJoin(keys.Serve()).eagerlyEvaluate([](kj::Exception&&) {});
  return vm.waitForEndRequest().send().wait(io.waitScope);
}

// Writes the guest's last words: all there once the broker, and so everybody who could add to them, has ended. Whoever
// reads stdout may have stopped reading; then a signal ends the wait.
void Drain(kj::AsyncIoContext& io, Signals& signals, Outside& outside) {
  for (auto* console : {&outside.terminal, &outside.debug}) {
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
    case ExitReport::Kind::RESET:
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

}  // namespace

int RunCommand(const RunOptions& options) {
  const RuntimeDir directory;
  const RuntimeDir::NameLock name_lock = directory.LockName(options.name);
  Signals::Capture();
  auto io = kj::setupAsyncIo();
  Signals signals(io.unixEventPort);
  Outside outside;
  DiskLocks locks;
  BrokerProcess broker(io, "bulkhead:" + options.name + " broker");
  try {
    auto vm = CreateVm(options, directory, io, broker, signals, outside, locks);
    SendAndForget(vm.resumeRequest());
    auto end = Attend(io, kj::mv(vm), signals, outside);
    broker.Finish();
    Drain(io, signals, outside);
    return Report(options.name, end.getReport(), signals.fatal());
  } catch (const kj::Exception& error) {
    const std::string broker_end = broker.DescribeEnd();
    Drain(io, signals, outside);
    if (error.getType() == kj::Exception::Type::DISCONNECTED) throw FatalError(broker_end);
    if (signals.fatal() == 0) throw;
    std::fprintf(stderr, "bulkhead: %s\n", ReasonOf(error).c_str());
    return kSignalStatus + signals.fatal();
  }
}

}  // namespace bulkhead::launcher
