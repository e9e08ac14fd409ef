// SPDX-License-Identifier: Apache-2.0
// For tests: a qcow2 disk over a file in memory, requests to it, a plain copy of what it should have, and QEMU's own
// programs as the judge.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "device-procs/common/block/qcow2/check.h"
#include "device-procs/common/block/qcow2/compression.h"
#include "device-procs/common/block/qcow2/create.h"
#include "device-procs/common/block/qcow2/memory_file.h"
#include "device-procs/common/block/qcow2/power_cut.h"
#include "device-procs/common/block/qcow2/qcow2_channel.h"

namespace bulkhead::qcow2::test {

using device::test::AfterPowerCut;
using device::test::LateOffload;
using device::test::MemoryFile;
using device::test::WriteLog;

constexpr uint64_t kDiskBytes = 3 << 20;

struct Variant {
  const char* name;
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint32_t refcount_order = 4;
  bool backing = false;
};

inline std::ostream& operator<<(std::ostream& out, const Variant& variant) { return out << variant.name; }

class Qcow2Disk : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    const Variant& variant = GetParam();
    NewImage image;
    image.size_bytes = kDiskBytes;
    image.version = variant.version;
    image.layout = {.cluster_bits = variant.cluster_bits, .refcount_order = variant.refcount_order};
    model_.resize(kDiskBytes);
    if (variant.backing) {
      base_.bytes.resize(kDiskBytes / 2 + 512);
      for (size_t i = 0; i < base_.bytes.size(); ++i) base_.bytes[i] = static_cast<std::byte>(i / 512 * 7 + i % 13);
      std::copy(base_.bytes.begin(), base_.bytes.end(), model_.begin());
      image.backing_file = "base";
      image.backing_format = "raw";
    }
    OrThrow(file_.Do(CreateImage(file_, image)));
    Open();
  }
  void Open() {
    OpenOptions options;
    if (GetParam().backing) options.backing = {&base_, base_.bytes.size()};
    options.log = [](const std::string& line) { ADD_FAILURE() << line; };
    options.store = store_;
    disk_ = std::make_unique<Qcow2Channel>(file_, device::BlockGeometry{.size_bytes = file_.bytes.size()}, offload_,
                                           options);
    OrThrow(file_.Do(disk_->Open()));
  }
  void Pump() {
    while (file_.Step(&random_) || base_.Step(&random_)) {
    }
  }
  std::unique_ptr<Request> Start(bool write, uint64_t offset, uint64_t size, std::byte value = {}) {
    auto request = std::make_unique<Request>();
    request->bytes.assign(size, value);
    request->vector = {request->bytes.data(), size};
    if (write) {
      disk_->Write(offset, {&request->vector, 1}, *request);
    } else {
      disk_->Read(offset, {&request->vector, 1}, *request);
    }
    return request;
  }
  void Flush() {
    Request request;
    disk_->Flush(request);
    Pump();
    ASSERT_TRUE(request.ended);
    ASSERT_EQ(request.error, 0);
  }
  void Compare() {
    for (uint64_t at = 0; at < kDiskBytes; at += kDiskBytes / 4) {
      auto read = Start(false, at, kDiskBytes / 4);
      Pump();
      ASSERT_TRUE(read->ended);
      ASSERT_EQ(read->error, 0);
      for (uint64_t i = 0; i < read->bytes.size(); ++i) {
        ASSERT_EQ(read->bytes[i], model_[at + i]) << "at byte " << at + i;
      }
    }
  }
  // Compresses each `step`th cluster of a disk that has nothing there.
  void WriteCompressed(uint64_t step) {
    const uint64_t cluster = disk_->state().cluster_bytes();
    Packer packer(Compression::kZlib);
    for (uint64_t at = 0; at + cluster <= kDiskBytes; at += step * cluster) {
      std::vector<std::byte> data(cluster);
      for (size_t i = 0; i < cluster; ++i) data[i] = static_cast<std::byte>(i / 100 + at / cluster);
      Buffer packed(cluster);
      std::memset(packed.data(), 0, cluster);
      const size_t size = OrThrow(packer.Pack(data, packed.span().first(cluster - 1)));
      if (size == 0) continue;
      OrThrow(file_.Do(disk_->writer().WriteCompressed(at, packed, size)));
      std::copy(data.begin(), data.end(), model_.begin() + static_cast<ptrdiff_t>(at));
    }
  }
  // Many requests at the same time, none of which touches what another does.
  void RandomBatch() {
    std::vector<std::unique_ptr<Request>> requests;
    std::vector<std::pair<uint64_t, uint64_t>> taken;
    for (int i = 0; i < 24; ++i) {
      const uint64_t offset = random_() % (kDiskBytes / 512) * 512;
      const uint64_t most = random_() % 3 == 0 ? 400 : 16;
      const uint64_t size = std::min((1 + random_() % most) * 512, kDiskBytes - offset);
      const bool free = std::none_of(taken.begin(), taken.end(), [&](const auto& range) {
        return offset < range.second && range.first < offset + size;
      });
      if (!free) continue;
      taken.emplace_back(offset, offset + size);
      const auto value = static_cast<std::byte>(random_());
      switch (random_() % 8) {
        case 0: {
          requests.push_back(std::make_unique<Request>());
          disk_->WriteZeroes(offset, size, random_() % 2 == 0, *requests.back());
          std::fill_n(model_.begin() + static_cast<ptrdiff_t>(offset), size, std::byte{0});
          break;
        }
        case 1: {
          requests.push_back(std::make_unique<Request>());
          disk_->Flush(*requests.back());
          break;
        }
        default:
          requests.push_back(Start(true, offset, size, value));
          std::fill_n(model_.begin() + static_cast<ptrdiff_t>(offset), size, value);
          break;
      }
      for (uint64_t steps = random_() % 4; steps != 0; --steps) file_.Step(&random_);
    }
    Pump();
    for (const auto& request : requests) {
      ASSERT_TRUE(request->ended);
      ASSERT_EQ(request->error, 0);
    }
  }

  void ExpectClean() {
    const auto report = OrThrow(file_.Do(Check(*disk_, Repair::kNone)));
    EXPECT_EQ(report.corruptions, 0u) << report.messages[0];
    EXPECT_EQ(report.leaks, 0u) << report.messages[0];
  }
  // A command of QEMU's, with the image and what it should have in files; the names stand for IMAGE and RAW.
  void Judge(std::string command, const std::vector<std::byte>& raw) {
    const std::string stem = "/tmp/bulkhead-qcow2-" + std::to_string(::getpid());
    const auto save = [&](const std::string& name, const std::vector<std::byte>& bytes) {
      std::ofstream(name, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    };
    save(stem + ".qcow2", file_.bytes);
    save(stem + ".raw", raw);
    save(stem + ".base", base_.bytes);
    const auto replace = [&](const std::string& word, const std::string& with) {
      for (size_t at = command.find(word); at != std::string::npos; at = command.find(word)) {
        command.replace(at, word.size(), with);
      }
    };
    replace("IMAGE", stem + ".qcow2");
    replace("RAW", stem + ".raw");
    replace("BASE", stem + ".base");
    command = "{ " + command + "; } >" + stem + ".log 2>&1";
    const int status = std::system(command.c_str());
    std::string log;
    std::getline(std::ifstream(stem + ".log"), log, '\0');
    EXPECT_EQ(status, 0) << command << "\n" << log;
    for (const char* ending : {".qcow2", ".raw", ".base", ".log"}) ::unlink((stem + ending).c_str());
  }
  // QEMU finds no fault with the tables, and reads what the disk should have.
  void JudgeDisk() {
    const std::string base = GetParam().backing ? "qemu-img rebase -u -f qcow2 -b BASE -F raw IMAGE && " : "";
    Judge(base + "qemu-img check -f qcow2 IMAGE && qemu-img compare -f qcow2 -F raw IMAGE RAW", model_);
  }

  std::mt19937_64 random_{1};
  MemoryFile file_;
  LateOffload offload_{file_};
  MemoryFile base_;
  std::vector<std::byte> model_;
  TableStore* store_ = nullptr;
  std::unique_ptr<Qcow2Channel> disk_;
};

constexpr Variant kVariants[] = {
    {.name = "Plain"},
    {.name = "Version2", .version = 2},
    {.name = "SmallClusters", .cluster_bits = 9},
    {.name = "SmallClustersWideRefcounts", .cluster_bits = 9, .refcount_order = 6},
    {.name = "LargeClusters", .cluster_bits = 21},
    {.name = "OneBitRefcounts", .cluster_bits = 12, .refcount_order = 0},
    {.name = "Backing", .backing = true},
    {.name = "BackingVersion2", .version = 2, .cluster_bits = 12, .backing = true},
    {.name = "BackingSmallClusters", .cluster_bits = 9, .backing = true},
};

}  // namespace bulkhead::qcow2::test
