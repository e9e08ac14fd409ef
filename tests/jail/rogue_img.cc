// SPDX-License-Identifier: Apache-2.0
// A bulkhead-img that an attacker owns: it has the files, the threads, the ring and the sandbox of the real one, and
// when it is asked what its image is, it makes the attempt that the image's name tells: "[unfiltered ]ATTEMPT TARGETS".
// The size in its answer is 1 if that got through, 0 if not.
#include <unistd.h>

#include <sstream>

#include "device-procs/img/policy.h"
#include "device-procs/img/worker_thread.h"
#include "ipc/child.h"
#include "ipc/image.capnp.h"
#include "ipc/rpc.h"
#include "tests/jail/attempts.h"
#include "tests/jail/no_policy.h"

namespace bulkhead::jail {
namespace {

constexpr size_t kImgHeapBytes = size_t{160} << 20;
constexpr rlim_t kMaxDescriptors = 128;

struct Orders {
  explicit Orders(const std::string& text) {
    std::istringstream words(text);
    words >> attempt;
    filtered = attempt != "unfiltered";
    if (!filtered) words >> attempt;
    words >> targets.victim >> targets.file >> targets.socket;
  }
  bool filtered;
  std::string attempt;
  Targets targets;
};

class RogueWorker final : public control::ImageWorker::Server {
 public:
  explicit RogueWorker(Orders orders) : orders_(std::move(orders)) {}
  kj::Promise<void> info(InfoContext context) override {
    const Attempt* attempt = FindAttempt(orders_.attempt);
    const bool got_through = attempt != nullptr && attempt->make(orders_.targets);
    context.getResults().initInfo().setVirtualBytes(got_through ? 1 : 0);
    return kj::READY_NOW;
  }

 private:
  const Orders orders_;
};

void Serve(kj::AsyncIoContext& io, ChildSandbox& sandbox) {
  RpcConnection broker(*io.lowLevelProvider, OwnFd(kControlFd));
  auto host = broker.Bootstrap<control::ImageHost>();
  auto response = host.grantsRequest().send().wait(io.waitScope);
  const auto grant = response.getImages()[0].getFiles()[0];
  const Orders orders(grant.getName().cStr());
  std::vector<device::ImageFile> files;
  files.push_back({.file = TakeFile(grant.getFile(), io.waitScope), .read_only = true, .name = "image"});
  std::vector<std::unique_ptr<device::ImageChain>> images;
  images.push_back(std::make_unique<device::ImageChain>(
      std::move(files), device::ImageChainOptions{.past_end = device::PastEnd::kZeroes, .log = {}}));
  Mailbox mailbox(io.unixEventPort);
  new img::WorkerThread(images, mailbox);
  sandbox.Close(response.getSandbox(), {{RLIMIT_NOFILE, kMaxDescriptors}, {RLIMIT_MEMLOCK, 0}},
                orders.filtered ? img::ImgPolicy() : NoPolicy(), kImgHeapBytes);
  auto ready = host.readyRequest();
  ready.setWorker(kj::heap<RogueWorker>(orders));
  sandbox.Report(ready.initSandbox());
  ready.send().wait(io.waitScope);
  sandbox.Reported();
  broker.OnDisconnect().exclusiveJoin(mailbox.Serve()).wait(io.waitScope);
  ::_exit(0);
}

}  // namespace
}  // namespace bulkhead::jail

int main(int argc, char** argv) {
  return bulkhead::RunChild(argc, argv, bulkhead::img::ImgPolicy(), bulkhead::jail::Serve);
}
