// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/interface_facts.h"

#include "broker/launcher/vm_report.h"

namespace bulkhead::launcher {
namespace {

TrafficFacts Take(control::NetTraffic::Reader from) {
  return {.packets = from.getPackets(),
          .bytes = from.getBytes(),
          .dropped = from.getDropped(),
          .refused = from.getRefused()};
}

Interfaces Take(capnp::List<control::InterfaceReport>::Reader from) {
  Interfaces interfaces;
  for (auto each : from) {
    auto& facts = interfaces[each.getName().cStr()];
    if (!each.getAnswered()) continue;
    const auto report = each.getReport();
    facts = {.link = report.getLink(), .received = {}, .sent = {}};
    if (report.hasReceived()) facts->received = Take(report.getReceived());
    if (report.hasSent()) facts->sent = Take(report.getSent());
  }
  return interfaces;
}

}  // namespace

Interfaces AskForInterfaces(kj::AsyncIoContext& io, control::VmControl::Client vm) {
  auto answer = vm.reportNetsRequest()
                    .send()
                    .then([](auto response) { return Take(response.getInterfaces()); })
                    .catch_([](kj::Exception&&) { return Interfaces(); });
  auto late = io.provider->getTimer().afterDelay(kPatience).then([] { return Interfaces(); });
  return answer.exclusiveJoin(kj::mv(late)).wait(io.waitScope);
}

const char* LinkName(control::LinkState link) {
  switch (link) {
    case control::LinkState::UP:
      return "up";
    case control::LinkState::DOWN:
      return "down";
    case control::LinkState::GONE:
      return "down (its outside is gone)";
  }
  return "unknown";
}

}  // namespace bulkhead::launcher
