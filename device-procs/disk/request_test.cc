// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/request.h"

#include <gtest/gtest.h>

#include "device-procs/common/virtqueue_driver.h"

namespace bulkhead::device {
namespace {

constexpr uint64_t kMemoryBytes = 1 << 20;
constexpr uint64_t kSectors = 2048;
constexpr Gpa kHeader{0x1000};
constexpr Gpa kData{0x2000};
constexpr Gpa kStatus{0x80000};
constexpr Gpa kNowhere{kMemoryBytes};

class DiskRequestTest : public testing::Test {
 protected:
  void PutHeader(uint32_t type, uint64_t sector) {
    struct {
      uint32_t type, reserved;
      uint64_t sector;
    } header{type, 0, sector};
    OrThrow(memory_.WriteObject(kHeader, header));
  }
  void PutSegment(unsigned index, uint64_t sector, uint32_t count, uint32_t flags = 0) {
    struct {
      uint64_t sector;
      uint32_t count, flags;
    } segment{sector, count, flags};
    OrThrow(memory_.WriteObject(kData + 16 * index, segment));
  }
  // A request with `out` bytes of data for the device and `in` bytes from it.
  RequestStatus Parse(uint32_t type, uint64_t sector, uint32_t out, uint32_t in) {
    PutHeader(type, sector);
    chain_.readable = {{kHeader, 16}};
    if (out != 0) chain_.readable.push_back({kData, out});
    chain_.writable.clear();
    if (in != 0) chain_.writable.push_back({kData, in});
    chain_.writable.push_back({kStatus, 1});
    return ParseChain();
  }
  RequestStatus ParseChain() { return ParseRequest(memory_, chain_, rules_, request_); }
  uint8_t StatusByte() { return OrThrow(memory_.ReadObject<uint8_t>(kStatus)); }

  const GuestMemory memory_ = test::MakeGuestMemory(kMemoryBytes);
  RequestRules rules_{.capacity_bytes = kSectors * kSectorBytes, .discard = true, .write_zeroes = true};
  Chain chain_;
  DiskRequest request_;
};

constexpr uint32_t kRead = 0, kWrite = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kZeroes = 13;

TEST_F(DiskRequestTest, ReadAndWriteNameTheirBytes) {
  EXPECT_EQ(Parse(kRead, 3, 0, 1024), RequestStatus::kOk);
  EXPECT_EQ(request_.offset_bytes, 1536u);
  EXPECT_EQ(request_.data_bytes, 1024u);
  std::vector<iovec> vectors;
  ASSERT_TRUE(TranslateData(memory_, chain_, request_, vectors).ok());
  ASSERT_EQ(vectors.size(), 1u);
  EXPECT_EQ(vectors[0].iov_base, memory_.mappings()[0].host + kData.value);
  EXPECT_EQ(vectors[0].iov_len, 1024u) << "the status byte is not data";
  EXPECT_EQ(Parse(kWrite, kSectors - 1, 512, 0), RequestStatus::kOk);
  EXPECT_EQ(request_.type, RequestType::kWrite);
}

TEST_F(DiskRequestTest, HeaderAndStatusMayShareTheirPiecesWithData) {
  // §2.7.4.1: nothing may be concluded from how a driver cuts its request into descriptors.
  PutHeader(kWrite, 1);
  chain_.readable = {{kHeader, 7}, {kHeader + 7, 400}, {kData, 121}};
  chain_.writable = {{kStatus, 1}};
  EXPECT_EQ(ParseChain(), RequestStatus::kOk);
  EXPECT_EQ(request_.data_bytes, 512u);
  PutHeader(kRead, 1);
  chain_.readable = {{kHeader, 16}};
  chain_.writable = {{kData, 513}};
  EXPECT_EQ(ParseChain(), RequestStatus::kOk);
  EXPECT_EQ(request_.data_bytes, 512u);
}

TEST_F(DiskRequestTest, ShortHeaderGetsIoErr) {
  PutHeader(kFlush, 0);
  chain_.writable = {{kStatus, 1}};
  for (const uint32_t length : {0u, 1u, 15u}) {
    chain_.readable = {{kHeader, length}};
    EXPECT_EQ(ParseChain(), RequestStatus::kIoError) << length;
  }
  chain_.readable = {};
  EXPECT_EQ(ParseChain(), RequestStatus::kIoError);
}

TEST_F(DiskRequestTest, HeaderOutsideMemoryGetsIoErr) {
  chain_.readable = {{kNowhere, 16}};
  chain_.writable = {{kStatus, 1}};
  EXPECT_EQ(ParseChain(), RequestStatus::kIoError);
}

TEST_F(DiskRequestTest, MissingStatusByteGetsIoErrAndNothingWritten) {
  PutHeader(kFlush, 0);
  chain_.readable = {{kHeader, 16}};
  for (const auto& writable : {std::vector<Piece>{}, std::vector<Piece>{{kStatus, 0}}}) {
    chain_.writable = writable;
    EXPECT_EQ(ParseChain(), RequestStatus::kIoError);
    EXPECT_EQ(WriteStatus(memory_, chain_, RequestStatus::kIoError), 0u);
    EXPECT_EQ(StatusByte(), 0);
  }
}

TEST_F(DiskRequestTest, DataThatIsNotWholeSectorsGetsIoErr) {
  for (const uint32_t bytes : {1u, 511u, 513u}) {
    EXPECT_EQ(Parse(kRead, 0, 0, bytes), RequestStatus::kIoError) << bytes;
    EXPECT_EQ(Parse(kWrite, 0, bytes, 0), RequestStatus::kIoError) << bytes;
  }
}

TEST_F(DiskRequestTest, RangeOutsideTheDiskGetsIoErr) {
  EXPECT_EQ(Parse(kRead, kSectors, 0, 512), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kRead, kSectors - 1, 0, 1024), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kWrite, kSectors - 1, 1024, 0), RequestStatus::kIoError);
  // Sums that wrap around, in sectors and in bytes.
  for (const uint64_t sector : {~uint64_t{0}, uint64_t{1} << 55, (uint64_t{1} << 55) - 1, uint64_t{1} << 63}) {
    EXPECT_EQ(Parse(kRead, sector, 0, 512), RequestStatus::kIoError) << sector;
  }
}

TEST_F(DiskRequestTest, LogicalBlocksAreNotSplit) {
  rules_.block_bytes = 4096;
  EXPECT_EQ(Parse(kRead, 8, 0, 4096), RequestStatus::kOk);
  EXPECT_EQ(Parse(kRead, 1, 0, 4096), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kWrite, 8, 512, 0), RequestStatus::kIoError);
}

TEST_F(DiskRequestTest, DataInTheWrongDirectionGetsIoErr) {
  EXPECT_EQ(Parse(kRead, 0, 512, 512), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kWrite, 0, 512, 512), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kFlush, 0, 512, 0), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kFlush, 0, 0, 512), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kGetId, 0, 20, 20), RequestStatus::kIoError);
  PutSegment(0, 0, 1);
  EXPECT_EQ(Parse(kDiscard, 0, 16, 16), RequestStatus::kIoError);
}

TEST_F(DiskRequestTest, DataOutsideMemoryCannotBeTranslated) {
  PutHeader(kRead, 0);
  chain_.readable = {{kHeader, 16}};
  chain_.writable = {{kNowhere + static_cast<uint64_t>(-256), 512}, {kStatus, 1}};
  ASSERT_EQ(ParseChain(), RequestStatus::kOk);
  std::vector<iovec> vectors;
  EXPECT_FALSE(TranslateData(memory_, chain_, request_, vectors).ok());
}

TEST_F(DiskRequestTest, ReadOnlyDiskRefusesWhatChangesIt) {
  rules_.read_only = true;
  PutSegment(0, 0, 1);
  EXPECT_EQ(Parse(kRead, 0, 0, 512), RequestStatus::kOk);
  EXPECT_EQ(Parse(kFlush, 0, 0, 0), RequestStatus::kOk);
  EXPECT_EQ(Parse(kWrite, 0, 512, 0), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kDiscard, 0, 16, 0), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kZeroes, 0, 16, 0), RequestStatus::kIoError);
}

TEST_F(DiskRequestTest, UnknownTypeIsUnsupported) {
  for (const uint32_t type : {2u, 3u, 5u, 9u, 10u, 12u, 14u, 15u, 0x8000'0000u, ~0u}) {
    EXPECT_EQ(Parse(type, 0, 0, 0), RequestStatus::kUnsupported) << type;
  }
}

TEST_F(DiskRequestTest, IdTakesExactlyTwentyBytes) {
  EXPECT_EQ(Parse(kGetId, 0, 0, 20), RequestStatus::kOk);
  EXPECT_EQ(Parse(kGetId, 0, 0, 19), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kGetId, 0, 0, 512), RequestStatus::kIoError);
}

TEST_F(DiskRequestTest, SegmentsAreCopiedAndChecked) {
  PutSegment(0, 8, 16);
  PutSegment(1, kSectors - 1, 1, 1);
  ASSERT_EQ(Parse(kZeroes, 0, 32, 0), RequestStatus::kOk);
  ASSERT_EQ(request_.segments.size(), 2u);
  EXPECT_EQ(request_.segments[0].offset_bytes, 4096u);
  EXPECT_EQ(request_.segments[0].size_bytes, 8192u);
  EXPECT_FALSE(request_.segments[0].unmap);
  EXPECT_TRUE(request_.segments[1].unmap);
}

TEST_F(DiskRequestTest, SegmentsOutsideTheDiskGetIoErr) {
  PutSegment(0, 0, 1);
  PutSegment(1, kSectors, 1);
  EXPECT_EQ(Parse(kDiscard, 0, 32, 0), RequestStatus::kIoError);
  PutSegment(1, ~uint64_t{0}, 2);
  EXPECT_EQ(Parse(kDiscard, 0, 32, 0), RequestStatus::kIoError);
  rules_.capacity_bytes = uint64_t{1} << 50;
  PutSegment(1, 0, kMaxSegmentSectors + 1);
  EXPECT_EQ(Parse(kDiscard, 0, 32, 0), RequestStatus::kIoError);
  PutSegment(1, 0, kMaxSegmentSectors);
  EXPECT_EQ(Parse(kDiscard, 0, 32, 0), RequestStatus::kOk);
}

TEST_F(DiskRequestTest, SegmentCountIsLimited) {
  for (unsigned i = 0; i <= kMaxSegments; ++i) PutSegment(i, i, 1);
  EXPECT_EQ(Parse(kDiscard, 0, 16 * kMaxSegments, 0), RequestStatus::kOk);
  EXPECT_EQ(Parse(kDiscard, 0, 16 * (kMaxSegments + 1), 0), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kDiscard, 0, 17, 0), RequestStatus::kIoError);
  EXPECT_EQ(Parse(kDiscard, 0, 0, 0), RequestStatus::kIoError);
}

TEST_F(DiskRequestTest, ReservedFlagsAreUnsupported) {
  PutSegment(0, 0, 1, 1);
  EXPECT_EQ(Parse(kDiscard, 0, 16, 0), RequestStatus::kUnsupported) << "unmap has no meaning in a discard";
  for (const uint32_t flags : {2u, 3u, 0x8000'0000u}) {
    PutSegment(0, 0, 1, flags);
    EXPECT_EQ(Parse(kDiscard, 0, 16, 0), RequestStatus::kUnsupported) << flags;
    EXPECT_EQ(Parse(kZeroes, 0, 16, 0), RequestStatus::kUnsupported) << flags;
  }
}

TEST_F(DiskRequestTest, FeaturesThatWereNotNegotiatedAreUnsupported) {
  rules_.discard = rules_.write_zeroes = false;
  PutSegment(0, 0, 1);
  EXPECT_EQ(Parse(kDiscard, 0, 16, 0), RequestStatus::kUnsupported);
  EXPECT_EQ(Parse(kZeroes, 0, 16, 0), RequestStatus::kUnsupported);
}

TEST_F(DiskRequestTest, UsedLengthCountsOnlyWhatWasCertainlyWritten) {
  Parse(kRead, 0, 0, 512);
  EXPECT_EQ(WriteStatus(memory_, chain_, RequestStatus::kOk), 513u);
  EXPECT_EQ(StatusByte(), 0);
  EXPECT_EQ(WriteStatus(memory_, chain_, RequestStatus::kIoError), 0u) << "the data before the status is unknown";
  EXPECT_EQ(StatusByte(), 1);
  Parse(kWrite, 0, 512, 0);
  EXPECT_EQ(WriteStatus(memory_, chain_, RequestStatus::kUnsupported), 1u);
  EXPECT_EQ(StatusByte(), 2);
}

TEST_F(DiskRequestTest, StatusIsTheLastByteEvenBehindEmptyPieces) {
  PutHeader(kFlush, 0);
  chain_.readable = {{kHeader, 16}};
  chain_.writable = {{kStatus, 1}, {kNowhere, 0}};
  ASSERT_EQ(ParseChain(), RequestStatus::kOk);
  EXPECT_EQ(WriteStatus(memory_, chain_, RequestStatus::kIoError), 1u);
  EXPECT_EQ(StatusByte(), 1);
}

}  // namespace
}  // namespace bulkhead::device
