// SPDX-License-Identifier: Apache-2.0
#include "broker/net_inquiry.h"

namespace bulkhead::broker {
namespace {

// Field by field: a struct that is copied whole takes along what its sender has hung on it.
NetTraffic Take(control::NetTraffic::Reader from) {
  return {.packets = from.getPackets(),
          .bytes = from.getBytes(),
          .dropped = from.getDropped(),
          .refused = from.getRefused()};
}

void FillTraffic(const NetTraffic& traffic, control::NetTraffic::Builder out) {
  out.setPackets(traffic.packets);
  out.setBytes(traffic.bytes);
  out.setDropped(traffic.dropped);
  out.setRefused(traffic.refused);
}

NetInquiry::Answer Take(control::NetReport::Reader from) {
  // On the wire it is any number.
  if (from.getLink() > control::LinkState::DOWN) return std::nullopt;
  NetFigures figures{.link = from.getLink(), .received = {}, .sent = {}};
  if (from.hasReceived()) figures.received = Take(from.getReceived());
  if (from.hasSent()) figures.sent = Take(from.getSent());
  return figures;
}

}  // namespace

void NetFigures::Fill(control::NetReport::Builder out) const {
  out.setLink(link);
  if (received) FillTraffic(*received, out.initReceived());
  if (sent) FillTraffic(*sent, out.initSent());
}

kj::Promise<NetInquiry::Answer> NetInquiry::Ask(control::Device::Client device) {
  if (answered_) {
    answered_ = false;
    call_ = device.reportNetRequest()
                .send()
                .then([](auto response) { return Take(response.getReport()); })
                .then(
                    [this](Answer answer) {
                      answered_ = true;
                      return answer;
                    },
                    [this](kj::Exception&&) {
                      answered_ = true;
                      return Answer();
                    })
                .fork();
  }
  auto late = timer_.afterDelay(patience_).then([] { return Answer(); });
  return call_->addBranch().exclusiveJoin(kj::mv(late));
}

}  // namespace bulkhead::broker
