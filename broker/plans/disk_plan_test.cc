// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <functional>

#include "broker/device_plan.h"
#include "device-procs/disk/disk_settings.capnp.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

control::File::Client FileOfSize(off_t bytes) {
  OwnFd fd(::memfd_create("image", MFD_CLOEXEC));
  if (::ftruncate(fd.get(), bytes) != 0) ThrowErrno("make a test image");
  return MakeFile(std::move(fd));
}

off_t SizeOf(const OwnFd& fd) {
  struct stat info {};
  return ::fstat(fd.get(), &info) == 0 ? info.st_size : -1;
}

class DiskPlan : public testing::Test {
 protected:
  DevicePlan& Plan(const std::function<void(control::DiskConfig::Builder)>& configure, uint32_t vcpus = 4) {
    config_ = std::make_unique<capnp::MallocMessageBuilder>();
    auto vm = config_->initRoot<control::VmConfig>();
    vm.setVcpuCount(vcpus);
    auto disk = vm.initDisks(1)[0];
    disk.setFile(FileOfSize(1));
    disk.setName("top");
    configure(disk);
    Planner planner(vm.asReader(), io_->waitScope);
    PlanDisks(planner);
    plans_ = planner.Take();
    return *plans_.at(0);
  }
  static disk::DiskSettings::Reader SettingsOf(const DevicePlan& plan) {
    return plan.settings->getRoot<disk::DiskSettings>().asReader();
  }
  static void AddBacking(control::DiskConfig::Builder disk, unsigned count) {
    auto backing = disk.initBacking(count);
    for (unsigned i = 0; i < count; ++i) {
      backing[i].setFile(FileOfSize(i + 2));
      backing[i].setName("below " + std::to_string(i));
    }
  }

  // On the heap: their destructors may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::unique_ptr<capnp::MallocMessageBuilder> config_;
  std::vector<std::unique_ptr<DevicePlan>> plans_;
};

TEST_F(DiskPlan, FilesAndSettingsAreInTheSameOrder) {
  const DevicePlan& plan = Plan([](control::DiskConfig::Builder disk) {
    disk.setFormat(control::ImageFormat::QCOW2);
    disk.setDirectIo(true);
    AddBacking(disk, 2);
    disk.getBacking()[0].setFormat(control::ImageFormat::QCOW);
    disk.getBacking()[1].setBlockDevice(true);
  });
  const auto images = SettingsOf(plan).getImages();
  ASSERT_EQ(plan.files.size(), 3u);
  ASSERT_EQ(images.size(), 3u);
  for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(SizeOf(plan.files[i]), i + 1);
  EXPECT_EQ(std::string(images[0].getName().cStr()), "top");
  EXPECT_EQ(images[0].getFormat(), disk::Image::Format::QCOW2);
  EXPECT_TRUE(images[0].getDirectIo());
  EXPECT_FALSE(images[0].getReadOnly());
  EXPECT_EQ(std::string(images[1].getName().cStr()), "below 0");
  EXPECT_EQ(images[1].getFormat(), disk::Image::Format::QCOW);
  EXPECT_EQ(images[2].getFormat(), disk::Image::Format::RAW);
  EXPECT_TRUE(images[2].getBlockDevice());
  for (const unsigned i : {1u, 2u}) EXPECT_TRUE(images[i].getReadOnly()) << "whatever the disk is";
}

TEST_F(DiskPlan, AChainHasAnEnd) {
  EXPECT_EQ(Plan([](auto disk) { AddBacking(disk, 15); }).files.size(), 16u);
  EXPECT_THROW(Plan([](auto disk) { AddBacking(disk, 16); }), FatalError);
}

TEST_F(DiskPlan, AFormatThatIsNotKnownIsRefused) {
  EXPECT_THROW(Plan([](auto disk) { disk.setFormat(static_cast<control::ImageFormat>(77)); }), FatalError);
}

TEST_F(DiskPlan, AnImageWithAFormatHasOneThreadAndMoreMemory) {
  const DevicePlan raw = std::move(Plan([](auto) {}));
  const DevicePlan qcow2 = std::move(Plan([](auto disk) { disk.setFormat(control::ImageFormat::QCOW2); }));
  EXPECT_EQ(raw.limits.threads, PlannedLimits().threads + 4);
  EXPECT_EQ(qcow2.limits.threads, PlannedLimits().threads + 1 + 2) << "and two that unpack";
  EXPECT_LT(qcow2.limits.kernel_threads, raw.limits.kernel_threads);
  EXPECT_EQ(raw.limits.memory_bytes, PlannedLimits().memory_bytes);
  EXPECT_EQ(qcow2.limits.memory_bytes, uint64_t{192} << 20);
  EXPECT_EQ(SettingsOf(qcow2).getQueueCount(), 4) << "all the same";
  EXPECT_TRUE(qcow2.journals_tables && !raw.journals_tables);
  EXPECT_EQ(qcow2.replacement, DevicePlan::Replacement::kAlways);
}

TEST_F(DiskPlan, OfALongNameTheEndIsShown) {
  const DevicePlan& plan = Plan([](auto disk) { disk.setName(std::string(5000, 'x') + "/disk.qcow2"); });
  const std::string name = SettingsOf(plan).getImages()[0].getName().cStr();
  EXPECT_LT(name.size(), 200u);
  EXPECT_TRUE(name.ends_with("/disk.qcow2")) << name;
}

}  // namespace
}  // namespace bulkhead::broker
