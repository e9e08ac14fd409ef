// SPDX-License-Identifier: Apache-2.0
// Images open in a sandboxed process, for one job of `bulkhead img`: the user's files are opened here with the user's
// rights, and looked into there. Launcher, main thread; throws FatalError. What that process says is hostile.
#pragma once

#include <kj/async-io.h>

#include <optional>
#include <string>
#include <vector>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/host_files.h"
#include "broker/launcher/img_options.h"
#include "ipc/image.capnp.h"

namespace bulkhead::launcher {

struct ChainFile {
  std::string name;
  ImgFormat format = ImgFormat::kDetect;
  bool read_only = true;
  OpenImage image;
};

// An image and what lies below it.
struct Chain {
  std::vector<ChainFile> files;  // topmost first
  bool alone = false;            // only the topmost is looked at
  std::string snapshot = {};     // the topmost is shown as it was in this one
  bool for_check = false;
};

class ImgSession {
 public:
  ImgSession(kj::AsyncIoContext& io, std::vector<Chain> chains);

  control::ImageWorker::Client& worker() { return worker_; }
  // Waits for the answer to a request; with `show` it says on stderr how far the work is. Throws FatalError with the
  // line of the process.
  template <typename Results>
  capnp::Response<Results> Wait(capnp::RemotePromise<Results> answer, bool show = false) {
    std::optional<capnp::Response<Results>> response;
    auto done = answer.then([&](capnp::Response<Results>&& arrived) { response.emplace(kj::mv(arrived)); }).fork();
    WaitFor(done, show);
    return std::move(*response);
  }

 private:
  void WaitFor(kj::ForkedPromise<void>& done, bool show);
  void ShowProgress();

  kj::AsyncIoContext& io_;
  DiskLocks locks_;  // let go of after the broker
  BrokerProcess broker_;
  control::ImageWorker::Client worker_;
};

// One image; `locked`: see OpenImageFile.
Chain OpenAlone(const std::string& path, ImgFormat format, bool read_only, bool locked);
// With what lies below it: what the user gave, or what the headers name if the user lets them. Throws where an image
// names a file that the user said nothing of.
Chain OpenChain(kj::AsyncIoContext& io, const ImgOptions& options, bool read_only);
// What lies below `options.file`, topmost first, with the format that the header above says: a guest may have written
// another one's first bytes into a raw disk.
struct FileBelow {
  std::string path;
  ImgFormat format = ImgFormat::kDetect;
};
std::vector<FileBelow> FilesBelow(kj::AsyncIoContext& io, const ImgOptions& options);
// One of them, opened and locked.
ChainFile OpenBelow(const ImgOptions& options, const FileBelow& file, bool read_only);

// A path in a header, as seen from the image that names it.
std::string BesideImage(const std::string& image, const std::string& named);
// Text of a tenant's, fit for a terminal.
std::string Plain(const std::string& text);

}  // namespace bulkhead::launcher
