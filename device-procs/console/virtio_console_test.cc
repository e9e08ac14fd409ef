// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/virtio_console.h"

#include <capnp/message.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>

#include "device-procs/common/virtio_pci_driver.h"
#include "device-procs/console/virtio_console_state.capnp.h"

namespace bulkhead::device {
namespace {

namespace layout = virtio_pci;
using test::FunctionDriver;
using test::QueueDriver;
using test::Used;

constexpr uint64_t kMemoryBytes = 4 << 20;
constexpr Gpa kData{0x10'0000};

// An outside that takes as much as it is told to, and gives what it is told to.
class FakePort final : public BytePort {
 public:
  size_t Write(std::span<const std::byte> bytes) override {
    const size_t taken = std::min(room, bytes.size());
    output.append(reinterpret_cast<const char*>(bytes.data()), taken);
    room -= taken;
    return taken;
  }
  size_t Read(std::span<std::byte> bytes) override {
    const size_t got = std::min(input.size(), bytes.size());
    std::copy_n(reinterpret_cast<const std::byte*>(input.data()), got, bytes.begin());
    input.erase(0, got);
    return got;
  }
  void SetHandlers(std::function<void()> on_readable, std::function<void()> on_writable) override {
    readable = std::move(on_readable);
    writable = std::move(on_writable);
  }
  void MakeRoom(size_t bytes) {
    room = bytes;
    writable();
  }
  void Type(const std::string& text) {
    input += text;
    readable();
  }

  std::string input;
  std::string output;
  size_t room = std::numeric_limits<size_t>::max();
  std::function<void()> readable;
  std::function<void()> writable;
};

class VirtioConsoleTest : public testing::Test {
 protected:
  VirtioConsoleTest() { Make(); }
  void Make() {
    auto port = std::make_unique<FakePort>();
    port_ = port.get();
    auto console = std::make_unique<VirtioConsole>(memory_, std::move(port), ConsoleSize{.columns = 132, .rows = 43});
    console_ = console.get();
    driver_ = std::make_unique<FunctionDriver>(std::move(console), memory_);
  }
  void BringUp() {
    driver_->EnableMsix();
    ASSERT_TRUE(driver_->Negotiate(test::kVersion1));
    driver_->SetUpQueue(0, receive_.layout());
    driver_->SetUpQueue(1, transmit_.layout());
    driver_->GoLive();
    driver_->function().Resume();
  }
  // Offers `text` for transmission in two parts.
  void Send(const std::string& text) {
    transmit_.PutText(kData + sent_, text);
    const auto half = static_cast<uint32_t>(text.size() / 2);
    transmit_.Add(
        {{kData + sent_, half, false}, {kData + sent_ + half, static_cast<uint32_t>(text.size()) - half, false}});
    sent_ += text.size();
    driver_->Kick(1);
  }
  std::string TakeReceived(Gpa address) {
    auto used = receive_.TakeUsed();
    return used ? receive_.GetText(address, used->length) : "(none)";
  }
  void WriteEmergency(char letter) { driver_->WriteBar(layout::kDeviceConfig + 8, 4, static_cast<uint8_t>(letter)); }
  void RunUntilIdle() {
    for (int i = 0; i < 1000; ++i) driver_->RunPending();
  }

  GuestMemory memory_ = test::MakeGuestMemory(kMemoryBytes);
  QueueDriver receive_{memory_, Gpa{0x1000}, 8};
  QueueDriver transmit_{memory_, Gpa{0x3000}, 8};
  FakePort* port_ = nullptr;
  VirtioConsole* console_ = nullptr;
  std::unique_ptr<FunctionDriver> driver_;
  uint64_t sent_ = 0;
};

TEST_F(VirtioConsoleTest, ConfigurationHasTheSize) {
  EXPECT_EQ(driver_->DeviceFeatures() & 0xFF, 0b101u) << "size and emergency write, no multiport";
  EXPECT_EQ(driver_->ReadBar(layout::kDeviceConfig, 2), 132u);
  EXPECT_EQ(driver_->ReadBar(layout::kDeviceConfig + 2, 2), 43u);
  EXPECT_EQ(driver_->ReadBar(layout::kDeviceConfig + 4, 4), 1u);
}

TEST_F(VirtioConsoleTest, NewSizeInterruptsTheDriver) {
  BringUp();
  console_->SetSize({.columns = 80, .rows = 25});
  EXPECT_EQ(driver_->ReadBar(layout::kDeviceConfig, 4), 25u << 16 | 80u);
  EXPECT_EQ(driver_->Interrupts(0), 1u);
}

TEST_F(VirtioConsoleTest, GuestOutputReachesTheOutside) {
  BringUp();
  Send("hello, ");
  Send("world");
  EXPECT_EQ(port_->output, "hello, world");
  EXPECT_EQ(transmit_.TakeUsed(), (Used{0, 0}));
  EXPECT_EQ(transmit_.TakeUsed(), (Used{2, 0}));
  EXPECT_EQ(driver_->Interrupts(2), 2u);
}

TEST_F(VirtioConsoleTest, SlowOutsideKeepsTheBufferAndLosesNothing) {
  BringUp();
  port_->room = 3;
  Send("abcdefgh");
  Send("ijkl");
  EXPECT_EQ(port_->output, "abc");
  EXPECT_EQ(transmit_.TakeUsed(), std::nullopt);
  port_->MakeRoom(4);
  EXPECT_EQ(transmit_.TakeUsed(), std::nullopt);
  port_->MakeRoom(2);
  EXPECT_TRUE(transmit_.TakeUsed());
  EXPECT_EQ(transmit_.TakeUsed(), std::nullopt);
  port_->MakeRoom(100);
  EXPECT_EQ(port_->output, "abcdefghijkl");
  EXPECT_TRUE(transmit_.TakeUsed());
}

TEST_F(VirtioConsoleTest, GuestMayReceiveWhileItsOutputWaits) {
  BringUp();
  port_->room = 0;
  Send("waits");
  receive_.Add({{kData + 0x1000, 16, true}});
  port_->Type("input");
  EXPECT_EQ(TakeReceived(kData + 0x1000), "input");
}

TEST_F(VirtioConsoleTest, InputWaitsForABufferAndFillsIt) {
  BringUp();
  port_->Type("abcdefg");
  EXPECT_EQ(port_->input, "abcdefg") << "left outside";
  receive_.Add({{kData, 2, true}, {kData + 2, 2, true}});
  driver_->Kick(0);
  EXPECT_EQ(TakeReceived(kData), "abcd");
  EXPECT_EQ(driver_->Interrupts(1), 1u);
  receive_.Add({{kData + 0x100, 16, true}});
  driver_->Kick(0);
  EXPECT_EQ(TakeReceived(kData + 0x100), "efg");
}

TEST_F(VirtioConsoleTest, BufferWaitsForInput) {
  BringUp();
  receive_.Add({{kData, 16, true}});
  driver_->Kick(0);
  EXPECT_EQ(receive_.TakeUsed(), std::nullopt);
  EXPECT_EQ(driver_->Interrupts(1), 0u);
  port_->Type("x");
  EXPECT_EQ(TakeReceived(kData), "x");
  EXPECT_EQ(driver_->Interrupts(1), 1u);
}

TEST_F(VirtioConsoleTest, BufferWithoutRoomDoesNotHoldUpTheNext) {
  BringUp();
  receive_.Add({{kData, 0, true}});
  receive_.Add({{kData, 4, true}});
  port_->Type("ok");
  EXPECT_EQ(receive_.TakeUsed(), (Used{0, 0}));
  EXPECT_EQ(TakeReceived(kData), "ok");
}

TEST_F(VirtioConsoleTest, HugeRequestIsServedInRounds) {
  BringUp();
  transmit_.Add({{Gpa{0}, static_cast<uint32_t>(kMemoryBytes), false}});
  driver_->Kick(1);
  EXPECT_EQ(transmit_.TakeUsed(), std::nullopt) << "other events come first";
  const size_t first_round = port_->output.size();
  EXPECT_GT(first_round, 0u);
  EXPECT_LE(first_round, kMemoryBytes / 2);
  RunUntilIdle();
  EXPECT_EQ(port_->output.size(), kMemoryBytes);
  EXPECT_TRUE(transmit_.TakeUsed());
}

TEST_F(VirtioConsoleTest, EmergencyWriteWorksBeforeTheDriverDoesAnything) {
  driver_->function().Resume();
  WriteEmergency('!');
  EXPECT_EQ(port_->output, "!");
  EXPECT_EQ(driver_->ReadBar(layout::kDeviceConfig + 8, 4), 0u);
}

TEST_F(VirtioConsoleTest, EmergencyWritesWaitForASlowOutsideToo) {
  driver_->function().Resume();
  port_->room = 1;
  for (const char letter : std::string("oops")) WriteEmergency(letter);
  EXPECT_EQ(port_->output, "o");
  port_->MakeRoom(100);
  EXPECT_EQ(port_->output, "oops");
}

TEST_F(VirtioConsoleTest, EndlessEmergencyWritesAreBounded) {
  driver_->function().Resume();
  port_->room = 0;
  for (int i = 0; i < 100'000; ++i) WriteEmergency('x');
  port_->MakeRoom(1'000'000);
  EXPECT_EQ(port_->output.size(), 16u * 1024);
}

TEST_F(VirtioConsoleTest, OtherConfigurationFieldsCannotBeWritten) {
  driver_->function().Resume();
  driver_->WriteBar(layout::kDeviceConfig, 8, ~uint64_t{0});
  EXPECT_EQ(driver_->ReadBar(layout::kDeviceConfig, 2), 132u);
  EXPECT_EQ(port_->output, "");
}

TEST_F(VirtioConsoleTest, BufferOutsideOfMemoryNeedsResetAndSilencesTheDevice) {
  BringUp();
  transmit_.Add({{Gpa{kMemoryBytes}, 4, false}});
  driver_->Kick(1);
  EXPECT_NE(driver_->Status() & test::kNeedsReset, 0);
  receive_.Add({{kData, 4, true}});
  port_->Type("x");
  EXPECT_EQ(receive_.TakeUsed(), std::nullopt);
  port_->writable();
  EXPECT_EQ(port_->output, "");
}

TEST_F(VirtioConsoleTest, BrokenItWorksAgainAfterAReset) {
  BringUp();
  transmit_.Add({{Gpa{kMemoryBytes}, 4, false}});
  driver_->Kick(1);
  QueueDriver fresh(memory_, Gpa{0x5000}, 8);
  ASSERT_TRUE(driver_->Negotiate(test::kVersion1));
  driver_->SetUpQueue(1, fresh.layout());
  driver_->GoLive();
  fresh.PutText(kData, "back");
  fresh.Add({{kData, 4, false}});
  driver_->Kick(1);
  EXPECT_EQ(port_->output, "back");
}

TEST_F(VirtioConsoleTest, ResetForgetsAHalfSentBuffer) {
  BringUp();
  port_->room = 2;
  Send("abcd");
  driver_->SetStatus(0);
  port_->MakeRoom(100);
  EXPECT_EQ(port_->output, "ab");
}

TEST_F(VirtioConsoleTest, PausedItTouchesNothing) {
  BringUp();
  port_->room = 2;
  Send("abcd");
  receive_.Add({{kData, 4, true}});
  driver_->function().Pause();
  port_->Type("in");
  port_->MakeRoom(100);
  EXPECT_EQ(port_->output, "ab");
  EXPECT_EQ(receive_.TakeUsed(), std::nullopt);
  driver_->function().Resume();
  EXPECT_EQ(port_->output, "abcd");
  EXPECT_EQ(TakeReceived(kData), "in");
}

TEST_F(VirtioConsoleTest, HalfSentBufferGoesOnElsewhere) {
  BringUp();
  port_->room = 3;
  Send("abcdefgh");
  WriteEmergency('!');
  driver_->function().Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.getRoot<capnp::AnyPointer>();
  driver_->function().Save(state);
  EXPECT_EQ(port_->output, "abc");

  Make();
  ASSERT_TRUE(driver_->function().Restore(state.asReader()).ok());
  EXPECT_EQ(port_->output, "") << "not before it is resumed";
  driver_->function().Resume();
  EXPECT_EQ(port_->output, "!defgh");
  EXPECT_EQ(transmit_.TakeUsed(), (Used{0, 0}));
  EXPECT_EQ(driver_->Interrupts(2), 1u);
}

TEST_F(VirtioConsoleTest, HostileStateIsRefusedOrHarmless) {
  capnp::MallocMessageBuilder message;
  auto any = message.getRoot<capnp::AnyPointer>();
  auto state = any.initAs<state::VirtioConsoleState>();
  EXPECT_FALSE(console_->RestoreDevice(any.asReader()).ok()) << "version 0";
  state.setVersion(1);
  state.initEmergency(16 * 1024 + 1);
  EXPECT_FALSE(console_->RestoreDevice(any.asReader()).ok());
  state.initEmergency(0);
  state.setTransmitDone(~uint64_t{0});
  EXPECT_TRUE(console_->RestoreDevice(any.asReader()).ok());
  BringUp();
  Send("counts as sent");
  EXPECT_TRUE(transmit_.TakeUsed());
}

}  // namespace
}  // namespace bulkhead::device
