// SPDX-License-Identifier: Apache-2.0
#include "broker/image_job.h"

#include "broker/child_uids.h"
#include "ipc/image.capnp.h"

namespace bulkhead::broker {
namespace {

// Descriptors come with messages, which carry few; no chain that makes sense is longer.
constexpr unsigned kMaxFiles = 64;

}  // namespace

class ImageJob::Host final : public control::ImageHost::Server {
 public:
  Host(Revocable<ImageJob> job, kj::Own<kj::PromiseFulfiller<void>> ready)
      : job_(std::move(job)), ready_(kj::mv(ready)) {}

  kj::Promise<void> grants(GrantsContext context) override {
    if (std::exchange(granted_, true)) return Failure("already granted");
    auto results = context.getResults();
    results.setImages(job_->grants_.getRoot<capnp::List<control::ImageChain>>().asReader());
    results.initSandbox().setReportViolations(job_->child_->reports_violations());
    return kj::READY_NOW;
  }
  kj::Promise<void> ready(ReadyContext context) override {
    if (std::exchange(said_ready_, true)) return Failure("already ready");
    return job_->child_->SetReady(context.getParams().getSandbox().getViolations()).then([this, context]() mutable {
      job_->worker_ = context.getParams().getWorker();
      ready_->fulfill();
    });
  }

 private:
  Revocable<ImageJob> job_;
  kj::Own<kj::PromiseFulfiller<void>> ready_;
  bool granted_ = false;
  bool said_ready_ = false;
};

ImageJob::ImageJob(kj::AsyncIoContext& io, const std::string& helpers,
                   capnp::List<control::ImageChain>::Reader images) {
  TakeImages(images, io.waitScope);
  auto ready = kj::newPromiseAndFulfiller<void>();
  child_ = std::make_unique<Child>(io, helpers + "/bulkhead-img", "img", "img",
                                   kj::heap<Host>(self_.Get(), kj::mv(ready.fulfiller)),
                                   Birthplace{.cgroup = {}, .uid = ChildUids({}).Take()});
  auto dead = child_->WhenDead().then([](std::string how) { throw Failure(how); });
  ready.promise.exclusiveJoin(kj::mv(dead)).wait(io.waitScope);
  grants_.initRoot<capnp::List<control::ImageChain>>(0);
}

void ImageJob::TakeImages(capnp::List<control::ImageChain>::Reader images, kj::WaitScope& wait) {
  unsigned files = 0;
  for (auto chain : images) files += chain.getFiles().size();
  if (files == 0) throw FatalError("no image to work on");
  if (files > kMaxFiles) {
    throw FatalError("more than " + std::to_string(kMaxFiles) +
                     " image files at one time, those below others included");
  }
  auto chains = grants_.initRoot<capnp::List<control::ImageChain>>(images.size());
  for (unsigned i = 0; i < images.size(); ++i) {
    chains[i].setIgnoreBacking(images[i].getIgnoreBacking());
    chains[i].setForCheck(images[i].getForCheck());
    chains[i].setSnapshot(images[i].getSnapshot());
    const auto from = images[i].getFiles();
    auto to = chains[i].initFiles(from.size());
    for (unsigned j = 0; j < from.size(); ++j) {
      to[j].setFile(MakeFile(TakeFile(from[j].getFile(), wait)));
      to[j].setName(from[j].getName());
      to[j].setFormat(from[j].getFormat());
      to[j].setReadOnly(from[j].getReadOnly());
      to[j].setDirectIo(from[j].getDirectIo());
      to[j].setBlockDevice(from[j].getBlockDevice());
    }
  }
}

}  // namespace bulkhead::broker
