// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the first cluster of a qcow2 file. What can be read can be written again, or does not fit, and says the
// same then.
#include "device-procs/common/block/qcow2/header.h"
#include "ipc/fuzz_input.h"

using namespace bulkhead::qcow2;
using bulkhead::fuzz::Require;

namespace {

bool SameExtensions(const Header& a, const Header& b) {
  return std::equal(a.unknown.begin(), a.unknown.end(), b.unknown.begin(), b.unknown.end(),
                    [](const auto& x, const auto& y) { return x.type == y.type && x.data == y.data; });
}

void RequireSame(const Header& a, const Header& b) {
  Require(a.version == b.version && a.layout.cluster_bits == b.layout.cluster_bits &&
          a.layout.refcount_order == b.layout.refcount_order && a.size_bytes == b.size_bytes);
  Require(a.l1_entries == b.l1_entries && a.l1_offset == b.l1_offset);
  Require(a.refcount_table_offset == b.refcount_table_offset && a.refcount_table_clusters == b.refcount_table_clusters);
  Require(a.snapshot_count == b.snapshot_count && a.snapshots_offset == b.snapshots_offset);
  Require(a.incompatible == b.incompatible && a.compatible == b.compatible && a.autoclear == b.autoclear);
  Require(a.compression == b.compression && a.backing_file == b.backing_file && a.backing_format == b.backing_format);
  Require(SameExtensions(a, b));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto header = ParseHeader(std::as_bytes(std::span(data, size)));
  if (!header.ok()) {
    Require(!header.error().message.empty());
    return 0;
  }
  const auto bytes = SerializeHeader(*header);
  if (!bytes.ok()) return 0;
  Require(bytes->size() == header->layout.cluster_bytes() && LooksLikeQcow2(*bytes));
  const auto again = ParseHeader(*bytes);
  Require(again.ok());
  RequireSame(*header, *again);
  // What changes while it is in use.
  auto updated = *bytes;
  UpdateHeader(*header, updated);
  Require(updated == *bytes);
  return 0;
}
