// SPDX-License-Identifier: Apache-2.0
// The command line of `bulkhead img`, as checked values; words as qemu-img's users know them. Launcher, main thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace bulkhead::launcher {

enum class ImgFormat : uint8_t { kDetect, kRaw, kQcow2, kQcow };

struct ImgOptions {
  enum class Job : uint8_t {
    kCreate,
    kInfo,
    kCheck,
    kConvert,
    kResize,
    kSnapshot,
    kMap,
    kCommit,
    kRebase,
    kCompare,
  };
  enum class Snapshot : uint8_t { kList, kCreate, kApply, kDelete };
  enum class Repair : uint8_t { kNone, kLeaks, kAll };
  enum class Preallocation : uint8_t { kOff, kMetadata, kFalloc, kFull };

  Job job = Job::kInfo;
  std::string file;
  std::vector<std::string> behind;  // convert: what follows `file` in the target, in this order
  std::string other;                // target of convert, second of compare
  ImgFormat format = ImgFormat::kDetect;
  ImgFormat other_format = ImgFormat::kDetect;
  std::vector<std::string> backing;  // what lies below `file`, given by the user: topmost first
  bool backing_from_header = false;
  bool json = false;
  bool quiet = false;
  bool progress = false;
  bool force_share = false;

  // create, convert
  std::optional<uint64_t> size_bytes;
  std::string new_backing;  // create -b, rebase -b: what the header is to say
  std::string new_backing_format;
  uint64_t cluster_bytes = 65536;
  uint32_t refcount_bits = 16;
  uint32_t version = 3;
  bool lazy_refcounts = false;
  bool zstd = false;
  Preallocation preallocation = Preallocation::kOff;
  bool compress = false;
  bool no_create = false;
  uint32_t requests = 8;
  uint64_t zero_run_bytes = 4096;

  Repair repair = Repair::kNone;
  // resize: `size_bytes` is what it becomes, or what is added or taken away.
  int resize_sign = 0;
  bool shrink = false;
  Snapshot snapshot = Snapshot::kList;
  std::string snapshot_name;
  bool unsafe = false;  // rebase -u, create -u
  bool strict = false;
};

// Adds `img` and its commands; the function that it gives checks what was gathered, and throws UsageError.
std::function<ImgOptions()> AddImgCommand(CLI::App& app, const std::function<void()>& chosen);

// "raw", "qcow2", "qcow"; an empty word is kDetect. `option` stands before an error.
ImgFormat ParseImgFormat(const std::string& option, const std::string& word);
// "10G", "512": bytes, or with k, K, M, G, T, P, E the binary multiples.
uint64_t ParseImageSize(const std::string& text);
// "cluster_size=64k,lazy_refcounts=on,...".
void ParseCreateWords(const std::string& text, ImgOptions& options);

}  // namespace bulkhead::launcher
