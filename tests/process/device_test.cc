// SPDX-License-Identifier: Apache-2.0
// The real device executables, sandboxed as ever, driven over their real rings by a fake runner that is by turns a
// driver and a liar.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "broker/host_kvm.h"
#include "broker/image_job.h"
#include "device-procs/common/virtqueue_driver.h"
#include "ipc/exit_codec.h"
#include "ipc/image.capnp.h"
#include "ipc/rpc.h"
#include "tests/process/device_process.h"
#include "tests/process/harness.h"
#include "tests/process/process_function.h"

namespace bulkhead::test {
namespace {

using device::test::QueueDriver;

constexpr uint16_t kQueueSize = 8;
constexpr Gpa kQueue{0x10000}, kHeader{0x20000}, kData{0x21000}, kStatus{0x22000};
constexpr uint32_t kSector = 512;

class RingFunction final : public ProcessFunction {
 public:
  // Where another process takes over.
  RingFunction(DeviceProcess& process, RingFunction& other)
      : ProcessFunction(process), queue_(process.memory(), other.queue_) {}
  explicit RingFunction(DeviceProcess& process)
      : ProcessFunction(process), queue_(process.memory(), kQueue, kQueueSize) {}

  void Start() {
    ASSERT_TRUE(Negotiate(device::test::kVersion1));
    SetUpQueue(0, queue_.layout());
    EnableMsix(2);
    GoLive();
  }
  QueueDriver& queue() { return queue_; }
  // Offers a chain, kicks, waits for the interrupt; the used length.
  uint32_t Transact(const std::vector<device::test::Buffer>& buffers) {
    queue_.Add(buffers);
    process().Kick(0);
    EXPECT_TRUE(process().AwaitInterrupt(1));
    const auto used = queue_.TakeUsed();
    EXPECT_TRUE(used);
    return used ? used->length : 0;
  }
  uint8_t Blk(uint32_t type, uint64_t sector, uint32_t bytes) {
    queue_.Put(kHeader, type);
    queue_.Put<uint32_t>(kHeader + 4, 0);
    queue_.Put(kHeader + 8, sector);
    queue_.Put<uint8_t>(kStatus, 0xFF);
    std::vector<device::test::Buffer> chain{{kHeader, 16}};
    if (bytes != 0) chain.push_back({kData, bytes, type == 0});
    chain.push_back({kStatus, 1, true});
    Transact(chain);
    return queue_.Get<uint8_t>(kStatus);
  }

 private:
  QueueDriver queue_;
};

DeviceProcess::Options Disk(const std::string& image) {
  return {.configure =
              [image](control::VmConfig::Builder vm) {
                auto disk = vm.initDisks(1)[0];
                disk.setFile(MakeFile(OwnFd(::open(image.c_str(), O_RDWR | O_CLOEXEC))));
                disk.setName(image);
                disk.setSerial("test");
              },
          .plan = broker::PlanDisks};
}
DeviceProcess::Options Of(void (*plan)(broker::Planner&)) { return {.configure = nullptr, .plan = plan}; }

class DeviceProcessTest : public testing::Test {
 protected:
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
};

TEST_F(DeviceProcessTest, DiskWritesAndReadsItsImage) {
  const TempDir dir;
  const std::string image = dir.MakeImage("image", 1 << 20);
  DeviceProcess process(*io_, Disk(image));
  RingFunction function(process);
  function.Start();
  function.queue().PutText(kData, "written over the ring");
  EXPECT_EQ(function.Blk(1, 3, kSector), 0);
  EXPECT_EQ(function.Blk(4, 0, 0), 0);
  EXPECT_EQ(ReadFile(image).substr(3 * kSector, 21), "written over the ring");
  function.queue().PutText(kData, std::string(21, 'x'));
  EXPECT_EQ(function.Blk(0, 3, kSector), 0);
  EXPECT_EQ(function.queue().GetText(kData, 21), "written over the ring");
  EXPECT_EQ(function.Blk(0, 1 << 20, kSector), 1);
}

// Its helpers need no system call that the filter does not let through, whichever way the clusters are packed.
TEST_F(DeviceProcessTest, ADiskUnpacksItsImageBehindItsWalls) {
  std::string text;
  for (int sector = 0; sector < 2048; ++sector) text += std::to_string(100'000 + sector) + std::string(506, 'x');
  for (const std::string kind : {"zlib", "zstd"}) {
    const TempDir dir;
    const std::string raw = dir.MakeFile("raw", text), image = dir.Path("image");
    const std::string convert = "qemu-img convert -c -O qcow2 -o compression_type=" + kind + " ";
    ASSERT_EQ(std::system((convert + raw + " " + image).c_str()), 0);
    DeviceProcess::Options options = Disk(image);
    options.configure = [configure = options.configure](control::VmConfig::Builder vm) {
      configure(vm);
      vm.getDisks()[0].setFormat(control::ImageFormat::QCOW2);
    };
    DeviceProcess process(*io_, options);
    RingFunction function(process);
    function.Start();
    for (const int sector : {0, 2047, 128, 127, 1000}) {
      EXPECT_EQ(function.Blk(0, static_cast<uint64_t>(sector), kSector), 0);
      EXPECT_EQ(function.queue().GetText(kData, 6), std::to_string(100'000 + sector)) << kind;
    }
    process.device().pauseRequest().send().wait(process.wait());
    process.HangUp();
    EXPECT_NE(process.AwaitDeath().find("ended with status 0"), std::string::npos);
  }
}

TEST_F(DeviceProcessTest, ADiskThatCannotBeOpenedSaysWhy) {
  const TempDir dir;
  const std::string image = dir.MakeImage("top", 1 << 20), base = dir.MakeImage("base", 1 << 20);
  DeviceProcess::Options options = Disk(image);
  options.configure = [configure = options.configure, base](control::VmConfig::Builder vm) {
    configure(vm);
    auto backing = vm.getDisks()[0].initBacking(1)[0];
    backing.setFile(MakeFile(OwnFd(::open(base.c_str(), O_RDONLY | O_CLOEXEC))));
    backing.setName(base);
  };
  try {
    DeviceProcess process(*io_, options);
    ADD_FAILURE() << "it was opened";
  } catch (const kj::Exception& error) {
    EXPECT_EQ(ReasonOf(error).find("disk '" + image + "': a raw image has no backing file"), 0u) << ReasonOf(error);
  }
}

TEST_F(DeviceProcessTest, RngFillsABuffer) {
  DeviceProcess process(*io_, Of(broker::PlanRng));
  RingFunction function(process);
  function.Start();
  EXPECT_EQ(function.Transact({{kData, 64, true}}), 64u);
  EXPECT_NE(function.queue().GetText(kData, 64), std::string(64, '\0'));
}

// Saved in one process, restored in another: the queue goes on where it was.
TEST_F(DeviceProcessTest, StateMovesToAnotherProcess) {
  const TempDir dir;
  const std::string image = dir.MakeImage("image", 1 << 20);
  DeviceProcess first(*io_, Disk(image));
  RingFunction function(first);
  function.Start();
  function.queue().PutText(kData, "before");
  EXPECT_EQ(function.Blk(1, 0, kSector), 0);
  first.device().pauseRequest().send().wait(first.wait());
  auto saved = first.device().saveRequest().send().wait(first.wait());

  capnp::MallocMessageBuilder copy;
  copy.setRoot(saved.getState());
  const uint16_t status = static_cast<uint16_t>(function.Status());
  std::vector<std::byte> memory(64 << 10);
  OrThrow(first.memory().Read(kQueue, memory));

  DeviceProcess second(*io_, Disk(image));
  OrThrow(second.memory().Write(kQueue, memory));
  second.device().pauseRequest().send().wait(second.wait());
  auto restore = second.device().restoreRequest();
  restore.getState().set(copy.getRoot<capnp::AnyPointer>().asReader());
  restore.send().wait(second.wait());
  second.device().resumeRequest().send().wait(second.wait());
  RingFunction moved(second, function);
  EXPECT_EQ(moved.Status(), status);
  EXPECT_EQ(moved.Blk(0, 0, kSector), 0);
  EXPECT_EQ(moved.queue().GetText(kData, 6), "before");
}

TEST_F(DeviceProcessTest, EndsWithItsBroker) {
  for (auto* plan : {broker::PlanRng, broker::PlanChipset, broker::PlanConsole}) {
    DeviceProcess process(*io_, Of(plan));
    process.HangUp();
    EXPECT_NE(process.AwaitDeath().find("ended with status 0"), std::string::npos);
  }
  const TempDir dir;
  DeviceProcess disk(*io_, Disk(dir.MakeImage("image", 1 << 20)));
  disk.HangUp();
  EXPECT_NE(disk.AwaitDeath().find("ended with status 0"), std::string::npos);
}

TEST_F(DeviceProcessTest, ImageProcessEndsWithItsBroker) {
  const TempDir dir;
  const std::string image = dir.MakeImage("image", 1 << 20);
  capnp::MallocMessageBuilder message;
  auto chains = message.initRoot<capnp::List<control::ImageChain>>(1);
  auto file = chains[0].initFiles(1)[0];
  file.setFile(MakeFile(OwnFd(::open(image.c_str(), O_RDWR | O_CLOEXEC))));
  file.setName(image);
  broker::ImageJob job(*io_, BuildDir() + "/libexec", chains.asReader());
  const auto info = job.worker().infoRequest().send().wait(io_->waitScope);
  EXPECT_EQ(info.getInfo().getVirtualBytes(), 1u << 20);
  job.HangUp();
  EXPECT_NE(job.WhenDead().wait(io_->waitScope).find("ended with status 0"), std::string::npos);
}

// The real runner with this program as its broker, up to the first instruction.
class RunnerHost final : public control::RunnerHost::Server {
 public:
  struct State {
    OwnFd kvm = broker::OpenKvm();
    OwnFd memory = OrThrow(MakeSealedMemory("guest-test", DeviceProcess::kMemoryBytes));
    OwnFd kernel{::open(Payload("hello").c_str(), O_RDONLY | O_CLOEXEC)};
    std::optional<control::Runner::Client> runner;
    kj::PromiseFulfillerPair<void> ready = kj::newPromiseAndFulfiller<void>();
  };
  explicit RunnerHost(State& state) : state_(state) {}
  kj::Promise<void> grants(GrantsContext context) override {
    auto grants = context.getResults().initGrants();
    grants.setKvm(ShareFile(state_.kvm.get()));
    auto memory = grants.initMemory();
    memory.setFile(ShareFile(state_.memory.get()));
    memory.initRegions(1)[0].setSize(DeviceProcess::kMemoryBytes);
    grants.setVcpuCount(1);
    grants.setKernel(ShareFile(state_.kernel.get()));
    grants.setKernelName("hello");
    return kj::READY_NOW;
  }
  kj::Promise<void> ready(ReadyContext context) override {
    state_.runner = context.getParams().getRunner();
    state_.ready.fulfiller->fulfill();
    return kj::READY_NOW;
  }

 private:
  State& state_;
};

TEST_F(DeviceProcessTest, RunnerLoadsAndEndsWithItsBroker) {
  RunnerHost::State state;
  broker::ChildUids uids(std::nullopt);
  broker::Child runner(*io_, BuildDir() + "/libexec/bulkhead-vcpu-runner", UniqueName(), "vcpu-runner",
                       kj::heap<RunnerHost>(state), broker::Birthplace{.cgroup = {}, .uid = uids.Take()});
  auto death = runner.WhenDead().fork();
  auto died = death.addBranch().then([](std::string how) { throw Failure(how); });
  state.ready.promise.exclusiveJoin(kj::mv(died)).wait(io_->waitScope);
  state.runner->loadRequest().send().wait(io_->waitScope);
  runner.HangUp();
  EXPECT_NE(death.addBranch().wait(io_->waitScope).find("ended with status 0"), std::string::npos);
}

// Frames that are none, and an index that cannot be: the device ends the conversation and says so.
TEST_F(DeviceProcessTest, LyingRunnerIsNoLongerSpokenTo) {
  for (int lie = 0; lie < 4; ++lie) {
    DeviceProcess process(*io_, Of(broker::PlanRng));
    RingMemory& requests = process.raw_channel()->requests;
    RingSlot& slot = requests.slots[0];
    slot.length_bytes = lie == 0 ? ~0u : lie == 1 ? 7 : 64;
    std::fill(slot.bytes.begin(), slot.bytes.end(), std::byte{0xFF});
    requests.head.store(lie == 3 ? 1'000'000 : 1);
    process.RingDoorbell();
    EXPECT_NE(process.AwaitDeath().find("ended with status 1"), std::string::npos) << lie;
  }
}

}  // namespace
}  // namespace bulkhead::test
