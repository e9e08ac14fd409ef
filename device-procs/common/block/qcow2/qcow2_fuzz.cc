// SPDX-License-Identifier: Apache-2.0
// libFuzzer: a qcow2 file whose author may have written anything anywhere, in use, under repair, as the subject of
// jobs, and with the tables that a process left which somebody owned; the file's own requests end late, in any order,
// some with errors. Every request ends once, a file that was refused is not touched, and nothing is asked for where no
// file can be.
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "device-procs/common/block/qcow2/check.h"
#include "device-procs/common/block/qcow2/compression.h"
#include "device-procs/common/block/qcow2/create.h"
#include "device-procs/common/block/qcow2/memory_file.h"
#include "device-procs/common/block/qcow2/qcow2_channel.h"
#include "device-procs/common/block/qcow2/snapshots.h"
#include "device-procs/common/block/qcow2/table_walk.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using namespace bulkhead::qcow2;
using bulkhead::device::test::LateOffload;
using bulkhead::device::test::MemoryFile;
using bulkhead::fuzz::FuzzInput;
using bulkhead::fuzz::Require;

constexpr size_t kMostFileBytes = 1 << 20;
constexpr size_t kMostRequestBytes = 128 * 1024;
constexpr size_t kMostSteps = 200'000;  // of the file, for one thing that was asked of the image
constexpr uint64_t kMostNewDiskBytes = uint64_t{16} << 20;

// Looks at what is asked of the file, and passes it on.
class WatchedFile final : public BlockChannel {
 public:
  void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override {
    CheckRange(offset, Bytes(to));
    memory.Read(offset, to, done);
  }
  void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) override {
    CheckChange(offset, Bytes(from));
    memory.Write(offset, from, done);
  }
  void Flush(BlockCompletion& done) override { memory.Flush(done); }
  void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override {
    CheckChange(offset, size_bytes);
    // The header names the rest.
    Require(offset >= 512);
    memory.Discard(offset, size_bytes, done);
  }
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, BlockCompletion& done) override {
    CheckChange(offset, size_bytes);
    Require(offset >= 512);
    memory.WriteZeroes(offset, size_bytes, unmap, done);
  }

  MemoryFile memory;
  bool read_only = false;

 private:
  static uint64_t Bytes(std::span<const iovec> vectors) {
    uint64_t total = 0;
    for (const iovec& vector : vectors) total += vector.iov_len;
    return total;
  }
  static void CheckRange(uint64_t offset, uint64_t size_bytes) {
    Require(offset % 512 == 0 && size_bytes % 512 == 0);
    Require(offset <= kMaxFileBytes && size_bytes <= kMaxFileBytes - offset);
  }
  void CheckChange(uint64_t offset, uint64_t size_bytes) const {
    Require(!read_only);
    CheckRange(offset, size_bytes);
  }
};

struct Request final : BlockCompletion {
  void Completed(int) override {
    Require(!ended);
    ended = true;
  }
  std::vector<std::byte> bytes;
  std::vector<iovec> vectors;
  bool ended = false;
};

class Disk {
 public:
  explicit Disk(FuzzInput& input) : input_(input) {}

  bool Make() {
    const auto options = input_.Take<uint8_t>();
    NewImage image;
    image.version = (options & 1) != 0 ? 2 : 3;
    constexpr uint32_t kBits[] = {9, 10, 12, 16};
    image.layout.cluster_bits = kBits[options >> 1 & 3];
    if (image.version == 3) image.layout.refcount_order = input_.TakeBelow(7);
    if (image.version == 3 && (options & 8) != 0) image.compression = Compression::kZstd;
    image.size_bytes = input_.TakeBelow(2048) * 512;
    if ((options & 16) != 0) {
      base_.memory.bytes.assign(64 * 1024, std::byte{0x42});
      base_.read_only = true;
      image.backing_file = "base";
      image.backing_format = "raw";
    }
    if (!Do(CreateImage(file_, image))) return false;
    file_.memory.max_bytes = kMostFileBytes;
    if (!Open(Purpose::kUse, false)) return false;
    if ((options & 32) != 0) Fill(image.compression);
    if ((options & 64) != 0 && disk_) Do(CreateSnapshot(*disk_, "one", 1));
    if ((options & 128) != 0 && disk_) Fill(image.compression);
    Do(disk_->Close());
    disk_.reset();
    return true;
  }
  // What somebody else did to the file; what is small and near the front is what says most.
  void Spoil() {
    auto& bytes = file_.memory.bytes;
    for (size_t left = input_.Take<uint8_t>() % 16; left != 0 && !bytes.empty(); --left) {
      const auto how = input_.Take<uint8_t>();
      size_t at = input_.Take<uint16_t>();
      if ((how & 1) != 0) at %= 112;
      if ((how & 2) != 0) at = at / 8 * 8;
      if ((how & 4) != 0) at = (at << 6) % bytes.size() / 512 * 512 + at % 8 * 8;
      at %= bytes.size();
      if ((how & 8) != 0) {
        // An entry that names a cluster, most likely one that there is.
        at = std::min(at, bytes.size() - 8) / 8 * 8;
        StoreBe64(bytes.data() + at, uint64_t{input_.Take<uint16_t>()} << 9 |
                                         static_cast<uint64_t>(input_.Take<uint8_t>() & 0xC0) << 56 | (how >> 7));
        continue;
      }
      const auto from = input_.TakeBytes(std::min<size_t>(1 + (how >> 4), bytes.size() - at));
      std::copy(from.begin(), from.end(), bytes.begin() + static_cast<ptrdiff_t>(at));
    }
  }

  bool Open(Purpose purpose, bool read_only) {
    OpenOptions options;
    options.purpose = purpose;
    if (!base_.memory.bytes.empty()) options.backing = {&base_, base_.memory.bytes.size()};
    options.log = [](const std::string& line) { Require(!line.empty()); };
    if (tables_) options.store = &store_.emplace(tables_.span());
    file_.read_only = read_only;
    purpose_ = purpose;
    disk_ = std::make_unique<Qcow2Channel>(
        file_, BlockGeometry{.size_bytes = file_.memory.bytes.size(), .read_only = read_only}, offload_,
        std::move(options));
    const size_t writes = file_.memory.writes;
    if (Do(disk_->Open())) return true;
    Require(file_.memory.writes == writes);
    disk_.reset();
    return false;
  }
  bool is_open() const { return disk_ != nullptr; }
  // What a process leaves that uses the disk for a while, is changed by it, and dies.
  void LeaveTables() {
    tables_ = Buffer(kJournalTablesBytes);
    std::memset(tables_.data(), 0, tables_.size());
    if (!Open(Purpose::kUse, false)) return;
    for (unsigned left = 1 + input_.Take<uint8_t>() % 4; left != 0; --left) Start(2 + input_.TakeBelow(4));
    Drain();
    const uint64_t slice_bytes = disk_->state().cache->slice_bytes();
    for (unsigned left = input_.Take<uint8_t>() % 8; left != 0; --left) {
      const auto how = input_.Take<uint8_t>();
      const uint64_t offset = input_.Take<uint16_t>() * ((how & 1) != 0 ? slice_bytes : 1);
      if ((how & 2) != 0) {
        store_->Note({.table = static_cast<TableStore::Table>(how >> 7),
                      .index = input_.Take<uint8_t>(),
                      .entry = ((how & 4) != 0 ? kCopied : 0) | offset});
      } else {
        store_->MarkChanged({.number = how / 8u,
                             .offset = offset & ~uint64_t{3},
                             .kind = (how & 4) != 0 ? TableKind::kRefcount : TableKind::kL2});
      }
      const std::span<std::byte> slice = store_->Bytes(how / 8u);
      if ((how & 64) != 0) StoreBe64(slice.data() + input_.TakeBelow(slice_bytes / 8) * 8, kCopied | offset << 9);
    }
    disk_.reset();
  }
  void Step() {
    const auto what = input_.Take<uint8_t>();
    if (what < 0x60) {
      CarryOut(what & 0x1f, what >= 0x50 ? EIO : 0);
    } else if (what < 0xE8) {
      Start(what % 8);
    } else {
      Job(what % 12);
    }
    Forget();
  }
  void End() {
    Drain();
    Do(disk_->Close());
    // Nothing is left to do for a disk that was closed.
    Require(file_.memory.waiting() == 0 && base_.memory.waiting() == 0);
    disk_.reset();
  }

 private:
  // Runs one job to its end; whether it went well.
  template <typename T>
  bool Do(Task<Result<T>> task, Result<T>* value = nullptr) {
    bool ended = false;
    bool good = false;
    Spawn(std::move(task), [&](Result<T> result) {
      Require(!ended);
      Require(result.ok() || !result.error().message.empty());
      ended = true;
      good = result.ok();
      if (good && value != nullptr) *value = std::move(result);
    });
    for (size_t steps = 0; steps < kMostSteps; ++steps) {
      if (ended || (!file_.memory.Step() && !base_.memory.Step())) break;
    }
    Require(ended);
    return good;
  }
  void CarryOut(size_t which, int fault) {
    MemoryFile& memory = which % 8 == 7 && base_.memory.waiting() != 0 ? base_.memory : file_.memory;
    memory.fault = fault;
    memory.CarryOut(which);
    memory.fault = 0;
  }
  void Drain() {
    for (size_t steps = 0; file_.memory.Step() || base_.memory.Step(); ++steps) Require(steps < kMostSteps);
    for (const auto& request : requests_) Require(request->ended);
    requests_.clear();
  }
  void Forget() {
    requests_.remove_if([](const auto& request) { return request->ended; });
  }

  uint64_t disk_bytes() const { return disk_->header().size_bytes; }
  uint64_t SomeOffset() {
    const uint64_t sectors = disk_bytes() / 512;
    const auto near = input_.Take<uint16_t>();
    if (near % 16 == 15) return (sectors - 1 - std::min<uint64_t>(near, sectors - 1)) * 512;
    return near % 2048 % sectors * 512;
  }
  Request& NewRequest(uint64_t& size_bytes, uint64_t offset, bool memory) {
    size_bytes = std::min(size_bytes, disk_bytes() - offset);
    requests_.push_back(std::make_unique<Request>());
    Request& request = *requests_.back();
    if (!memory) return request;
    request.bytes.assign(size_bytes, std::byte{0x33});
    const size_t first = size_bytes > 1024 ? 512 : size_bytes;
    request.vectors.push_back({request.bytes.data(), first});
    if (first != size_bytes) request.vectors.push_back({request.bytes.data() + first, size_bytes - first});
    return request;
  }
  void Start(unsigned what) {
    if (disk_bytes() == 0) return;
    const uint64_t offset = SomeOffset();
    uint64_t size_bytes = (1 + input_.TakeBelow(kMostRequestBytes / 512)) * 512;
    if (what >= 5 && input_.Take<uint8_t>() % 8 == 0) size_bytes <<= 8;
    if (what == 7) {
      Spawn(disk_->Map(offset, std::min(size_bytes, disk_bytes() - offset)),
            [](Result<BlockExtent> extent) { Require(!extent.ok() || extent->size_bytes != 0); });
      return;
    }
    if (what < 2 || file_.read_only) {
      Request& request = NewRequest(size_bytes, offset, true);
      disk_->Read(offset, request.vectors, request);
      return;
    }
    Request& request = NewRequest(size_bytes, offset, what < 4);
    switch (what) {
      case 4:
        disk_->Flush(request);
        break;
      case 5:
        disk_->Discard(offset, size_bytes, request);
        break;
      case 6:
        disk_->WriteZeroes(offset, size_bytes, input_.Take<uint8_t>() % 2 == 0, request);
        break;
      default:
        disk_->Write(offset, request.vectors, request);
        break;
    }
  }
  // What is done with an image as a whole, while nothing else uses it.
  void Job(unsigned what) {
    Drain();
    Do(disk_->Close());
    const bool writes = !file_.read_only && purpose_ == Purpose::kUse;
    switch (what) {
      case 0:
        if (writes) Do(CreateSnapshot(*disk_, std::string(input_.Take<uint8_t>(), 'x'), 5));
        break;
      case 1:
        if (writes) {
          Do(ApplySnapshot(*disk_, std::to_string(1 + input_.TakeBelow(3))));
        } else if (purpose_ == Purpose::kUse) {
          Do(ShowSnapshot(*disk_, std::to_string(1 + input_.TakeBelow(3))));
        }
        break;
      case 2:
        if (writes) Do(DeleteSnapshot(*disk_, std::to_string(1 + input_.TakeBelow(3))));
        break;
      case 3:
        if (writes)
          Do(Resize(*disk_, input_.TakeBelow(kMostNewDiskBytes / 512) * 512, input_.Take<uint8_t>() % 2 == 0));
        break;
      case 4:
        // A new look at the file as it is now.
        disk_.reset();
        if (!Open(purpose_, file_.read_only)) Open(purpose_, true);
        break;
      default:
        CheckAndRepair(file_.read_only ? Repair::kNone : static_cast<Repair>(what % 3));
        break;
    }
  }

  // What is said to be repaired is.
  void CheckAndRepair(Repair repair) {
    Result<CheckReport> report = CheckReport();
    if (!Do(Check(*disk_, repair), &report) || repair != Repair::kAll) return;
    if (report->corruptions != report->corruptions_fixed || report->leaks != report->leaks_fixed) return;
    if (Do(Check(*disk_, Repair::kNone), &report)) Require(report->corruptions + report->leaks == 0);
  }

  void Fill(Compression compression) {
    const uint64_t cluster = disk_->state().cluster_bytes();
    Packer packer(compression);
    const std::vector<std::byte> data(cluster, std::byte{0x11});
    for (uint64_t at = 0, i = 0; at + cluster <= disk_bytes() && i < 6; at += 2 * cluster, ++i) {
      Buffer packed(cluster);
      std::memset(packed.data(), 0, cluster);
      const auto size = packer.Pack(data, packed.span().first(cluster - 1));
      if (i % 2 == 0 && size.ok() && *size != 0) {
        Do(disk_->writer().WriteCompressed(at, packed, *size));
      } else {
        Do(disk_->writer().Write(at, {{packed.data(), cluster}}));
      }
    }
  }

  FuzzInput& input_;
  WatchedFile file_;
  WatchedFile base_;
  LateOffload offload_{file_.memory};
  Purpose purpose_ = Purpose::kUse;
  Buffer tables_;  // of a journal, once somebody leaves some
  std::optional<TableStore> store_;
  std::unique_ptr<Qcow2Channel> disk_;
  std::list<std::unique_ptr<Request>> requests_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  Disk disk(input);
  if (!disk.Make()) return 0;
  disk.Spoil();
  const auto how = input.Take<uint8_t>();
  if ((how & 0x20) != 0) disk.LeaveTables();
  if (!disk.Open(how % 4 == 0 ? Purpose::kCheck : Purpose::kUse, how % 16 >= 14)) return 0;
  while (!input.empty() && disk.is_open()) disk.Step();
  if (disk.is_open()) disk.End();
  return 0;
}
