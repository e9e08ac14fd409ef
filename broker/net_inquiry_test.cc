// SPDX-License-Identifier: Apache-2.0
#include "broker/net_inquiry.h"

#include <gtest/gtest.h>
#include <kj/async-io.h>

#include <functional>
#include <memory>

#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

using control::LinkState;

// A net process that answers as a test wants, or never.
class FakeDevice final : public control::Device::Server {
 public:
  struct Behaviour {
    std::function<void(control::NetReport::Builder)> answer;  // null: it fails
    bool hangs = false;
    int calls = 0;
    kj::Own<kj::PromiseFulfiller<void>> release;
  };
  explicit FakeDevice(Behaviour& behaviour) : behaviour_(behaviour) {}

 private:
  kj::Promise<void> reportNet(ReportNetContext context) override {
    ++behaviour_.calls;
    if (!behaviour_.answer) return Failure("no such thing");
    behaviour_.answer(context.getResults().initReport());
    if (!behaviour_.hangs) return kj::READY_NOW;
    auto hung = kj::newPromiseAndFulfiller<void>();
    behaviour_.release = kj::mv(hung.fulfiller);
    return kj::mv(hung.promise);
  }

  Behaviour& behaviour_;
};

class NetInquiryTest : public testing::Test {
 protected:
  // On the heap: their destructors may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::unique_ptr<FakeDevice::Behaviour> behaviour_ = std::make_unique<FakeDevice::Behaviour>();
  std::unique_ptr<control::Device::Client> device_ =
      std::make_unique<control::Device::Client>(kj::heap<FakeDevice>(*behaviour_));
  std::unique_ptr<NetInquiry> inquiry_ = std::make_unique<NetInquiry>(io_->provider->getTimer(), 20 * kj::MILLISECONDS);

  NetInquiry::Answer Ask() { return inquiry_->Ask(*device_).wait(io_->waitScope); }
};

TEST_F(NetInquiryTest, TakesTheNumbers) {
  behaviour_->answer = [](control::NetReport::Builder report) {
    report.setLink(LinkState::GONE);
    report.initReceived().setBytes(~uint64_t{0});
    auto sent = report.initSent();
    sent.setPackets(1);
    sent.setDropped(2);
    sent.setRefused(3);
  };
  for (int i = 0; i < 2; ++i) {
    const auto answer = Ask();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->link, LinkState::GONE);
    EXPECT_EQ(answer->received->bytes, ~uint64_t{0});
    EXPECT_EQ(answer->sent->packets, 1u);
    EXPECT_EQ(answer->sent->dropped, 2u);
    EXPECT_EQ(answer->sent->refused, 3u);
  }
}

TEST_F(NetInquiryTest, PassesTheNumbersOn) {
  NetFigures figures{.link = LinkState::DOWN,
                     .received = NetTraffic{.packets = 1, .bytes = 2, .dropped = 3, .refused = 4},
                     .sent = NetTraffic{.packets = 5, .bytes = 6, .dropped = 7, .refused = 8}};
  behaviour_->answer = [&](control::NetReport::Builder report) { figures.Fill(report); };
  auto answer = Ask();
  ASSERT_TRUE(answer);
  EXPECT_EQ(*answer, figures);
  // What the process does not count.
  figures.received.reset();
  answer = Ask();
  ASSERT_TRUE(answer);
  EXPECT_EQ(*answer, figures);
}

TEST_F(NetInquiryTest, OneThatFailsOrSaysWhatCannotBeHasNotAnswered) {
  EXPECT_FALSE(Ask());
  behaviour_->answer = [](control::NetReport::Builder report) { report.setLink(static_cast<LinkState>(77)); };
  EXPECT_FALSE(Ask());
}

TEST_F(NetInquiryTest, OneThatHangsIsWaitedForOnlySoLongAndAskedOnce) {
  behaviour_->answer = [](control::NetReport::Builder report) { report.initSent().setPackets(5); };
  behaviour_->hangs = true;
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(Ask());
  EXPECT_EQ(behaviour_->calls, 1);
  auto late = inquiry_->Ask(*device_);
  behaviour_->release->fulfill();
  const auto answer = late.wait(io_->waitScope);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->sent->packets, 5u);
  behaviour_->hangs = false;
  EXPECT_TRUE(Ask());
  EXPECT_EQ(behaviour_->calls, 2);
}

}  // namespace
}  // namespace bulkhead::broker
