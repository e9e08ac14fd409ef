// SPDX-License-Identifier: Apache-2.0
// `bulkhead dirty-rate`: how fast a VM writes to its memory, by whom.
#include <fmt/format.h>
#include <sys/random.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "ipc/gpa.h"

namespace bulkhead::launcher {
namespace {

constexpr auto kNextBrokerPause = 10 * kj::MILLISECONDS;

// By which a broker that takes over knows the log.
uint64_t RandomId() {
  uint64_t id = 0;
  if (::getrandom(&id, sizeof id, 0) != sizeof id) ThrowErrno("get random bytes");
  return id;
}

double MebibytesPerSecond(uint64_t pages, control::DirtyReport::Reader report) {
  const double seconds = static_cast<double>(report.getDurationNs()) / 1e9;
  return seconds == 0 ? 0 : static_cast<double>(pages * kGuestPageBytes) / (1 << 20) / seconds;
}

void PrintRow(const char* name, uint64_t pages, control::DirtyReport::Reader report) {
  std::fputs(fmt::format("{:<16} {:>10} {:>10.2f}\n", name, pages, MebibytesPerSecond(pages, report)).c_str(), stdout);
}

void PrintTable(control::DirtyReport::Reader report) {
  std::fputs(fmt::format("{:<16} {:>10} {:>10}\n", "WRITTEN BY", "PAGES", "MiB/s").c_str(), stdout);
  for (auto writer : report.getWriters()) PrintRow(writer.getName().cStr(), writer.getPages(), report);
  PrintRow("any of them", report.getPages(), report);
}

void PrintJson(control::DirtyReport::Reader report) {
  nlohmann::json out{{"seconds", static_cast<double>(report.getDurationNs()) / 1e9},
                     {"pages", report.getPages()},
                     {"mib_per_second", MebibytesPerSecond(report.getPages(), report)},
                     {"writers", nlohmann::json::array()}};
  for (auto writer : report.getWriters()) {
    out["writers"].push_back({{"name", writer.getName().cStr()},
                              {"pages", writer.getPages()},
                              {"mib_per_second", MebibytesPerSecond(writer.getPages(), report)}});
  }
  std::printf("%s\n", out.dump(2).c_str());
}

}  // namespace

// No time limit but the VM's end: the broker watches over those who answer it. One that takes over meanwhile goes on
// with the log, if it is asked.
int DirtyRateCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  kj::Timer& timer = io.provider->getTimer();
  const uint64_t id = RandomId();
  std::optional<kj::TimePoint> until;
  for (;;) {
    VmConnection connection(io, options.name);
    auto vm = connection.control();
    auto request = vm.logWritesRequest();
    request.setId(id);
    try {
      auto log = request.send().wait(io.waitScope).getLog();
      if (!until) until = timer.now() + options.seconds * kj::SECONDS;
      // Fails at once when the broker is gone.
      auto ended = vm.waitForEndRequest().send().then([](auto) -> void { throw Failure("it has ended"); });
      ended.exclusiveJoin(timer.atTime(*until)).wait(io.waitScope);
      const auto response = log.takeRequest().send().wait(io.waitScope);
      options.json ? PrintJson(response.getReport()) : PrintTable(response.getReport());
      return 0;
    } catch (const kj::Exception& error) {
      if (error.getType() != kj::Exception::Type::DISCONNECTED) {
        throw FatalError("VM '" + options.name + "': " + ReasonOf(error));
      }
    }
    timer.afterDelay(kNextBrokerPause).wait(io.waitScope);
  }
}

}  // namespace bulkhead::launcher
