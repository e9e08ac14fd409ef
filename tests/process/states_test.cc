// SPDX-License-Identifier: Apache-2.0
// States that released versions saved are read by the real device processes of this one. tests/states/VERSION/ has one
// of each kind, as such a process wrote it (KIND.state, a Cap'n Proto message), and what is in it as that version's
// schemas said (KIND.txt): so a schema that gives a field another place is found, and one that is not restored.
//
// Each field that a state has is set there. For a release, BULKHEAD_WRITE_STATES=tests/states/VERSION has these files
// written anew, by processes that have saved again what they restored.
#include <capnp/serialize.h>
#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "device-procs/chipset/chipset_state.capnp.h"
#include "device-procs/common/virtio_state.capnp.h"
#include "device-procs/console/console_state.capnp.h"
#include "device-procs/console/virtio_console_state.capnp.h"
#include "device-procs/disk/disk_state.capnp.h"
#include "device-procs/net/net_state.capnp.h"
#include "device-procs/usernet/usernet_state.capnp.h"
#include "tests/process/harness.h"
#include "tests/process/net_function.h"
#include "tests/process/state_text.h"

namespace bulkhead::test {
namespace {

namespace fs = std::filesystem;
using State = capnp::MallocMessageBuilder;

constexpr uint64_t kDiskBytes = 1 << 20;
constexpr size_t kVlanBytes = 4096 / 8;

void Fill(capnp::Data::Builder data, uint8_t first) {
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(first + i);
}

// What a driver left at work, in every register that is kept.
void FillVirtio(device::state::VirtioState::Builder state) {
  state.setIsr(1);
  state.setConfigGeneration(3);
  state.setDeviceFeatureSelect(1);
  state.setDriverFeatureSelect(1);
  state.setConfigVector(1);
  state.setQueueSelect(static_cast<uint16_t>(state.getQueues().size()));
  state.setMsixFunctionMasked(true);
  uint16_t number = 0;
  for (auto queue : state.getQueues()) {
    ++number;
    queue.setNextAvailable(static_cast<uint16_t>(number * 7));
    queue.setNextUsed(static_cast<uint16_t>(number * 5));
  }
  uint32_t data = 0x4041;
  for (auto vector : state.getVectors()) {
    vector.setAddress(0xFEE0'1000);
    vector.setData(data++);
    vector.setMasked(data % 2 == 0);
    vector.setPending(data % 2 == 0);
  }
}

void StartDriver(DeviceProcess& process, uint64_t features, uint16_t queues) {
  NetFunction(process).Start(features, queues);
}

// One kind of device process.
struct Kind {
  const char* name;
  StateSchema schema;
  std::function<DeviceProcess::Options(const TempDir&)> options;
  // Brings a new process and its state, which it saved then, to where every field is set.
  std::function<void(DeviceProcess&)> start = [](DeviceProcess&) {};
  std::function<void(capnp::AnyPointer::Builder)> fill;
  // Numbers that go on with the time.
  std::vector<std::string> moving = {};
  bool takes_root = false;
};

void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

DeviceProcess::Options DiskOf(const std::string& path, control::ImageFormat format) {
  return {.configure =
              [=](control::VmConfig::Builder vm) {
                auto disk = vm.initDisks(1)[0];
                disk.setFile(MakeFile(OwnFd(::open(path.c_str(), O_RDWR | O_CLOEXEC))));
                disk.setName("disk");
                disk.setFormat(format);
              },
          .plan = broker::PlanDisks};
}

Kind Rng() {
  using device::state::VirtioState;
  return {.name = "rng",
          .schema = {capnp::Schema::from<VirtioState>(), {}},
          .options = [](const TempDir&) { return DeviceProcess::Options{.configure = {}, .plan = broker::PlanRng}; },
          .start = [](DeviceProcess& process) { StartDriver(process, device::FeatureBit(29), 1); },
          .fill = [](capnp::AnyPointer::Builder state) { FillVirtio(state.getAs<VirtioState>()); }};
}

Kind DiskKind(const char* name, control::ImageFormat format) {
  using device::state::DiskState;
  using device::state::VirtioState;
  const bool raw = format == control::ImageFormat::RAW;
  return {
      .name = name,
      .schema = {capnp::Schema::from<VirtioState>(), capnp::Schema::from<DiskState>()},
      .options =
          [=](const TempDir& dir) {
            const std::string path = raw ? dir.MakeImage("disk", kDiskBytes) : dir.Path("disk");
            if (!raw) {
              EXPECT_EQ(RunBulkhead({"img", "create", "-f", "qcow2", path, "1M"}).status, 0);
            }
            return DiskOf(path, format);
          },
      .start = [](DeviceProcess& process) { StartDriver(process, device::FeatureBit(9) | device::FeatureBit(11), 1); },
      .fill =
          [](capnp::AnyPointer::Builder state) {
            FillVirtio(state.getAs<VirtioState>());
            state.getAs<VirtioState>().getDevice().getAs<DiskState>().setWriteback(true);
          }};
}

void FillNet(capnp::AnyPointer::Builder state) {
  using device::state::NetState;
  FillVirtio(state.getAs<device::state::VirtioState>());
  auto net = state.getAs<device::state::VirtioState>().getDevice().getAs<NetState>();
  net.setActivePairs(2);
  net.setPromiscuous(true);
  net.setAllMulticast(true);
  auto unicast = net.initUnicast(2);
  for (unsigned i = 0; i < unicast.size(); ++i) Fill(unicast.init(i, 6), static_cast<uint8_t>(0x12 + 16 * i));
  Fill(net.initMulticast(1).init(0, 6), 0x33);
  Fill(net.initVlans(kVlanBytes), 1);
  net.setLinkOff(true);
  net.setOffloadsOff(device::FeatureBit(7));
  net.initReceiveCoalescing().setMaxPackets(12);
  net.getReceiveCoalescing().setMaxMicroseconds(345);
  net.initTransmitCoalescing().setMaxPackets(67);
  net.getTransmitCoalescing().setMaxMicroseconds(890);
}

Kind NetKind() {
  return {.name = "net",
          .schema = {capnp::Schema::from<device::state::VirtioState>(), capnp::Schema::from<device::state::NetState>()},
          .options =
              [](const TempDir&) {
                const auto network = std::make_shared<TapNetwork>(2);
                DeviceProcess::Options options = Net(*network);
                options.configure = [network, configure = options.configure](control::VmConfig::Builder vm) {
                  configure(vm);
                };
                return options;
              },
          .start =
              [](DeviceProcess& process) {
                StartDriver(process, kFeatures | device::FeatureBit(2) | device::FeatureBit(53), 5);
              },
          .fill = FillNet,
          .takes_root = true};
}

void FillConsole(capnp::AnyPointer::Builder state) {
  auto console = state.getAs<device::state::ConsoleState>();
  auto uart = console.getUart();
  uart.setIer(0x0D);
  uart.setFcr(0xC1);
  uart.setLcr(0x1B);
  uart.setMcr(0x0B);
  uart.setScr(0xA5);
  uart.setDivisor(12);
  uart.setModemDeltas(0x05);
  uart.setOverrun(true);
  uart.setThrePending(true);
  uart.setThreOwed(true);
  Fill(uart.initReceived(3), 'a');
  Fill(uart.initUnread(4), 'e');
  Fill(uart.initUnsent(5), 'm');
  uart.setLinePolls(2);
  auto virtio = console.getVirtio().getAs<device::state::VirtioState>();
  FillVirtio(virtio);
  auto device = virtio.getDevice().getAs<device::state::VirtioConsoleState>();
  device.setTransmitDone(6);
  Fill(device.initEmergency(2), 'y');
}

Kind ConsoleKind() {
  return {.name = "console",
          .schema = {capnp::Schema::from<device::state::ConsoleState>(),
                     capnp::Schema::from<device::state::VirtioConsoleState>()},
          .options =
              [](const TempDir&) {
                return DeviceProcess::Options{
                    .configure = [](control::VmConfig::Builder vm) { vm.initVirtioConsole(); },
                    .plan = broker::PlanConsole};
              },
          .fill = FillConsole};
}

void FillChipset(capnp::AnyPointer::Builder state) {
  auto chipset = state.getAs<chipset::state::ChipsetState>();
  auto cmos = chipset.getCmos();
  cmos.setIndex(0x5A);
  Fill(cmos.initRegisters(128), 0);
  cmos.setFlags(0x70);
  cmos.setOffsetSeconds(-3600);
  cmos.setOffsetNanoseconds(123'456'789);
  auto pm = chipset.getAcpiPm();
  pm.setStatus(0x0100);
  pm.setEnable(0x0120);
  pm.setControl(1);
  auto keyboard = chipset.getI8042();
  keyboard.setCommandByte(0x47);
  keyboard.setOutputByte(0x55);
  keyboard.setOutputFull(true);
  keyboard.setPendingCommand(0x60);
  keyboard.setLastWasCommand(true);
  Fill(chipset.getDebugConsole().initUnsent(7), 'd');
  chipset.getHostBridge().setCommand(0x0507);
  chipset.setPostCode(0x42);
  chipset.setResetControl(0x08);
}

Kind ChipsetKind() {
  return {
      .name = "chipset",
      .schema = {capnp::Schema::from<chipset::state::ChipsetState>(), {}},
      .options = [](const TempDir&) { return DeviceProcess::Options{.configure = {}, .plan = broker::PlanChipset}; },
      .fill = FillChipset,
      .moving = {"cmos.checkedSeconds", "cmos.checkedNanoseconds", "acpiPm.timerTicks", "acpiPm.checkedHalfPeriod"}};
}

Kind UserNetKind() {
  return {.name = "usernet",
          .schema = {capnp::Schema::from<usernet::state::UserNetState>(), {}},
          .options =
              [](const TempDir&) {
                return DeviceProcess::Options{
                    .configure = ConfigureUserNet, .plan = broker::PlanNets, .plan_name = "usernet0"};
              },
          .fill = [](capnp::AnyPointer::Builder) {}};
}

std::vector<Kind> Kinds() {
  return {Rng(),
          DiskKind("disk-raw", control::ImageFormat::RAW),
          DiskKind("disk-qcow2", control::ImageFormat::QCOW2),
          NetKind(),
          ConsoleKind(),
          ChipsetKind(),
          UserNetKind()};
}

class SavedState : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam().takes_root && !TapNetwork::Possible()) GTEST_SKIP() << "only root can make a tap";
  }
  static std::string Root() { return fs::path(BuildDir()).parent_path() / "tests" / "states"; }
  static std::string NameIn(const fs::path& folder, const char* ending) {
    return folder / (std::string(GetParam().name) + ending);
  }
  std::unique_ptr<DeviceProcess> Start() {
    auto process = std::make_unique<DeviceProcess>(*io_, GetParam().options(dir_));
    return process;
  }
  // What a process saves that has restored this, and done nothing with it.
  std::unique_ptr<State> SavedAgain(DeviceProcess& process, capnp::AnyPointer::Reader state) {
    process.device().pauseRequest().send().wait(process.wait());
    auto restore = process.device().restoreRequest();
    restore.getState().set(state);
    restore.send().wait(process.wait());
    return Saved(process);
  }
  static std::unique_ptr<State> Saved(DeviceProcess& process) {
    const auto saved = process.device().saveRequest().send().wait(process.wait());
    auto copy = std::make_unique<State>();
    copy->initRoot<capnp::AnyPointer>().set(saved.getState());
    return copy;
  }
  void Write(const fs::path& folder) {
    const auto process = Start();
    GetParam().start(*process);
    process->device().pauseRequest().send().wait(process->wait());
    const auto filled = Saved(*process);
    GetParam().fill(filled->getRoot<capnp::AnyPointer>());
    const auto saved = SavedAgain(*process, filled->getRoot<capnp::AnyPointer>().asReader());
    const auto words = capnp::messageToFlatArray(*saved);
    const auto bytes = words.asBytes();
    fs::create_directories(folder);
    std::ofstream(NameIn(folder, ".state"), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.begin()), static_cast<std::streamsize>(bytes.size()));
    std::ofstream text(NameIn(folder, ".txt"));
    for (const auto& line : DescribeState(saved->getRoot<capnp::AnyPointer>().asReader(), GetParam().schema)) {
      text << line << "\n";
    }
  }
  // Whether the time may have changed what this line tells.
  static bool Moves(const std::string& line) {
    return std::ranges::any_of(GetParam().moving,
                               [&](const std::string& path) { return line.starts_with(path + " = "); });
  }

  TempDir dir_;
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
};

std::vector<std::string> LinesOf(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

TEST_P(SavedState, OfEachReleasedVersionComesBack) {
  if (const char* folder = std::getenv("BULKHEAD_WRITE_STATES"); folder != nullptr) Write(folder);
  unsigned versions = 0;
  for (const auto& version : fs::directory_iterator(Root())) {
    SCOPED_TRACE(version.path().string());
    // A kind may be younger than a version.
    if (!fs::exists(NameIn(version, ".state"))) continue;
    ++versions;
    const std::vector<std::string> expected = LinesOf(NameIn(version, ".txt"));
    ASSERT_FALSE(expected.empty());
    const OwnFd file(::open(NameIn(version, ".state").c_str(), O_RDONLY | O_CLOEXEC));
    capnp::StreamFdMessageReader message(file.get());
    const auto state = message.getRoot<capnp::AnyPointer>();
    EXPECT_EQ(DescribeState(state, GetParam().schema), expected) << "the schema reads it as something else";

    const auto process = Start();
    const auto saved = SavedAgain(*process, state);
    // Fields that came since may be set as well.
    const auto now = DescribeState(saved->getRoot<capnp::AnyPointer>().asReader(), GetParam().schema);
    for (const std::string& line : expected) {
      EXPECT_TRUE(Moves(line) || std::ranges::find(now, line) != now.end()) << line;
    }
    process->device().resumeRequest().send().wait(process->wait());
  }
  EXPECT_GT(versions, 0u) << "no state of this kind in " << Root();
}

INSTANTIATE_TEST_SUITE_P(Kinds, SavedState, testing::ValuesIn(Kinds()), [](const auto& info) {
  std::string name = info.param.name;
  std::erase(name, '-');
  return name;
});

}  // namespace
}  // namespace bulkhead::test
