// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/chipset.h"

#include <capnp/message.h>
#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <random>
#include <string>

namespace bulkhead::chipset {
namespace {

class ChipsetTest : public testing::Test {
 protected:
  ChipsetTest() {
    ::signal(SIGPIPE, SIG_IGN);
    chipset_ = Make();
    chipset_->Resume();
  }

  std::unique_ptr<Chipset> Make() {
    std::array<int, 2> ends;
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK), 0);
    debug_ = OwnFd(ends[0]);
    OwnFd sci = OrThrow(MakeEventFd());
    sci_ = OrThrow(DuplicateFd(sci.get()));
    return std::make_unique<Chipset>(
        loop_,
        ChipsetSettings{.memory_bytes = 128 << 20,
                        .debug_output = OwnFd(ends[1]),
                        .rtc_irq = OrThrow(MakeEventFd()),
                        .sci_assert = std::move(sci),
                        .sci_resample = OrThrow(MakeEventFd())},
        [this] { ++power_offs_; }, [this] { ++resets_; });
  }
  uint64_t In(Region region, uint64_t offset = 0, uint8_t width = 1) {
    return chipset_->Read(static_cast<uint16_t>(region), offset, width);
  }
  void Out(Region region, uint64_t value, uint64_t offset = 0, uint8_t width = 1) {
    chipset_->Write(static_cast<uint16_t>(region), offset, width, value);
  }
  void RunPending() {
    loop_.Stop();
    loop_.Run();
  }
  std::string DebugOutput(size_t most = 1 << 20) {
    std::string got(most, '\0');
    const ssize_t count = ::read(debug_.get(), got.data(), got.size());
    got.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return got;
  }

  int power_offs_ = 0;
  int resets_ = 0;
  device::EventLoop loop_;
  OwnFd debug_;
  OwnFd sci_;
  std::unique_ptr<Chipset> chipset_;
};

TEST_F(ChipsetTest, ResetsByEitherPort) {
  Out(Region::kResetControl, 0x02);
  EXPECT_EQ(resets_, 0);
  EXPECT_EQ(In(Region::kResetControl), 0x02u);
  Out(Region::kResetControl, 0x06);
  EXPECT_EQ(resets_, 1);
  EXPECT_EQ(In(Region::kResetControl), 0x02u);
  Out(Region::kI8042Status, 0xFE);
  EXPECT_EQ(resets_, 2);
  Out(Region::kI8042Status, 0xFF);
  EXPECT_EQ(resets_, 2) << "pulses nothing";
  Out(Region::kI8042Status, 0xD1);
  Out(Region::kI8042Data, 0x03);
  EXPECT_EQ(resets_, 2);
  Out(Region::kI8042Status, 0xD1);
  Out(Region::kI8042Data, 0x02);
  EXPECT_EQ(resets_, 3);
}

TEST_F(ChipsetTest, KeyboardControllerIsNeverBusyAndHasNoKeyboard) {
  EXPECT_EQ(In(Region::kI8042Status) & 0x03, 0u);
  Out(Region::kI8042Status, 0xAA);
  EXPECT_EQ(In(Region::kI8042Status) & 0x03, 0x01u);
  EXPECT_EQ(In(Region::kI8042Data), 0x55u);
  EXPECT_EQ(In(Region::kI8042Status) & 0x01, 0u);
  Out(Region::kI8042Status, 0xAB);
  EXPECT_NE(In(Region::kI8042Data), 0u) << "the interface test finds nothing connected";
  Out(Region::kI8042Data, 0xFF);
  EXPECT_EQ(In(Region::kI8042Status) & 0x01, 0u) << "no keyboard answers";
  Out(Region::kI8042Status, 0x60);
  Out(Region::kI8042Data, 0x47);
  Out(Region::kI8042Status, 0x20);
  EXPECT_EQ(In(Region::kI8042Data), 0x47u);
}

TEST_F(ChipsetTest, KeepsThePostCode) {
  Out(Region::kPostCode, 0xA5);
  EXPECT_EQ(In(Region::kPostCode), 0xA5u);
}

TEST_F(ChipsetTest, DebugConsoleWritesABatchInOnePiece) {
  EXPECT_EQ(In(Region::kDebugConsole), 0xE9u);
  for (char c : std::string("SeaBIOS\n")) Out(Region::kDebugConsole, static_cast<uint8_t>(c));
  EXPECT_EQ(DebugOutput(), "");
  chipset_->Flush();
  EXPECT_EQ(DebugOutput(), "SeaBIOS\n");
}

TEST_F(ChipsetTest, DebugConsoleKeepsAllForASlowReaderAndBoundsItForNone) {
  const size_t pipe_bytes = static_cast<size_t>(::fcntl(debug_.get(), F_GETPIPE_SZ));
  const size_t total = pipe_bytes + DebugConsole::kBufferBytes / 2;
  for (size_t i = 0; i < total; ++i) Out(Region::kDebugConsole, i % 251);
  chipset_->Flush();
  std::string got;
  while (got.size() < total) {
    const std::string piece = DebugOutput();
    ASSERT_FALSE(piece.empty());
    got += piece;
    RunPending();
  }
  for (size_t i = 0; i < total; ++i) ASSERT_EQ(static_cast<uint8_t>(got[i]), i % 251) << i;
  for (int i = 0; i < 1 << 20; ++i) Out(Region::kDebugConsole, 'x');
  debug_.Close();
  RunPending();
  Out(Region::kDebugConsole, 'y');
  chipset_->Flush();
}

TEST_F(ChipsetTest, HostBridgeIsAReadOnlyBridgeFunction) {
  EXPECT_EQ(In(Region::kHostBridge, 0, 4), 0x0008'1B36u);
  EXPECT_EQ(In(Region::kHostBridge, 8, 4) >> 8, 0x060000u);
  EXPECT_EQ(In(Region::kHostBridge, 0x0E, 1), 0u);
  Out(Region::kHostBridge, 0xFFFF'FFFF, 0x10, 4);
  EXPECT_EQ(In(Region::kHostBridge, 0x10, 4), 0u) << "no BAR";
  Out(Region::kHostBridge, 0xFFFF'FFFF, 0, 4);
  EXPECT_EQ(In(Region::kHostBridge, 0, 4), 0x0008'1B36u);
  Out(Region::kHostBridge, 0xFFFF'FFFF, 4, 4);
  EXPECT_EQ(In(Region::kHostBridge, 4, 4), 0x0547u);
  EXPECT_EQ(In(Region::kHostBridge, 4092, 4), 0u);
}

TEST_F(ChipsetTest, PowerButtonAndSoftOff) {
  Out(Region::kPm1aEvent, 0x0100, 2, 2);
  chipset_->PressPowerButton();
  EXPECT_EQ(DrainEventFd(sci_.get()), 1u);
  Out(Region::kPm1aControl, 1 << 13 | 5 << 10, 0, 2);
  EXPECT_EQ(power_offs_, 1);
}

TEST_F(ChipsetTest, UnknownRegionReadsAllOnes) {
  EXPECT_EQ(chipset_->Read(10, 0, 2), 0xFFFFu);
  EXPECT_EQ(chipset_->Read(0xFFFF, 0, 8), ~uint64_t{0});
  chipset_->Write(0xFFFF, 0, 8, 1);
}

TEST_F(ChipsetTest, StateSurvivesSaveAndRestore) {
  Out(Region::kPostCode, 0x42);
  Out(Region::kResetControl, 0x08);
  Out(Region::kHostBridge, 0x0001, 4, 2);
  Out(Region::kI8042Status, 0xAA);
  Out(Region::kPm1aEvent, 0x0100, 2, 2);
  Out(Region::kCmos, 0x5A0F, 0, 2);
  chipset_->Pause();
  chipset_->PressPowerButton();
  EXPECT_EQ(DrainEventFd(sci_.get()), 0u) << "paused";
  Out(Region::kDebugConsole, 'd');
  capnp::MallocMessageBuilder message;
  auto root = message.getRoot<capnp::AnyPointer>();
  chipset_->Save(root);

  chipset_ = Make();
  ASSERT_TRUE(chipset_->Restore(root.asReader()).ok());
  EXPECT_EQ(DrainEventFd(sci_.get()), 0u) << "paused";
  chipset_->Resume();
  EXPECT_EQ(DrainEventFd(sci_.get()), 1u);
  EXPECT_EQ(In(Region::kPostCode), 0x42u);
  EXPECT_EQ(In(Region::kResetControl), 0x08u);
  EXPECT_EQ(In(Region::kHostBridge, 4, 2), 0x0001u);
  EXPECT_EQ(In(Region::kI8042Data), 0x55u);
  EXPECT_EQ(In(Region::kPm1aEvent, 0, 4), 0x0100'0100u);
  EXPECT_EQ(In(Region::kCmos, 1, 1), 0x5Au);
  EXPECT_EQ(DebugOutput(), "d");
}

TEST_F(ChipsetTest, RefusesForeignStates) {
  capnp::MallocMessageBuilder empty;
  EXPECT_FALSE(chipset_->Restore(empty.getRoot<capnp::AnyPointer>().asReader()).ok());
  capnp::MallocMessageBuilder text;
  text.getRoot<capnp::AnyPointer>().setAs<capnp::Text>("not a struct");
  EXPECT_FALSE(chipset_->Restore(text.getRoot<capnp::AnyPointer>().asReader()).ok());
  capnp::MallocMessageBuilder later;
  later.getRoot<capnp::AnyPointer>().initAs<state::ChipsetState>().setVersion(99);
  EXPECT_FALSE(chipset_->Restore(later.getRoot<capnp::AnyPointer>().asReader()).ok());
}

TEST_F(ChipsetTest, SurvivesRandomAccesses) {
  std::mt19937_64 random(1);
  const std::array<uint64_t, 10> sizes = {2, 1, 1, 1, 1, 4, 2, 4, 1, 4096};
  for (int i = 0; i < 200'000; ++i) {
    const auto region = static_cast<uint16_t>(random() % sizes.size());
    const auto width = static_cast<uint8_t>(1u << random() % 4);
    if (width > sizes[region]) continue;
    const uint64_t offset = random() % (sizes[region] - width + 1);
    if (random() % 2 == 0) {
      chipset_->Write(region, offset, width, random());
    } else {
      chipset_->Read(region, offset, width);
    }
    if (i % 1000 == 0) RunPending();
  }
}

}  // namespace
}  // namespace bulkhead::chipset
