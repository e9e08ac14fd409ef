// SPDX-License-Identifier: Apache-2.0
// image_bench: requests to a disk image through the same code and the same io_uring as a VM's disk process, without a
// guest and without walls; beside `qemu-img bench`, whose options these are.
//
//   image_bench FILE[,FORMAT] [BACKING[,FORMAT]...] -- COUNT DEPTH BYTES STEP read|write
//
// Request n is at byte n * STEP, modulo the disk. All are read into or written from the same memory, which nobody looks
// at, as qemu-img's are: where each has its own, what the processor's caches do not hold counts too. Prints seconds.
#include <fcntl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/image_chain.h"
#include "device-procs/common/block/qcow2/buffer.h"
#include "device-procs/common/block/work_pool.h"
#include "ipc/journal.h"

namespace {

constexpr unsigned kHelpers = 2;  // as a VM's disk has

using namespace bulkhead;
using namespace bulkhead::device;

struct Load {
  uint64_t count = 0;
  unsigned depth = 1;
  uint64_t bytes = 0;
  uint64_t step = 0;
  bool write = false;
};

ImageFile OpenFile(const std::string& word, bool read_only) {
  const size_t comma = word.rfind(',');
  const std::string path = word.substr(0, comma);
  const std::string format = comma == std::string::npos ? "raw" : word.substr(comma + 1);
  OwnFd fd(::open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_DIRECT));
  if (!fd.valid()) ThrowErrno("open " + path);
  ImageFile file;
  file.file = std::move(fd);
  file.format = format == "qcow2" ? ImageFormat::kQcow2 : ImageFormat::kRaw;
  file.read_only = read_only;
  file.direct_io = true;
  file.name = path;
  return file;
}

// Keeps so many requests under way until all are done.
class Runner final {
 public:
  Runner(BlockChannel& channel, uint64_t disk_bytes, const Load& load)
      : channel_(channel), disk_bytes_(disk_bytes / load.bytes * load.bytes), load_(load), buffer_(load.bytes) {
    std::memset(buffer_.data(), 0x5a, buffer_.size());
    vector_ = {buffer_.data(), buffer_.size()};
    for (unsigned i = 0; i < load_.depth; ++i) {
      requests_.push_back(std::make_unique<Request>(*this));
      idle_.push_back(requests_.back().get());
    }
  }

  // Begins as many as may be under way: from here and not from a completion, which may come inside the call that begins
  // the request.
  void Refill() {
    while (begun_ < load_.count && !idle_.empty()) {
      Request& request = *idle_.back();
      idle_.pop_back();
      request.Begin(begun_++ * load_.step % disk_bytes_);
    }
  }
  bool done() const { return ended_ == load_.count; }
  int error() const { return error_; }

 private:
  struct Request final : BlockCompletion {
    explicit Request(Runner& owner) : runner(owner) {}
    void Begin(uint64_t offset) {
      if (runner.load_.write) {
        runner.channel_.Write(offset, {&runner.vector_, 1}, *this);
      } else {
        runner.channel_.Read(offset, {&runner.vector_, 1}, *this);
      }
    }
    void Completed(int error) override {
      if (error != 0) runner.error_ = error;
      ++runner.ended_;
      runner.idle_.push_back(this);
    }
    Runner& runner;
  };

  BlockChannel& channel_;
  const uint64_t disk_bytes_;
  const Load load_;
  const qcow2::Buffer buffer_;
  iovec vector_{};
  uint64_t begun_ = 0;
  uint64_t ended_ = 0;
  int error_ = 0;
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> idle_;
};

template <typename T>
T Await(IoRing& ring, Task<T> task) {
  std::optional<T> value;
  Spawn(std::move(task), [&](T result) { value.emplace(std::move(result)); });
  while (!value) OrThrow(ring.SubmitAndReap(true));
  return std::move(*value);
}

int Main(int argc, char** argv) {
  std::vector<ImageFile> files;
  int at = 1;
  const bool write = argc > 1 && std::string(argv[argc - 1]) == "write";
  for (; at < argc && std::strcmp(argv[at], "--") != 0; ++at) files.push_back(OpenFile(argv[at], !write || at != 1));
  if (argc - at != 6) {
    std::fprintf(stderr, "usage: image_bench FILE[,FORMAT]... -- COUNT DEPTH BYTES STEP read|write\n");
    return 2;
  }
  Load load;
  load.count = std::strtoull(argv[at + 1], nullptr, 10);
  load.depth = static_cast<unsigned>(std::strtoul(argv[at + 2], nullptr, 10));
  load.bytes = std::strtoull(argv[at + 3], nullptr, 10);
  load.step = std::strtoull(argv[at + 4], nullptr, 10);
  load.write = write;
  // Where a disk's tables are kept for the process after it.
  const OwnFd journal = OrThrow(Journal::Make("journal-bench", 0, Journal::Tables::kKept));
  ImageChain chain(std::move(files), {.tables = OrThrow(Journal::Map(journal.get(), 0)).tables(), .log = {}});
  IoRing ring(256);
  WorkPool helpers(ring, kHelpers);
  const auto channel = chain.OpenChannel(ring, helpers);
  ring.Enable();
  OrThrow(Await(ring, channel->Open()));
  Runner runner(*channel, chain.geometry().size_bytes, load);
  const auto start = std::chrono::steady_clock::now();
  runner.Refill();
  while (!runner.done()) {
    OrThrow(ring.SubmitAndReap(true));
    runner.Refill();
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  if (write) OrThrow(Await(ring, channel->Close()));
  if (runner.error() != 0) throw FatalError(ErrnoError(runner.error(), "a request"));
  std::printf("%.6f\n", taken.count());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "image_bench: %s\n", error.what());
    return 1;
  }
}
