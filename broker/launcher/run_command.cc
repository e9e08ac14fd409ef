// SPDX-License-Identifier: Apache-2.0
// `bulkhead run`: one VM from its files to its end.
#include <signal.h>
#include <unistd.h>

#include <cstdio>

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

// The outsides of the guest's consoles, alive as long as the VM.
struct Outside {
  StdioConsole stdio;
  bool uses_stdio = false;
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
      outside.uses_stdio = true;
      const OwnFd end = outside.stdio.TakeGuestEnd();
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
                Outside& outside) {
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
  FillDisks(options.disks, disks, out);
  FillStream("the serial port", options.console, out.initSerial(), outside);
  if (options.virtio_console) {
    FillStream("the virtio console", *options.virtio_console, out.initVirtioConsole(), outside);
  }
  if (options.debug_console.kind == Kind::kStdio) out.setDebugConsole(ShareFile(STDOUT_FILENO));
  if (options.debug_console.kind == Kind::kFile) out.setDebugConsole(MakeFile(OpenOutput(options.debug_console.path)));
  out.setRebootOnReset(options.reboot);
  out.setKeepOnDeviceFailure(options.keep_on_device_failure);
  out.setExitDeadlineMs(options.exit_deadline_ms);
  out.setRuntimeDir(directory.path());
}

// The first signal presses the power button, the next ends the VM.
class Signals {
 public:
  static constexpr int kNumbers[] = {SIGINT, SIGTERM, SIGHUP};
  static void Capture() {
    for (const int number : kNumbers) kj::UnixEventPort::captureSignal(number);
  }

  Signals(kj::UnixEventPort& port, control::VmControl::Client vm) : port_(port), vm_(kj::mv(vm)) {}

  kj::Promise<void> Serve() {
    auto any = port_.onSignal(kNumbers[0]);
    any = any.exclusiveJoin(port_.onSignal(kNumbers[1])).exclusiveJoin(port_.onSignal(kNumbers[2]));
    return any.then([this](siginfo_t) {
      if (pressed_) {
        SendAndForget(vm_.killRequest());
      } else {
        PressPowerButton();
      }
      return Serve();
    });
  }
  void PressPowerButton() {
    pressed_ = true;
    std::fprintf(stderr, "bulkhead: asking the guest to shut down; another signal ends it\r\n");
    SendAndForget(vm_.pressPowerButtonRequest());
  }

 private:
  kj::UnixEventPort& port_;
  control::VmControl::Client vm_;
  bool pressed_ = false;
};

int Report(const std::string& name, ExitReport::Reader report) {
  switch (report.getKind()) {
    case ExitReport::Kind::POWER_OFF:
    case ExitReport::Kind::RESET:
      return 0;
    case ExitReport::Kind::KILLED:
      std::fprintf(stderr, "bulkhead: VM '%s' was killed\n", name.c_str());
      return 0;
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
  Outside outside;
  BrokerProcess broker(io);
  int status = 1;
  try {
    control::VmControl::Client vm = nullptr;
    {
      auto request = broker.broker().createVmRequest();
      FillConfig(options, directory, request.initConfig(), outside);
      // A signal before the VM runs ends the command, and with its connection the broker.
      auto interrupted = io.unixEventPort.onSignal(SIGINT)
                             .exclusiveJoin(io.unixEventPort.onSignal(SIGTERM))
                             .then([](siginfo_t) -> control::VmControl::Client { throw Failure("interrupted"); });
      vm = request.send()
               .then([](auto response) -> control::VmControl::Client { return response.getVm(); })
               .exclusiveJoin(kj::mv(interrupted))
               .wait(io.waitScope);
    }
    Signals signals(io.unixEventPort, vm);
    Mailbox keys(io.unixEventPort);
    std::optional<RawTerminal> terminal;
    if (outside.uses_stdio) {
      terminal.emplace();
      outside.stdio.Start(terminal->active(),
                          {.quit = [&] { keys.Post([&] { SendAndForget(vm.killRequest()); }); },
                           .power_button = [&] { keys.Post([&] { signals.PressPowerButton(); }); }});
    }
    auto served = signals.Serve().exclusiveJoin(keys.Serve()).eagerlyEvaluate([](kj::Exception&&) {});
    auto end = vm.waitForEndRequest().send().wait(io.waitScope);
    if (outside.uses_stdio) outside.stdio.Drain();
    terminal.reset();
    status = Report(options.name, end.getReport());
  } catch (const kj::Exception& error) {
    if (error.getType() != kj::Exception::Type::DISCONNECTED) throw;
    throw FatalError(broker.DescribeEnd());
  }
  return status;
}

}  // namespace bulkhead::launcher
