// SPDX-License-Identifier: Apache-2.0
// libFuzzer: every register of the chipset process, with a clock that jumps, a debug console whose reader comes and
// goes, the power button, and states that are edited and restored.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "device-procs/chipset/chipset.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::chipset;
using fuzz::FuzzInput;
using fuzz::Require;

constexpr int64_t kStartRealtimeNs = 1'700'000'000 * kNsPerSecond;
// More than a century of running, far from where nanoseconds end.
constexpr int64_t kMaxRunNs = int64_t{1} << 62;
constexpr uint64_t kRegions = kPortRegions.size() + 1;

class Machine {
 public:
  Machine() {
    std::array<int, 2> ends;
    Require(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) == 0);
    debug_ = OwnFd(ends[0]);
    chipset_ = std::make_unique<Chipset>(
        loop_,
        ChipsetSettings{.memory_bytes = 128 << 20,
                        .debug_output = OwnFd(ends[1]),
                        .rtc_irq = OrThrow(MakeEventFd()),
                        .sci_assert = OrThrow(MakeEventFd()),
                        .sci_resample = OrThrow(DuplicateFd(resample_.get())),
                        .realtime_ns = [this] { return kStartRealtimeNs + now_ns_; },
                        .monotonic_ns = [this] { return now_ns_; }},
        [] {}, [] {});
    chipset_->Resume();
  }

  void Step(FuzzInput& input) {
    const auto action = input.Take<uint8_t>();
    switch (action % 16) {
      case 0:
        chipset_->Flush();
        break;
      case 1:
        now_ns_ += static_cast<int64_t>(input.Take<uint32_t>()) << input.Take<uint8_t>() % 24;
        now_ns_ = std::min(now_ns_, kMaxRunNs);
        break;
      case 2:
        loop_.Stop();
        loop_.Run();
        break;
      case 3:
        chipset_->PressPowerButton();
        break;
      case 4:
        chipset_->Pause();
        break;
      case 5:
        chipset_->Resume();
        break;
      case 6:
        chipset_->Pause();
        fuzz::RestoreEdited(*chipset_, input);
        chipset_->Resume();
        break;
      case 7:
        SignalEventFd(resample_.get());
        break;
      case 8:
        TakeDebugOutput(input.Take<uint8_t>());
        break;
      default:
        Access(input, action);
        break;
    }
  }

 private:
  void TakeDebugOutput(uint8_t how) {
    std::array<char, 4096> taken;
    if (how == 0) {
      debug_.Close();
    } else if (debug_.valid()) {
      (void)!::read(debug_.get(), taken.data(), taken.size());
    }
  }

  void Access(FuzzInput& input, uint8_t action) {
    const size_t region = input.TakeBelow(kRegions);
    const uint64_t size = region < kPortRegions.size() ? kPortRegions[region].count : kHostBridgeConfigBytes;
    const auto width = static_cast<uint8_t>(1u << input.Take<uint8_t>() % 4);
    if (width > size) return;
    const uint64_t offset = input.TakeBelow(size - width + 1);
    const auto number = static_cast<uint16_t>(region);
    if ((action & 0x10) != 0) {
      (void)chipset_->Read(number, offset, width);
    } else {
      const auto effect = chipset_->Write(number, offset, width, input.Take<uint64_t>() & device::AllOnes(width));
      Require(!effect.decode && !effect.route);
    }
  }

  device::EventLoop loop_;
  OwnFd debug_;
  OwnFd resample_ = OrThrow(MakeEventFd());
  int64_t now_ns_ = 0;
  std::unique_ptr<Chipset> chipset_;
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
