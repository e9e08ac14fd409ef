// SPDX-License-Identifier: Apache-2.0
// What the launcher may ask of a bulkhead-img process. Main thread; each job runs on the worker thread.
#pragma once

#include "device-procs/img/worker_thread.h"
#include "ipc/image.capnp.h"

namespace bulkhead::img {

class ImageServer final : public control::ImageWorker::Server {
 public:
  explicit ImageServer(WorkerThread& worker) : worker_(worker) {}

  kj::Promise<void> info(InfoContext context) override;
  kj::Promise<void> map(MapContext context) override;
  kj::Promise<void> check(CheckContext context) override;
  kj::Promise<void> create(CreateContext context) override;
  kj::Promise<void> resize(ResizeContext context) override;
  kj::Promise<void> snapshot(SnapshotContext context) override;
  kj::Promise<void> convert(ConvertContext context) override;
  kj::Promise<void> compare(CompareContext context) override;
  kj::Promise<void> commit(CommitContext context) override;
  kj::Promise<void> setBacking(SetBackingContext context) override;
  kj::Promise<void> rebase(RebaseContext context) override;
  kj::Promise<void> progress(ProgressContext context) override;

 private:
  // Runs a job on the first `images` of the images; fails with its line, or where they are not there or work is done.
  kj::Promise<void> Run(size_t images, WorkerThread::Job job);
  OpenImage& image(size_t index) { return worker_.images()[index]; }

  WorkerThread& worker_;
  bool busy_ = false;
  kj::Own<kj::PromiseFulfiller<void>> end_;  // of the job that is running
};

}  // namespace bulkhead::img
