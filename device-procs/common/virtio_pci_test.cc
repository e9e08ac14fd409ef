// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/virtio_pci.h"

#include <capnp/message.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "device-procs/common/virtio_pci_driver.h"

namespace bulkhead::device {
namespace {

namespace layout = virtio_pci;
using test::FunctionDriver;
using test::QueueDriver;

constexpr uint64_t kMemoryBytes = 1 << 20;
constexpr Gpa kData{0x4'0000};
constexpr uint16_t kQueueSize = 8;
constexpr uint64_t kFeatureA = FeatureBit(0);
constexpr uint64_t kFeatureB = FeatureBit(40);

// Returns at most `quota` chains each time it is told to, and notes everything.
class FakeDevice final : public VirtioDevice {
 public:
  explicit FakeDevice(bool owns_kicks = false) : owns_kicks_(owns_kicks) {}

  uint16_t Type() const override { return 40; }
  uint32_t PciClass() const override { return 0xFF0000; }
  uint64_t Features() const override { return kFeatureA | kFeatureB; }
  uint16_t QueueCount() const override { return 2; }
  uint16_t QueueMaxSize() const override { return 2 * kQueueSize; }
  std::span<const std::byte> Config() const override { return config; }
  void WriteConfig(uint64_t offset, std::span<const std::byte> data) override {
    ASSERT_LE(offset + data.size(), config.size());
    std::memcpy(config.data() + offset, data.data(), data.size());
  }
  void Activate(uint64_t features, VirtioTransport& transport) override {
    calls += "activate ";
    active_features = features;
    transport_ = &transport;
  }
  void Deactivate() override {
    calls += "deactivate ";
    transport_ = nullptr;
  }
  void ProcessQueue(uint16_t index) override {
    calls += "queue" + std::to_string(index) + " ";
    Virtqueue* queue = transport_->Queue(index);
    ASSERT_NE(queue, nullptr);
    for (unsigned i = 0; i < quota; ++i) {
      auto popped = queue->Pop(chain_);
      if (!popped.ok()) {
        transport_->MarkNeedsReset();
        return;
      }
      if (!*popped) break;
      ASSERT_TRUE(queue->Push(chain_.head, 0).ok());
    }
    if (*queue->NeedsInterrupt()) transport_->SignalQueue(index);
  }
  bool OwnsKicks() const override { return owns_kicks_; }
  void InterruptsChanged() override { calls += "interrupts "; }
  void Pause() override { calls += "pause "; }
  void Resume() override { calls += "resume "; }
  void SaveDevice(capnp::AnyPointer::Builder state) const override { state.setAs<capnp::Text>("own"); }
  Result<void> RestoreDevice(capnp::AnyPointer::Reader state) override {
    calls += std::string("restore:") + state.getAs<capnp::Text>().cStr() + " ";
    return {};
  }

  std::string TakeCalls() { return std::exchange(calls, ""); }
  VirtioTransport& transport() { return *transport_; }

  std::array<std::byte, 6> config{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}, std::byte{5}, std::byte{6}};
  std::string calls;
  uint64_t active_features = 0;
  unsigned quota = 100;

 private:
  bool owns_kicks_;
  VirtioTransport* transport_ = nullptr;
  Chain chain_;
};

class VirtioPciTest : public testing::Test {
 protected:
  VirtioPciTest() { Make(); }
  void Make(bool owns_kicks = false) {
    auto device = std::make_unique<FakeDevice>(owns_kicks);
    device_ = device.get();
    driver_ = std::make_unique<FunctionDriver>(std::move(device), memory_);
  }
  // Both queues, DRIVER_OK, resumed.
  void BringUp(uint64_t features = test::kVersion1) {
    driver_->EnableMsix();
    ASSERT_TRUE(driver_->Negotiate(features));
    for (uint16_t i = 0; i < 2; ++i) driver_->SetUpQueue(i, queues_[i].layout());
    driver_->GoLive();
    driver_->function().Resume();
    device_->TakeCalls();
  }
  uint64_t Bar(uint64_t offset, uint8_t width) { return driver_->ReadBar(offset, width); }

  GuestMemory memory_ = test::MakeGuestMemory(kMemoryBytes);
  std::array<QueueDriver, 2> queues_{QueueDriver(memory_, Gpa{0x1000}, kQueueSize),
                                     QueueDriver(memory_, Gpa{0x3000}, kQueueSize)};
  std::unique_ptr<FunctionDriver> driver_;
  FakeDevice* device_ = nullptr;
};

TEST_F(VirtioPciTest, ConfigurationSpaceNamesAModernVirtioFunction) {
  EXPECT_EQ(driver_->ReadConfig(0, 4), 0x1068'1AF4u);
  EXPECT_EQ(driver_->ReadConfig(8, 4), 0xFF00'0001u);
  EXPECT_EQ(driver_->ReadConfig(0x10, 4), FunctionDriver::kBar0 | 4);
}

TEST_F(VirtioPciTest, CapabilitiesPointToTheStructures) {
  struct Expected {
    uint8_t type;
    uint64_t offset;
    uint64_t least_bytes;
  };
  const std::array<Expected, 4> structures{Expected{1, layout::kCommonConfig, 56}, Expected{3, layout::kIsr, 1},
                                           Expected{4, layout::kDeviceConfig, 6}, Expected{2, layout::kNotify, 8}};
  for (const Expected& expected : structures) {
    bool found = false;
    for (unsigned nth = 0; const uint8_t at = driver_->FindCapability(0x09, nth); ++nth) {
      if (driver_->ReadConfig(at + 3u, 1) != expected.type) continue;
      found = true;
      EXPECT_GE(driver_->ReadConfig(at + 2u, 1), expected.type == 2 ? 20u : 16u);
      EXPECT_EQ(driver_->ReadConfig(at + 4u, 1), 0u) << "BAR 0";
      EXPECT_EQ(driver_->ReadConfig(at + 8u, 4), expected.offset);
      EXPECT_GE(driver_->ReadConfig(at + 12u, 4), expected.least_bytes);
      if (expected.type != 2) continue;
      EXPECT_EQ(driver_->ReadConfig(at + 16u, 4), layout::kNotifyMultiplier);
    }
    EXPECT_TRUE(found) << int{expected.type};
  }
  const uint8_t msix = driver_->FindCapability(0x11);
  ASSERT_NE(msix, 0);
  EXPECT_EQ(driver_->ReadConfig(msix + 2u, 2), 2u) << "three vectors, disabled";
  EXPECT_EQ(driver_->ReadConfig(msix + 4u, 4), layout::kMsixTable);
  EXPECT_EQ(driver_->ReadConfig(msix + 8u, 4), layout::kMsixPba);
  const uint8_t express = driver_->FindCapability(0x10);
  ASSERT_NE(express, 0);
  EXPECT_EQ(driver_->ReadConfig(express + 2u, 2), 0x92u) << "version 2, integrated endpoint";
  EXPECT_EQ(driver_->ReadConfig(express + 4u, 4), 0x8000u) << "role-based error reporting";
}

TEST_F(VirtioPciTest, DecodeIsAnnouncedWhenMemoryOrBarChange) {
  auto effect = driver_->WriteConfig(0x04, 2, 0x2);
  ASSERT_TRUE(effect.decode);
  EXPECT_TRUE(effect.decode->memory_enabled);
  EXPECT_EQ(effect.decode->bar0_address, FunctionDriver::kBar0);
  EXPECT_FALSE(driver_->WriteConfig(0x04, 2, 0x6).decode) << "bus mastering moves nothing";
  effect = driver_->WriteConfig(0x10, 4, 0xC800'0000);
  ASSERT_TRUE(effect.decode);
  EXPECT_EQ(effect.decode->bar0_address, 0xC800'0000u);
  effect = driver_->WriteConfig(0x04, 2, 0);
  ASSERT_TRUE(effect.decode);
  EXPECT_FALSE(effect.decode->memory_enabled);
}

TEST_F(VirtioPciTest, WindowReachesTheBarThroughConfigurationSpace) {
  uint8_t window = 0;
  for (unsigned nth = 0; const uint8_t at = driver_->FindCapability(0x09, nth); ++nth) {
    if (driver_->ReadConfig(at + 3u, 1) == 5) window = at;
  }
  ASSERT_NE(window, 0);
  const auto aim = [&](uint64_t bar, uint64_t offset, uint64_t length) {
    driver_->WriteConfig(window + 4u, 1, bar);
    driver_->WriteConfig(window + 8u, 4, offset);
    driver_->WriteConfig(window + 12u, 4, length);
  };
  aim(0, layout::kDeviceConfig + 2, 2);
  EXPECT_EQ(driver_->ReadConfig(window + 16u, 2), 0x0403u);
  driver_->WriteConfig(window + 16u, 2, 0xBEEF);
  EXPECT_EQ(Bar(layout::kDeviceConfig, 4), 0xBEEF'0201u);

  aim(0, layout::kCommonConfig + 0x14, 1);
  driver_->WriteConfig(window + 16u, 1, test::kAcknowledge);
  EXPECT_EQ(driver_->Status(), test::kAcknowledge);

  aim(0, layout::kMsixTable + 12, 4);
  EXPECT_TRUE(driver_->WriteConfig(window + 16u, 4, 0).route) << "an unmasked vector";

  // Nothing of this may reach anywhere.
  aim(1, layout::kCommonConfig + 0x14, 1);
  driver_->WriteConfig(window + 16u, 1, 0);
  aim(0, layout::kBarSize, 4);
  driver_->WriteConfig(window + 16u, 4, 0);
  aim(0, 0xFFFF'FFFC, 4);
  driver_->WriteConfig(window + 16u, 4, 0);
  aim(0, layout::kCommonConfig + 0x14, 3);
  driver_->WriteConfig(window + 16u, 4, 0);
  aim(0, layout::kDeviceConfig + 3, 2);
  driver_->WriteConfig(window + 16u, 2, 0);
  EXPECT_EQ(driver_->Status(), test::kAcknowledge);
  EXPECT_EQ(Bar(layout::kDeviceConfig, 4), 0xBEEF'0201u);
}

TEST_F(VirtioPciTest, FeaturesAreOfferedInHalves) {
  EXPECT_EQ(driver_->DeviceFeatures(),
            kFeatureA | kFeatureB | test::kVersion1 | test::kEventIndex | test::kIndirectFeature);
  for (uint32_t select : {2u, 0xFFFF'FFFFu}) {
    driver_->WriteBar(0x00, 4, select);
    EXPECT_EQ(Bar(0x00, 4), select);
    EXPECT_EQ(Bar(0x04, 4), 0u);
  }
}

TEST_F(VirtioPciTest, FeaturesOkIsRefusedForWhatIsNotOffered) {
  EXPECT_FALSE(driver_->Negotiate(test::kVersion1 | FeatureBit(1)));
  EXPECT_FALSE(driver_->Negotiate(kFeatureA)) << "VERSION_1 is a must";
  EXPECT_TRUE(driver_->Negotiate(test::kVersion1 | kFeatureB));
  // Fixed from here on.
  driver_->WriteBar(0x08, 4, 0);
  driver_->WriteBar(0x0C, 4, 1);
  EXPECT_EQ(Bar(0x0C, 4), 0u);
}

TEST_F(VirtioPciTest, DriverOkWithoutFeaturesOkDoesNotStartTheDevice) {
  driver_->SetStatus(test::kAcknowledge | test::kDriver | test::kDriverOk);
  EXPECT_EQ(device_->TakeCalls(), "");
}

TEST_F(VirtioPciTest, QueueRegistersArePerQueueAndReadBack) {
  driver_->WriteBar(0x16, 2, 1);
  EXPECT_EQ(Bar(0x18, 2), 2u * kQueueSize) << "the greatest size at first";
  EXPECT_EQ(Bar(0x1E, 2), 1u);
  driver_->SetUpQueue(0, queues_[0].layout());
  EXPECT_EQ(Bar(0x18, 2), kQueueSize);
  EXPECT_EQ(Bar(0x1C, 2), 1u);
  EXPECT_EQ(Bar(0x20, 8), queues_[0].layout().descriptors.value);
  EXPECT_EQ(Bar(0x30, 4), queues_[0].layout().used.value);
  driver_->WriteBar(0x18, 2, 2 * kQueueSize);
  driver_->WriteBar(0x20, 8, 0);
  EXPECT_EQ(Bar(0x18, 2), kQueueSize) << "enabled: fixed";
  EXPECT_EQ(Bar(0x20, 8), queues_[0].layout().descriptors.value);
  driver_->WriteBar(0x1C, 2, 0);
  EXPECT_EQ(Bar(0x1C, 2), 1u) << "only a reset disables";
  driver_->WriteBar(0x16, 2, 1);
  EXPECT_EQ(Bar(0x1C, 2), 0u);
}

TEST_F(VirtioPciTest, ImpossibleQueueSizesAreNotTaken) {
  driver_->WriteBar(0x16, 2, 0);
  for (uint16_t size : {0, 3, 4 * kQueueSize}) {
    driver_->WriteBar(0x18, 2, size);
    EXPECT_EQ(Bar(0x18, 2), 2u * kQueueSize) << size;
  }
}

TEST_F(VirtioPciTest, QueueThatDoesNotExistReadsZero) {
  driver_->WriteBar(0x16, 2, 2);
  driver_->WriteBar(0x18, 2, kQueueSize);
  driver_->WriteBar(0x1C, 2, 1);
  for (uint64_t offset = 0x18; offset < 0x38; offset += 2) EXPECT_EQ(Bar(offset, 2), 0u) << offset;
}

TEST_F(VirtioPciTest, VectorThatDoesNotExistReadsBackAsNone) {
  driver_->WriteBar(0x10, 2, 2);
  EXPECT_EQ(Bar(0x10, 2), 2u);
  driver_->WriteBar(0x10, 2, 3);
  EXPECT_EQ(Bar(0x10, 2), 0xFFFFu);
  driver_->WriteBar(0x1A, 2, 1);
  EXPECT_EQ(Bar(0x1A, 2), 1u);
  driver_->WriteBar(0x1A, 2, 100);
  EXPECT_EQ(Bar(0x1A, 2), 0xFFFFu);
}

TEST_F(VirtioPciTest, DeviceConfigurationIsSlicedAndBounded) {
  EXPECT_EQ(Bar(layout::kDeviceConfig, 4), 0x0403'0201u);
  EXPECT_EQ(Bar(layout::kDeviceConfig + 4, 4), 0x0605u);
  EXPECT_EQ(Bar(layout::kDeviceConfig + 6, 1), 0u);
  driver_->WriteBar(layout::kDeviceConfig + 4, 4, 0xFFFF'FFFF);
  EXPECT_EQ(Bar(layout::kDeviceConfig + 4, 2), 0x0605u) << "a write that does not fit does nothing";
  driver_->WriteBar(layout::kDeviceConfig + 5, 1, 0x99);
  EXPECT_EQ(Bar(layout::kDeviceConfig + 5, 1), 0x99u);
}

TEST_F(VirtioPciTest, KickReachesItsQueueAndTheInterruptItsVector) {
  BringUp();
  queues_[1].Add({{kData, 1, true}});
  driver_->Kick(1);
  EXPECT_EQ(device_->TakeCalls(), "queue1 ");
  EXPECT_TRUE(queues_[1].TakeUsed());
  EXPECT_EQ(driver_->Interrupts(2), 1u);
  EXPECT_EQ(driver_->Interrupts(0) + driver_->Interrupts(1), 0u);
  EXPECT_EQ(Bar(layout::kIsr, 1), 1u);
  EXPECT_EQ(Bar(layout::kIsr, 1), 0u) << "reading acknowledges";
}

TEST_F(VirtioPciTest, NotifyWriteThatCameAsAnExitIsAKick) {
  BringUp();
  queues_[1].Add({{kData, 1, true}});
  driver_->WriteBar(layout::kNotify + layout::kNotifyMultiplier, 2, 1);
  driver_->RunPending();
  EXPECT_EQ(device_->TakeCalls(), "queue1 ");
  driver_->WriteBar(layout::kNotify + 2 * layout::kNotifyMultiplier, 2, 1);
  driver_->WriteBar(layout::kBarSize - 2, 2, 1);
  driver_->RunPending();
  EXPECT_EQ(device_->TakeCalls(), "") << "there are no such queues";
}

TEST_F(VirtioPciTest, KickBeforeDriverOkIsNotLost) {
  driver_->function().Resume();
  device_->TakeCalls();
  ASSERT_TRUE(driver_->Negotiate(test::kVersion1));
  driver_->SetUpQueue(0, queues_[0].layout());
  queues_[0].Add({{kData, 1, true}});
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "");
  driver_->GoLive();
  EXPECT_EQ(device_->TakeCalls(), "activate queue0 ") << "and queue 1 is not enabled";
  EXPECT_TRUE(queues_[0].TakeUsed());
}

TEST_F(VirtioPciTest, KickWhilePausedIsSeenWhenResumed) {
  BringUp();
  driver_->function().Pause();
  queues_[0].Add({{kData, 1, true}});
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "pause ");
  EXPECT_FALSE(queues_[0].TakeUsed());
  driver_->function().Resume();
  EXPECT_EQ(device_->TakeCalls(), "resume queue0 queue1 ");
  EXPECT_TRUE(queues_[0].TakeUsed());
}

TEST_F(VirtioPciTest, DeviceMayWaitForItsKicksItself) {
  Make(/*owns_kicks=*/true);
  BringUp();
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "");
  EXPECT_TRUE(driver_->KickIsPending(0));
  driver_->WriteBar(layout::kNotify + layout::kNotifyMultiplier, 2, 1);
  EXPECT_EQ(DrainEventFd(device_->transport().KickFd(1)), 1u) << "a kick that came as an exit too";
}

TEST_F(VirtioPciTest, ResetClearsEverythingOfTheDriver) {
  BringUp(test::kVersion1 | kFeatureA);
  EXPECT_EQ(device_->active_features, test::kVersion1 | kFeatureA);
  driver_->SetStatus(0);
  EXPECT_EQ(device_->TakeCalls(), "deactivate ");
  EXPECT_EQ(driver_->Status(), 0);
  EXPECT_EQ(Bar(0x10, 2), 0xFFFFu);
  driver_->WriteBar(0x16, 2, 0);
  EXPECT_EQ(Bar(0x18, 2), 2u * kQueueSize);
  EXPECT_EQ(Bar(0x1A, 2), 0xFFFFu);
  EXPECT_EQ(Bar(0x1C, 2), 0u);
  EXPECT_EQ(Bar(0x20, 8), 0u);
  driver_->WriteBar(0x08, 4, 0);
  EXPECT_EQ(Bar(0x0C, 4), 0u);
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "");
}

TEST_F(VirtioPciTest, ComesUpAgainAfterAReset) {
  BringUp();
  queues_[0].Add({{kData, 1, true}});
  driver_->Kick(0);
  ASSERT_TRUE(queues_[0].TakeUsed());
  driver_->SetStatus(0);
  QueueDriver fresh(memory_, Gpa{0x5000}, kQueueSize);
  ASSERT_TRUE(driver_->Negotiate(test::kVersion1));
  driver_->SetUpQueue(0, fresh.layout());
  fresh.Add({{kData, 1, true}});
  driver_->GoLive();
  EXPECT_TRUE(fresh.TakeUsed());
}

TEST_F(VirtioPciTest, QueueEnabledAfterDriverOkDoesNotCount) {
  ASSERT_TRUE(driver_->Negotiate(test::kVersion1));
  driver_->GoLive();
  driver_->SetUpQueue(0, queues_[0].layout());
  EXPECT_EQ(Bar(0x1C, 2), 0u);
  driver_->function().Resume();
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "activate interrupts resume ");
}

TEST_F(VirtioPciTest, QueueOutsideOfMemoryNeedsReset) {
  driver_->EnableMsix();
  driver_->function().Resume();
  device_->TakeCalls();
  ASSERT_TRUE(driver_->Negotiate(test::kVersion1));
  QueueLayout bad = queues_[0].layout();
  bad.used = Gpa{kMemoryBytes};
  driver_->SetUpQueue(0, bad);
  driver_->GoLive();
  EXPECT_EQ(device_->TakeCalls(), "");
  EXPECT_NE(driver_->Status() & test::kNeedsReset, 0);
  EXPECT_EQ(driver_->Interrupts(0), 1u);
  EXPECT_EQ(Bar(layout::kIsr, 1), 2u);
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "");
  driver_->SetStatus(0);
  EXPECT_EQ(driver_->Status(), 0);
}

TEST_F(VirtioPciTest, BrokenQueueNeedsResetAndIsLeftAlone) {
  BringUp();
  queues_[0].SetAvailableIndex(1000);
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "queue0 ");
  EXPECT_NE(driver_->Status() & test::kNeedsReset, 0);
  EXPECT_EQ(driver_->Interrupts(0), 1u);
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "");
  device_->transport().MarkNeedsReset();
  EXPECT_EQ(driver_->Interrupts(0), 0u) << "said once";
}

TEST_F(VirtioPciTest, ConfigurationChangeCountsAGeneration) {
  BringUp();
  const uint64_t before = Bar(0x15, 1);
  device_->transport().SignalConfigChange();
  EXPECT_EQ(Bar(0x15, 1), (before + 1) & 0xFF);
  EXPECT_EQ(driver_->Interrupts(0), 1u);
  EXPECT_EQ(Bar(layout::kIsr, 1), 2u);
}

TEST_F(VirtioPciTest, MaskedInterruptShowsAsPendingInTheBar) {
  BringUp();
  driver_->Mask(1);
  queues_[0].Add({{kData, 1, true}});
  driver_->Kick(0);
  EXPECT_EQ(driver_->Interrupts(1), 0u);
  EXPECT_EQ(Bar(layout::kMsixPba, 8), 0b10u);
  driver_->Unmask(1);
  EXPECT_EQ(driver_->Interrupts(1), 1u);
  EXPECT_EQ(Bar(layout::kMsixPba, 8), 0u);
}

TEST_F(VirtioPciTest, FunctionMaskIsTheCapabilitysBit) {
  BringUp();
  const uint64_t control = driver_->FindCapability(0x11) + 2u;
  driver_->WriteConfig(control, 2, 0xC000);
  EXPECT_EQ(driver_->ReadConfig(control, 2), 0xC002u);
  device_->transport().SignalQueue(0);
  EXPECT_EQ(driver_->Interrupts(1), 0u);
  driver_->WriteConfig(control, 2, 0x8000);
  EXPECT_EQ(driver_->Interrupts(1), 1u);
}

// State.

class VirtioPciStateTest : public VirtioPciTest {
 protected:
  capnp::AnyPointer::Reader Saved() {
    auto state = message_->getRoot<capnp::AnyPointer>();
    driver_->function().Save(state);
    return state.asReader();
  }
  state::VirtioState::Builder Edited() { return message_->getRoot<state::VirtioState>(); }
  bool Restores() {
    const auto state = message_->getRoot<capnp::AnyPointer>().asReader();
    Make();
    auto restored = driver_->function().Restore(state);
    driver_->function().Resume();
    return restored.ok();
  }

  // By pointer, since its destructor may throw and a test's may not.
  std::unique_ptr<capnp::MallocMessageBuilder> message_ = std::make_unique<capnp::MallocMessageBuilder>();
};

TEST_F(VirtioPciStateTest, HalfProcessedQueueGoesOnElsewhere) {
  BringUp(test::kVersion1 | kFeatureB);
  driver_->WriteConfig(0x04, 2, 0x6);
  driver_->Mask(2);
  device_->quota = 2;
  for (uint32_t i = 0; i < 5; ++i) queues_[0].Add({{kData, i, true}});
  queues_[1].Add({{kData, 1, true}});
  driver_->Kick(0);
  driver_->Kick(1);
  driver_->function().Pause();
  const auto state = Saved();
  const std::string before = std::to_string(Bar(0x15, 1));

  Make();
  ASSERT_TRUE(driver_->function().Restore(state).ok());
  EXPECT_EQ(device_->TakeCalls(), "restore:own activate ");
  EXPECT_EQ(device_->active_features, test::kVersion1 | kFeatureB);
  EXPECT_EQ(driver_->Status(), 15);
  EXPECT_EQ(std::to_string(Bar(0x15, 1)), before);
  EXPECT_EQ(driver_->ReadConfig(0x04, 2), 0x6u);
  EXPECT_EQ(Bar(layout::kMsixPba, 8), 0b100u) << "the masked interrupt is still owed";
  EXPECT_EQ(queues_[0].UsedIndex(), 2);

  driver_->function().Resume();
  EXPECT_EQ(queues_[0].UsedIndex(), 5);
  EXPECT_EQ(driver_->Interrupts(1), 1u);
  driver_->Unmask(2);
  EXPECT_EQ(driver_->Interrupts(2), 1u);
}

TEST_F(VirtioPciStateTest, FreshStateSurvivesARoundTrip) {
  (void)Saved();
  EXPECT_TRUE(Restores());
  EXPECT_EQ(driver_->Status(), 0);
  BringUp();
}

TEST_F(VirtioPciStateTest, NeedForResetSurvivesARoundTrip) {
  BringUp();
  queues_[0].SetAvailableIndex(1000);
  driver_->Kick(0);
  driver_->function().Pause();
  (void)Saved();
  EXPECT_TRUE(Restores());
  EXPECT_NE(driver_->Status() & test::kNeedsReset, 0);
  driver_->Kick(0);
  EXPECT_EQ(device_->TakeCalls(), "restore:own resume ");
}

TEST_F(VirtioPciStateTest, ImpossibleStatesAreRefused) {
  BringUp();
  driver_->function().Pause();
  (void)Saved();
  const auto refused = [&](auto change, auto undo) {
    change(Edited());
    const bool restored = Restores();
    EXPECT_TRUE(restored || driver_->Status() == 0) << "nothing half-taken is worked on";
    undo(Edited());
    return !restored;
  };
  using State = state::VirtioState::Builder;
  EXPECT_TRUE(refused([](State s) { s.setVersion(2); }, [](State s) { s.setVersion(1); }));
  EXPECT_TRUE(refused([](State s) { s.setType(2); }, [](State s) { s.setType(40); }));
  EXPECT_TRUE(
      refused([](State s) { s.setDriverFeatures(~0ull); }, [](State s) { s.setDriverFeatures(test::kVersion1); }));
  EXPECT_TRUE(refused([](State s) { s.setDriverFeatures(0); }, [](State s) { s.setDriverFeatures(test::kVersion1); }));
  EXPECT_TRUE(refused([](State s) { s.getQueues()[0].setSize(5); }, [](State s) { s.getQueues()[0].setSize(8); }));
  EXPECT_TRUE(refused([](State s) { s.getQueues()[0].setSize(64); }, [](State s) { s.getQueues()[0].setSize(8); }));
  EXPECT_TRUE(refused([](State s) { s.getQueues()[1].setUsed(~7ull); },
                      [&](State s) { s.getQueues()[1].setUsed(queues_[1].layout().used.value); }));
  EXPECT_FALSE(refused([](State) {}, [](State) {})) << "the state that the others are made from";
  EXPECT_TRUE(refused([](State s) { s.initQueues(1); }, [](State) {}));
}

TEST_F(VirtioPciStateTest, StateOfTheWrongShapeIsAnErrorAndNoCrash) {
  message_->getRoot<capnp::AnyPointer>().setAs<capnp::Text>("not a struct");
  EXPECT_FALSE(Restores());
  BringUp();
}

// For a queue that the kernel serves.
TEST_F(VirtioPciTest, ADeviceHearsOfEachChangeOfWhatMayInterrupt) {
  BringUp();
  const int direct = device_->transport().InterruptFd(0);
  ASSERT_GE(direct, 0);
  SignalEventFd(direct);
  EXPECT_EQ(driver_->Interrupts(1), 1u);
  driver_->Mask(1);
  EXPECT_EQ(device_->TakeCalls(), "interrupts ");
  EXPECT_EQ(device_->transport().InterruptFd(0), -1);
  EXPECT_GE(device_->transport().InterruptFd(1), 0);
  driver_->Unmask(1);
  driver_->WriteConfig(driver_->FindCapability(0x11) + 2u, 2, 0xC000);
  EXPECT_EQ(device_->TakeCalls(), "interrupts interrupts ");
  EXPECT_EQ(device_->transport().InterruptFd(0), -1);
  driver_->WriteConfig(driver_->FindCapability(0x11) + 2u, 2, 0x8000);
  driver_->WriteBar(0x16, 2, 0);
  driver_->WriteBar(0x1A, 2, 0xFFFF);
  EXPECT_EQ(device_->TakeCalls(), "interrupts interrupts ");
  EXPECT_EQ(device_->transport().InterruptFd(0), -1);
  driver_->SetStatus(0);
  driver_->Mask(1);
  EXPECT_EQ(device_->TakeCalls(), "deactivate ");
}

}  // namespace
}  // namespace bulkhead::device
