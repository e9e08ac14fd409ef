// SPDX-License-Identifier: Apache-2.0
// A pair of queues with a kernel that only notes what it is told.
#include "device-procs/net/vhost_pair.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "device-procs/common/virtqueue_driver.h"

namespace bulkhead::device {
namespace {

constexpr uint16_t kQueueSize = 16;
constexpr uint16_t kPair = 1;
constexpr uint64_t kFeatures = FeatureBit(32);

class FakeVhost final : public VhostDevice {
 public:
  struct Served {
    int call = -1;
    bool started = false;
    uint16_t position = 0;
  };

  Result<void> SetFeatures(uint64_t features) override {
    features_ = features;
    ++features_set_;
    return {};
  }
  Result<void> Start(Queue queue, const Virtqueue& from, int call, int) override {
    if (queue == refused_) return Error{EFAULT, "refused"};
    served_[queue] = {.call = call, .started = true, .position = from.position().next_available};
    return {};
  }
  Result<void> SetPlace(Queue queue, const Virtqueue&) override {
    EXPECT_TRUE(served_[queue].started);
    ++places_[queue];
    return {};
  }
  Result<void> SetCall(Queue queue, int call) override {
    served_[queue].call = call;
    return {};
  }
  Result<uint16_t> Stop(Queue queue) override {
    EXPECT_TRUE(std::exchange(served_[queue].started, false));
    return served_[queue].position;
  }

  uint64_t features_ = 0;
  unsigned features_set_ = 0;
  std::array<unsigned, kQueues> places_{};
  std::array<Served, kQueues> served_;
  std::optional<Queue> refused_;
};

class FakeTransport final : public VirtioTransport {
 public:
  Virtqueue* Queue(uint16_t index) override { return index / 2 == kPair ? &*queues.at(index % 2) : nullptr; }
  int KickFd(uint16_t) const override { return -1; }
  void SignalQueue(uint16_t index) override { signals += std::to_string(index) + " "; }
  void SignalConfigChange() override {}
  int InterruptFd(uint16_t index) const override { return interrupts.at(index % 2); }
  void MarkNeedsReset() override { needs_reset = true; }

  std::array<std::optional<Virtqueue>, 2> queues;
  std::array<int, 2> interrupts{101, -1};
  std::string signals;
  bool needs_reset = false;
};

class VhostPairTest : public testing::Test {
 protected:
  VhostPairTest() {
    for (uint16_t i = 0; i < 2; ++i) {
      kicks_[i] = OrThrow(MakeEventFd());
      const test::QueueDriver driver(memory_, Gpa{0x1000u * i}, kQueueSize);
      transport_.queues[i] = OrThrow(Virtqueue::Create(memory_, driver.layout(), {7, 7}));
    }
    auto device = std::make_unique<FakeVhost>();
    vhost_ = device.get();
    OwnFd broken = OrThrow(MakeEventFd());
    broken_ = OrThrow(DuplicateFd(broken.get()));
    pair_ = std::make_unique<VhostPair>(loop_, VhostPairParts{.index = kPair,
                                                              .device = std::move(device),
                                                              .broken = std::move(broken),
                                                              .tap = 100,
                                                              .kicks = {kicks_[0].get(), kicks_[1].get()},
                                                              .outside_gone = [this] { return gone_; }});
  }
  void RunPending() {
    loop_.Stop();
    loop_.Run();
  }
  bool serves() const { return vhost_->served_[0].started && vhost_->served_[1].started; }

  GuestMemory memory_ = test::MakeGuestMemory(1 << 20);
  EventLoop loop_;
  FakeTransport transport_;
  std::array<OwnFd, 2> kicks_;
  OwnFd broken_;
  bool gone_ = false;
  FakeVhost* vhost_ = nullptr;
  std::unique_ptr<VhostPair> pair_;
};

TEST_F(VhostPairTest, GoesOnWhereTheQueueStandsAndTellsHowFarItCame) {
  pair_->Start(transport_, kFeatures);
  EXPECT_TRUE(serves());
  EXPECT_EQ(vhost_->features_, kFeatures);
  EXPECT_EQ(vhost_->served_[1].position, 7);
  for (const OwnFd& kick : kicks_) EXPECT_EQ(DrainEventFd(kick.get()), 1u) << "has to look at the queue";
  vhost_->served_[1].position = 65535;
  pair_->Stop();
  pair_->Stop();
  EXPECT_EQ(transport_.queues[0]->position().next_available, 7);
  EXPECT_EQ(transport_.queues[1]->position().next_available, 65535);
  EXPECT_EQ(transport_.queues[1]->position().next_used, 65535);
}

TEST_F(VhostPairTest, AnInterruptThatMayNotBeIsTheTransports) {
  pair_->Start(transport_, kFeatures);
  EXPECT_EQ(vhost_->served_[0].call, 101);
  const int held = vhost_->served_[1].call;
  ASSERT_GE(held, 0);
  SignalEventFd(held);
  RunPending();
  EXPECT_EQ(transport_.signals, "3 ");
  transport_.interrupts = {-1, 102};
  pair_->InterruptsChanged();
  EXPECT_EQ(vhost_->served_[1].call, 102);
  // One that came last before the end is not lost.
  SignalEventFd(vhost_->served_[0].call);
  pair_->Stop();
  EXPECT_EQ(transport_.signals, "3 2 ");
  RunPending();
  EXPECT_EQ(transport_.signals, "3 2 ");
}

TEST_F(VhostPairTest, TakesNothingWhileItsLinkIsDown) {
  pair_->SetLink(false);
  pair_->Start(transport_, kFeatures);
  EXPECT_FALSE(vhost_->served_[0].started || vhost_->served_[1].started);
  pair_->SetLink(true);
  EXPECT_TRUE(serves());
  vhost_->served_[1].position = 9;
  pair_->SetLink(false);
  EXPECT_FALSE(vhost_->served_[0].started || vhost_->served_[1].started);
  EXPECT_EQ(transport_.queues[1]->position().next_available, 9);
  pair_->SetLink(true);
  EXPECT_EQ(vhost_->served_[1].position, 9);
  pair_->Stop();
  pair_->SetLink(false);
  pair_->SetLink(true);
  EXPECT_FALSE(vhost_->served_[0].started || vhost_->served_[1].started);
  EXPECT_FALSE(transport_.needs_reset);
}

TEST_F(VhostPairTest, TheKernelLearnsThatTheDirtyLogWasSwitched) {
  pair_->FollowLog();
  EXPECT_EQ(vhost_->features_set_, 0u) << "nothing is served";
  pair_->Start(transport_, kFeatures);
  pair_->FollowLog();
  EXPECT_EQ(vhost_->features_set_, 2u);
  EXPECT_EQ(vhost_->places_, (std::array<unsigned, 2>{1, 1}));
  pair_->SetLink(false);
  pair_->FollowLog();
  EXPECT_EQ(vhost_->features_set_, 2u);
  EXPECT_FALSE(transport_.needs_reset);
}

TEST_F(VhostPairTest, ADriverThatBreaksAQueueHasToReset) {
  pair_->Start(transport_, kFeatures);
  SignalEventFd(broken_.get());
  RunPending();
  EXPECT_TRUE(transport_.needs_reset);
  EXPECT_FALSE(vhost_->served_[0].started || vhost_->served_[1].started);
  transport_.needs_reset = false;
  SignalEventFd(broken_.get());
  RunPending();
  EXPECT_FALSE(transport_.needs_reset) << "was not served";
  pair_->Start(transport_, kFeatures);
  EXPECT_TRUE(serves());
}

TEST_F(VhostPairTest, AQueueThatTheKernelRefusesHasToBeReset) {
  vhost_->refused_ = VhostDevice::kTransmit;
  pair_->Start(transport_, kFeatures);
  EXPECT_TRUE(transport_.needs_reset);
  EXPECT_FALSE(vhost_->served_[0].started);
}

TEST_F(VhostPairTest, AnOutsideThatIsGoneIsNoFaultOfTheDrivers) {
  gone_ = true;
  pair_->Start(transport_, kFeatures);
  EXPECT_FALSE(vhost_->served_[0].started || transport_.needs_reset);
}

}  // namespace
}  // namespace bulkhead::device
