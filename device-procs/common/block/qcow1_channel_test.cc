// SPDX-License-Identifier: Apache-2.0
// A qcow disk of version 1 reads as QEMU, which made it, says; what cannot be is refused.
#include "device-procs/common/block/qcow1_channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>

#include "device-procs/common/block/image_chain.h"
#include "device-procs/common/block/qcow2/memory_file.h"

namespace bulkhead::qcow1 {
namespace {

using device::test::LateOffload;
using device::test::MemoryFile;
using qcow2::StoreBe32;
using qcow2::StoreBe64;

constexpr uint64_t kDiskBytes = 5 << 20;

struct Request final : device::BlockCompletion {
  void Completed(int e) override {
    error = e;
    ended = true;
  }
  int error = 0;
  bool ended = false;
};

class Qcow1 : public testing::Test {
 protected:
  Qcow1() {
    EXPECT_NE(::mkdtemp(folder_.data()), nullptr);
    model_.resize(kDiskBytes);
    // Data, zeroes, and what packs badly.
    for (size_t i = 0; i < kDiskBytes; ++i) {
      const size_t part = i >> 16;
      if (part % 3 != 0)
        model_[i] = part % 3 == 1 ? static_cast<std::byte>(i / 700) : static_cast<std::byte>(random_());
    }
    std::ofstream(folder_ + "/raw", std::ios::binary)
        .write(reinterpret_cast<const char*>(model_.data()), static_cast<std::streamsize>(kDiskBytes));
  }
  ~Qcow1() override { std::filesystem::remove_all(folder_); }

  void Run(const std::string& command) {
    EXPECT_EQ(std::system(("cd " + folder_ + " && " + command + " >/dev/null").c_str()), 0) << command;
  }
  std::vector<std::byte> Load(const std::string& name) {
    std::ifstream in(folder_ + "/" + name, std::ios::binary);
    std::vector<std::byte> bytes;
    for (std::istreambuf_iterator<char> at(in), end; at != end; ++at) bytes.push_back(static_cast<std::byte>(*at));
    return bytes;
  }
  // Opens `image` as a disk of its own.
  Result<void> OpenChain(device::ImageFormat format, bool read_only, device::ImageFormat& found) {
    std::vector<device::ImageFile> files(1);
    files[0].file = OwnFd(::open((folder_ + "/image").c_str(), read_only ? O_RDONLY : O_RDWR));
    files[0].format = format;
    files[0].read_only = read_only;
    files[0].name = "image";
    device::ImageChain chain(std::move(files), {});
    device::IoRing ring(64);
    device::InlineOffload offload;
    const auto channel = chain.OpenChannel(ring, offload);
    ring.Enable();
    std::optional<Result<void>> opened;
    device::Spawn(channel->Open(), [&](Result<void> result) { opened.emplace(std::move(result)); });
    while (!opened) OrThrow(ring.SubmitAndReap(true));
    found = chain.format();
    EXPECT_EQ(chain.geometry().size_bytes, opened->ok() ? kDiskBytes : 0);
    return std::move(*opened);
  }
  void Pump() {
    while (file_.Step(&random_) || base_.Step(&random_)) {
    }
  }
  Result<void> Open(qcow2::Backing below = {}) {
    disk_ = std::make_unique<Qcow1Channel>(
        file_, device::BlockGeometry{.size_bytes = file_.bytes.size(), .read_only = true}, offload_, below);
    return file_.Do(disk_->Open());
  }
  // Pieces of any size, many at a time.
  void Compare() {
    std::vector<std::byte> read(kDiskBytes, std::byte{0xEE});
    std::vector<std::unique_ptr<Request>> requests;
    for (uint64_t at = 0; at < kDiskBytes;) {
      const uint64_t size = std::min((1 + random_() % 300) * 512, kDiskBytes - at);
      const iovec vector{read.data() + at, size};
      requests.push_back(std::make_unique<Request>());
      disk_->Read(at, {&vector, 1}, *requests.back());
      at += size;
    }
    Pump();
    for (const auto& request : requests) ASSERT_TRUE(request->ended && request->error == 0);
    EXPECT_TRUE(read == model_);
  }
  // An image of one second-level table, at byte 1024, and what its first entry is.
  void Make(uint64_t entry) {
    file_.bytes.assign(64 * 1024, std::byte{0});
    StoreBe32(file_.bytes.data(), qcow2::kMagic);
    StoreBe32(file_.bytes.data() + 4, 1);
    StoreBe64(file_.bytes.data() + 24, 32768);
    file_.bytes[32] = std::byte{9};
    file_.bytes[33] = std::byte{6};
    StoreBe64(file_.bytes.data() + 40, 512);
    StoreBe64(file_.bytes.data() + 512, 1024);
    StoreBe64(file_.bytes.data() + 1024, entry);
  }
  int ReadError() {
    std::vector<std::byte> bytes(512);
    const iovec vector{bytes.data(), bytes.size()};
    Request request;
    disk_->Read(0, {&vector, 1}, request);
    Pump();
    return request.ended ? request.error : -1;
  }

  std::mt19937_64 random_{1};
  std::string folder_ = "/tmp/bulkhead-qcow1-XXXXXX";
  std::vector<std::byte> model_;
  MemoryFile file_;
  LateOffload offload_{file_};
  MemoryFile base_;
  std::unique_ptr<Qcow1Channel> disk_;
};

TEST_F(Qcow1, ReadsWhatQemuWrote) {
  Run("qemu-img convert -f raw -O qcow raw image");
  file_.bytes = Load("image");
  OrThrow(Open());
  Compare();
  // Each part is as QEMU says: stored, or not.
  for (uint64_t at = 0; at < kDiskBytes; at += 65536) {
    const auto extent = OrThrow(file_.Do(disk_->Map(at, 4096)));
    EXPECT_EQ(extent.data, (at >> 16) % 3 != 0) << at;
    EXPECT_EQ(extent.zero, !extent.data) << at;
  }
}

TEST_F(Qcow1, ReadsCompressedClusters) {
  // QEMU's program says that it failed, whatever the disk, when it has written all of it: what it reads counts.
  Run("qemu-img convert -c -f raw -O qcow raw image; qemu-img compare -f raw -F qcow raw image");
  file_.bytes = Load("image");
  OrThrow(Open());
  Compare();
  EXPECT_TRUE(OrThrow(file_.Do(disk_->Map(65536, 4096))).compressed);
}

TEST_F(Qcow1, ReadsWhatIsBelow) {
  Run("head -c 1000000 raw >base && qemu-img create -f qcow -b base -F raw image " + std::to_string(kDiskBytes) +
      " && qemu-io -f qcow -c 'write -P 7 65536 3000' image");
  file_.bytes = Load("image");
  base_.bytes = Load("base");
  base_.bytes.resize((base_.bytes.size() + 511) / 512 * 512);
  OrThrow(Open({&base_, base_.bytes.size()}));
  EXPECT_EQ(disk_->backing_file(), "base");
  std::fill(std::copy(base_.bytes.begin(), base_.bytes.end(), model_.begin()), model_.end(), std::byte{0});
  std::fill_n(model_.begin() + 65536, 3000, std::byte{7});
  Compare();
}

TEST_F(Qcow1, IsAnImageThatIsOnlyRead) {
  Run("qemu-img convert -f raw -O qcow raw image");
  device::ImageFormat found = device::ImageFormat::kRaw;
  OrThrow(OpenChain(device::ImageFormat::kDetect, true, found));
  EXPECT_EQ(found, device::ImageFormat::kQcow);
  OrThrow(OpenChain(device::ImageFormat::kQcow, true, found));
  const auto refused = OpenChain(device::ImageFormat::kQcow, false, found);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, EROFS);
  EXPECT_NE(refused.error().message.find("can only be read"), std::string::npos);
}

TEST_F(Qcow1, CannotBeWritten) {
  Make(0);
  OrThrow(Open());
  std::vector<std::byte> bytes(512);
  const iovec vector{bytes.data(), bytes.size()};
  Request write, discard, zeroes;
  disk_->Write(0, {&vector, 1}, write);
  disk_->Discard(0, 512, discard);
  disk_->WriteZeroes(0, 512, true, zeroes);
  for (const Request* request : {&write, &discard, &zeroes}) EXPECT_TRUE(request->ended && request->error == EROFS);
}

TEST_F(Qcow1, RefusesHeadersThatCannotBe) {
  const auto refused = [&](size_t at, uint64_t value, const char* why) {
    Make(0);
    StoreBe64(file_.bytes.data() + at, value);
    const auto opened = Open();
    EXPECT_TRUE(!opened.ok() && opened.error().message.find(why) != std::string::npos) << why;
  };
  refused(0, uint64_t{qcow2::kMagic} << 32 | 2, "not a qcow image of version 1");
  refused(32, uint64_t{1} | uint64_t{9} << 56 | uint64_t{6} << 48, "encrypted");
  refused(32, uint64_t{8} << 56 | uint64_t{6} << 48, "clusters");
  refused(32, uint64_t{17} << 56 | uint64_t{6} << 48, "clusters");
  refused(32, uint64_t{9} << 56 | uint64_t{5} << 48, "second-level");
  refused(32, uint64_t{9} << 56 | uint64_t{14} << 48, "second-level");
  refused(32, ~uint64_t{0} << 32, "clusters");
  refused(24, uint64_t{1} << 63, "too large");
  refused(24, uint64_t{1} << 30, "past the end");
  refused(40, 0, "not where tables can be");
  refused(40, uint64_t{1} << 62, "not where tables can be");
  refused(512, 1025, "entry (0)");
  refused(512, 64 * 1024 - 256, "entry (0)");
}

TEST_F(Qcow1, EntriesThatCannotBeFailWhatReadsThem) {
  const uint64_t bad[] = {2049,
                          64 * 1024,
                          uint64_t{1} << 62,
                          uint64_t{1} << 63,
                          ~uint64_t{0},
                          uint64_t{1} << 63 | uint64_t{100} << 54 | 4096};
  for (const uint64_t entry : bad) {
    Make(entry);
    OrThrow(Open());
    EXPECT_EQ(ReadError(), EIO) << entry;
  }
  Make(2048);
  OrThrow(Open());
  EXPECT_EQ(ReadError(), 0);
}

TEST_F(Qcow1, MapOfOneTableAgainAndAgainEnds) {
  Make(2048);
  // A disk of many tables, all of which are the one.
  constexpr uint64_t kTables = 4096;
  StoreBe64(file_.bytes.data() + 24, kTables * 32768);
  StoreBe64(file_.bytes.data() + 40, 16384);
  for (uint64_t i = 0; i < kTables; ++i) StoreBe64(file_.bytes.data() + 16384 + i * 8, 1024);
  for (uint64_t i = 0; i < 64; ++i) StoreBe64(file_.bytes.data() + 1024 + i * 8, 2048);
  OrThrow(Open());
  // What a disk of so many tables may take, nearly.
  OrThrow(disk_->work().Spend((uint64_t{1} << 27) - 100'000));
  uint64_t offset = 0;
  Result<device::BlockExtent> extent = device::BlockExtent{};
  while (extent.ok() && offset < kTables * 32768) {
    extent = file_.Do(disk_->Map(offset, kTables * 32768 - offset));
    if (extent.ok()) offset += extent->size_bytes;
  }
  ASSERT_FALSE(extent.ok());
  EXPECT_EQ(extent.error().code, E2BIG);
}

}  // namespace
}  // namespace bulkhead::qcow1
