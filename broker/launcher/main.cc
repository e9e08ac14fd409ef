// SPDX-License-Identifier: Apache-2.0
// bulkhead: the command. Holds the user's terminal and paths; no KVM and no guest memory.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include "broker/launcher/commands.h"
#include "ipc/result.h"
#include "ipc/rpc.h"

namespace bulkhead::launcher {
namespace {

constexpr int kFailure = 1;
constexpr int kWrongCommandLine = 2;

int Dispatch(const CommandLine& line) {
  switch (line.command) {
    case CommandLine::Command::kHelp:
      std::fputs(line.help.c_str(), stdout);
      return 0;
    case CommandLine::Command::kRun:
      return RunCommand(line.run);
    case CommandLine::Command::kCheck:
      return CheckCommand(line.check);
    case CommandLine::Command::kPs:
      return PsCommand(line.vm);
    case CommandLine::Command::kStop:
      return StopCommand(line.vm);
    case CommandLine::Command::kKill:
      return KillCommand(line.vm);
    case CommandLine::Command::kThrottle:
      return ThrottleCommand(line.vm);
    case CommandLine::Command::kSetLink:
      return SetLinkCommand(line.vm);
    case CommandLine::Command::kUpgrade:
      return UpgradeCommand(line.vm);
    case CommandLine::Command::kInspect:
      return InspectCommand(line.vm);
    case CommandLine::Command::kDirtyRate:
      return DirtyRateCommand(line.vm);
    case CommandLine::Command::kImg:
      return ImgCommand(line.img);
  }
  return kWrongCommandLine;
}

int Fail(int status, const std::string& line) {
  std::fprintf(stderr, "bulkhead: %s\n", line.c_str());
  return status;
}

// Whoever starts this with 0, 1 or 2 closed must not see some other file get that number and be read or written as it.
void FillStandardFds() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDWR) != fd) ::_exit(kFailure);
  }
}

}  // namespace
}  // namespace bulkhead::launcher

int main(int argc, char** argv) {
  using namespace bulkhead;
  launcher::FillStandardFds();
  ::signal(SIGPIPE, SIG_IGN);
  try {
    return launcher::Dispatch(launcher::ParseCommandLine({argv + 1, argv + argc}));
  } catch (const launcher::UsageError& error) {
    return launcher::Fail(launcher::kWrongCommandLine, error.what());
  } catch (const kj::Exception& error) {
    if (error.getType() == kj::Exception::Type::DISCONNECTED) {
      return launcher::Fail(launcher::kFailure, "the broker hung up before it answered; the VM may just have ended");
    }
    return launcher::Fail(launcher::kFailure, ReasonOf(error));
  } catch (const std::exception& error) {
    return launcher::Fail(launcher::kFailure, error.what());
  }
}
