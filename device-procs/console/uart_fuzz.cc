// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the serial port through the console process's device, with an outside that is a socket: it types, reads or
// does not, hangs up, comes back; and states are edited and restored.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "device-procs/console/console.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using fuzz::FuzzInput;
using fuzz::Require;

class Machine {
 public:
  Machine() { console_.Resume(); }

  void Step(FuzzInput& input) {
    const auto action = input.Take<uint8_t>();
    switch (action % 12) {
      case 0:
        Attach();
        break;
      case 1:
        peer_.Close();
        break;
      case 2: {
        const auto typed = input.TakeBytes(input.Take<uint8_t>());
        if (peer_.valid()) (void)!::write(peer_.get(), typed.data(), typed.size());
        break;
      }
      case 3: {
        std::array<char, 4096> taken;
        if (peer_.valid()) (void)!::read(peer_.get(), taken.data(), taken.size());
        break;
      }
      case 4:
        loop_.Stop();
        loop_.Run();
        break;
      case 5:
        console_.Pause();
        break;
      case 6:
        console_.Resume();
        break;
      case 7:
        console_.Pause();
        fuzz::RestoreEdited(console_, input);
        console_.Resume();
        break;
      case 8:
        console_.Flush();
        break;
      case 9:
        Flood(input);
        break;
      default:
        Access(input, action);
        break;
    }
  }

 private:
  void Attach() {
    std::array<int, 2> ends;
    Require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) == 0);
    // Little room, so that the outside is soon full.
    const int room = 4096;
    Require(::setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
    peer_ = OwnFd(ends[0]);
    OwnFd outside(ends[1]);
    OwnFd again = OrThrow(DuplicateFd(outside.get()));
    console_.Attach(static_cast<uint8_t>(ConsolePort::kSerial), std::move(outside), std::move(again));
  }

  void Access(FuzzInput& input, uint8_t action) {
    const auto width = static_cast<uint8_t>(1u << input.Take<uint8_t>() % 4);
    const uint64_t offset = input.TakeBelow(Uart16550::kPorts - width + 1);
    // What there is no virtio console for reads all ones.
    const auto region = static_cast<uint16_t>(action >= 0xF0 ? 1 : 0);
    if (action % 2 == 0) {
      const uint64_t value = console_.Read(region, offset, width);
      Require((value & ~AllOnes(width)) == 0 && (region == 0 || value == AllOnes(width)));
    } else {
      console_.Write(region, offset, width, input.Take<uint64_t>() & AllOnes(width));
    }
  }

  // More than the FIFO holds, and at times more than the outside takes.
  void Flood(FuzzInput& input) {
    const auto byte = input.Take<uint8_t>();
    for (unsigned left = input.Take<uint8_t>() * 16u; left != 0; --left) console_.Write(0, 0, 1, byte);
  }

  EventLoop loop_;
  OwnFd peer_;
  Console console_{loop_, SerialSettings{.input = {}, .output = {}, .irq = OrThrow(MakeEventFd())},
                   [](const std::string& line) { Require(!line.empty()); }, VirtioSide{}};
};

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  ::signal(SIGPIPE, SIG_IGN);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  Machine machine;
  while (!input.empty()) machine.Step(input);
  return 0;
}
