// SPDX-License-Identifier: Apache-2.0
// Reads of compressed clusters, which others unpack: side by side with all else, and each for itself.
#include "device-procs/common/block/qcow2/qcow2_fixture.h"

namespace bulkhead::qcow2::test {
namespace {

class Qcow2Compressed : public Qcow2Disk {
 protected:
  void SetUp() override {
    Qcow2Disk::SetUp();
    cluster_ = disk_->state().cluster_bytes();
    // An uncompressed one between each two.
    WriteCompressed(2);
    auto written = Start(true, cluster_, cluster_, std::byte{0x11});
    std::fill_n(model_.begin() + static_cast<ptrdiff_t>(cluster_), cluster_, std::byte{0x11});
    Pump();
    EXPECT_EQ(written->error, 0);
  }
  // Where a compressed cluster's bytes begin in the file.
  uint64_t PlaceOf(uint64_t offset) {
    const Extent extent = OrThrow(file_.Do(disk_->mapping().Find(offset, cluster_)));
    EXPECT_EQ(extent.kind, Extent::Kind::kCompressed);
    return DecodeCompressed(extent.entry, disk_->state().layout()).offset;
  }
  bool HasWhatItShould(const Request& request, uint64_t offset) const {
    return std::equal(request.bytes.begin(), request.bytes.end(), model_.begin() + static_cast<ptrdiff_t>(offset));
  }

  uint64_t cluster_ = 0;
};

TEST_P(Qcow2Compressed, WhatIsBeingUnpackedHoldsUpNothingElse) {
  offload_.holding = true;
  const auto packed = Start(false, 0, cluster_);
  Pump();
  ASSERT_EQ(offload_.held.size(), 1u);
  const auto plain = Start(false, cluster_, cluster_);
  const auto written = Start(true, 3 * cluster_, 512, std::byte{0x22});
  Pump();
  EXPECT_TRUE(plain->ended);
  EXPECT_TRUE(HasWhatItShould(*plain, cluster_));
  EXPECT_TRUE(written->ended);
  Flush();
  EXPECT_FALSE(packed->ended);
  offload_.Release();
  Pump();
  EXPECT_TRUE(packed->ended);
  EXPECT_TRUE(HasWhatItShould(*packed, 0));
}

TEST_P(Qcow2Compressed, ManyAtATimeGetWhatIsTheirs) {
  for (int round = 0; round < 20; ++round) {
    std::vector<std::pair<uint64_t, std::unique_ptr<Request>>> reads;
    for (int i = 0; i < 50; ++i) {
      const uint64_t offset = random_() % (kDiskBytes / 512) * 512;
      const uint64_t size = std::min((1 + random_() % 400) * 512, kDiskBytes - offset);
      reads.emplace_back(offset, Start(false, offset, size));
    }
    Pump();
    for (const auto& [offset, read] : reads) {
      ASSERT_TRUE(read->ended);
      ASSERT_EQ(read->error, 0);
      ASSERT_TRUE(HasWhatItShould(*read, offset));
    }
  }
}

TEST_P(Qcow2Compressed, NoMoreAreGivenAwayThanAreComputed) {
  offload_.holding = true;
  const auto read = Start(false, 0, 16 * cluster_);
  Pump();
  EXPECT_EQ(offload_.held.size(), LateOffload::kWidth);
  while (!offload_.held.empty()) {
    offload_.Release();
    Pump();
    EXPECT_LE(offload_.held.size(), LateOffload::kWidth);
  }
  EXPECT_TRUE(read->ended);
  EXPECT_TRUE(HasWhatItShould(*read, 0));
}

TEST_P(Qcow2Compressed, WhoNeedsTheSameClusterWaitsForIt) {
  offload_.holding = true;
  std::vector<std::unique_ptr<Request>> reads;
  for (uint64_t at = 0; at < cluster_; at += 512) reads.push_back(Start(false, at, 512));
  Pump();
  ASSERT_EQ(offload_.held.size(), 1u);
  offload_.Release();
  for (uint64_t i = 0; i < reads.size(); ++i) {
    EXPECT_TRUE(reads[i]->ended);
    EXPECT_TRUE(HasWhatItShould(*reads[i], i * 512));
  }
}

TEST_P(Qcow2Compressed, AClusterThatCannotBeUnpackedFailsWhoReadsItOnly) {
  const uint64_t at = PlaceOf(2 * cluster_);
  std::fill_n(file_.bytes.begin() + static_cast<ptrdiff_t>(at), 64, std::byte{0xff});
  const auto good = Start(false, 0, cluster_);
  const auto bad = Start(false, 2 * cluster_, cluster_);
  const auto again = Start(false, 2 * cluster_ + 512, 512);
  const auto plain = Start(false, cluster_, cluster_);
  Pump();
  EXPECT_EQ(good->error, 0);
  EXPECT_TRUE(HasWhatItShould(*good, 0));
  EXPECT_EQ(plain->error, 0);
  EXPECT_TRUE(HasWhatItShould(*plain, cluster_));
  EXPECT_EQ(bad->error, EIO);
  EXPECT_EQ(again->error, EIO);
}

constexpr Variant kCompressedVariants[] = {
    {.name = "Plain"},
    {.name = "Version2", .version = 2, .cluster_bits = 12},
    {.name = "Backing", .backing = true},
};

INSTANTIATE_TEST_SUITE_P(Variants, Qcow2Compressed, testing::ValuesIn(kCompressedVariants),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace bulkhead::qcow2::test
