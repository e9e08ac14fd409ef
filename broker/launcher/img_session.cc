// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/img_session.h"

#include <sys/stat.h>

#include <cstdio>
#include <filesystem>
#include <set>

namespace bulkhead::launcher {
namespace {

constexpr size_t kMaxChain = 16;
constexpr auto kProgressEvery = 100 * kj::MILLISECONDS;

control::ImageGrant::Format FormatWord(ImgFormat format) {
  switch (format) {
    case ImgFormat::kRaw:
      return control::ImageGrant::Format::RAW;
    case ImgFormat::kQcow2:
      return control::ImageGrant::Format::QCOW2;
    case ImgFormat::kQcow:
      return control::ImageGrant::Format::QCOW;
    case ImgFormat::kDetect:
      break;
  }
  return control::ImageGrant::Format::DETECT;
}

control::ImageWorker::Client Start(kj::AsyncIoContext& io, BrokerProcess& broker, std::vector<Chain>& chains) {
  auto request = broker.broker().openImagesRequest();
  auto images = request.initImages(static_cast<unsigned>(chains.size()));
  for (unsigned i = 0; i < images.size(); ++i) {
    images[i].setIgnoreBacking(chains[i].alone);
    images[i].setForCheck(chains[i].for_check);
    images[i].setSnapshot(chains[i].snapshot);
    auto files = images[i].initFiles(static_cast<unsigned>(chains[i].files.size()));
    for (unsigned j = 0; j < files.size(); ++j) {
      ChainFile& file = chains[i].files[j];
      files[j].setFile(ShareFile(file.image.file.get()));
      files[j].setName(file.name);
      files[j].setFormat(FormatWord(file.format));
      files[j].setReadOnly(file.read_only);
      files[j].setDirectIo(file.image.direct_io);
      files[j].setBlockDevice(file.image.block_device);
    }
  }
  try {
    return request.send().wait(io.waitScope).getWorker();
  } catch (const kj::Exception& error) {
    if (error.getType() != kj::Exception::Type::DISCONNECTED) throw;
    throw FatalError(broker.DescribeEnd());
  }
}

// What the header of an image says of the file below; an empty file: there is none.
struct Named {
  std::string file;
  std::string format;
};
Named NamedBelow(kj::AsyncIoContext& io, const std::string& path, ImgFormat format) {
  std::vector<Chain> chains;
  chains.push_back(OpenAlone(path, format, true, false));
  ImgSession session(io, std::move(chains));
  const auto response = session.Wait(session.worker().infoRequest().send());
  return {response.getInfo().getBackingFile(), response.getInfo().getBackingFormat()};
}

// The format that a header gives the file below; found out only where the user named that file and the header is
// silent.
ImgFormat FormatBelow(const std::string& image, const Named& named, bool from_header) {
  if (named.format == "raw") return ImgFormat::kRaw;
  if (named.format == "qcow2") return ImgFormat::kQcow2;
  if (named.format == "qcow") return ImgFormat::kQcow;
  if (!from_header) return ImgFormat::kDetect;
  throw FatalError("image '" + image + "': its header does not say which format '" + Plain(named.file) +
                   "' has, or none that is known here; give that file with --backing");
}

// A tenant wrote this name: nothing but regular files is opened for it.
std::string AllowedBelow(const std::string& image, const std::string& named) {
  std::string path = named;
  if (path.starts_with("file:")) path.erase(0, 5);
  path = BesideImage(image, path);
  struct stat status {};
  if (path.starts_with("json:") || ::stat(path.c_str(), &status) != 0) {
    throw FatalError("image '" + image + "': its header names the backing file '" + Plain(named) +
                     "', which is not there; give it with --backing FILE");
  }
  if (!S_ISREG(status.st_mode)) {
    throw FatalError("image '" + image + "': its header names '" + Plain(named) +
                     "', which is not a regular file; give it with --backing if you mean it");
  }
  return path;
}

}  // namespace

ImgSession::ImgSession(kj::AsyncIoContext& io, std::vector<Chain> chains)
    : io_(io), broker_(io, "bulkhead:img broker"), worker_(Start(io, broker_, chains)) {
  for (const Chain& chain : chains) {
    for (const ChainFile& file : chain.files) locks_.Add(file.image.file);
  }
}

void ImgSession::WaitFor(kj::ForkedPromise<void>& done, bool show) {
  try {
    bool ended = false;
    while (!ended) {
      auto end = done.addBranch().then([&ended] { ended = true; });
      if (show) {
        end.exclusiveJoin(io_.provider->getTimer().afterDelay(kProgressEvery)).wait(io_.waitScope);
        ShowProgress();
      } else {
        end.wait(io_.waitScope);
      }
    }
    if (show) std::fputc('\n', stderr);
  } catch (const kj::Exception& error) {
    if (show) std::fputc('\n', stderr);
    if (error.getType() == kj::Exception::Type::DISCONNECTED) {
      throw FatalError("the process that worked on the images ended before its work was done");
    }
    throw FatalError(Plain(ReasonOf(error)));
  }
}

void ImgSession::ShowProgress() {
  const auto progress = worker_.progressRequest().send().wait(io_.waitScope);
  const uint64_t total = progress.getTotal();
  if (total == 0) return;
  const uint64_t done = std::min(progress.getDone(), total);
  std::fprintf(stderr, "\r    (%.2f/100%%)", 100.0 * static_cast<double>(done) / static_cast<double>(total));
}

Chain OpenAlone(const std::string& path, ImgFormat format, bool read_only, bool locked) {
  Chain chain;
  chain.alone = true;
  chain.files.push_back({path, format, read_only, OpenImageFile(path, read_only, locked)});
  return chain;
}

std::vector<FileBelow> FilesBelow(kj::AsyncIoContext& io, const ImgOptions& options) {
  const bool from_header = options.backing_from_header;
  std::vector<FileBelow> files;
  std::set<std::pair<dev_t, ino_t>> seen;
  FileBelow above{options.file, options.format};
  while (from_header || files.size() < options.backing.size()) {
    if (files.size() == kMaxChain) {
      throw FatalError("image '" + options.file + "': it has more than " + std::to_string(kMaxChain) +
                       " backing files below each other");
    }
    struct stat status {};
    if (::stat(above.path.c_str(), &status) == 0 && !seen.insert({status.st_dev, status.st_ino}).second) {
      throw FatalError("image '" + options.file + "': its backing files lead back to '" + above.path + "'");
    }
    const Named named = NamedBelow(io, above.path, above.format);
    if (from_header && named.file.empty()) break;
    const ImgFormat format = FormatBelow(above.path, named, from_header);
    above = {from_header ? AllowedBelow(above.path, named.file) : options.backing[files.size()], format};
    files.push_back(above);
  }
  return files;
}

ChainFile OpenBelow(const ImgOptions& options, const FileBelow& file, bool read_only) {
  ChainFile opened{file.path, file.format, read_only, OpenImageFile(file.path, read_only, true)};
  // It may have become another since the name was looked at.
  if (options.backing_from_header && opened.image.block_device) {
    throw FatalError("image '" + file.path + "': is not a regular file; give it with --backing if you mean it");
  }
  return opened;
}

Chain OpenChain(kj::AsyncIoContext& io, const ImgOptions& options, bool read_only) {
  const std::vector<FileBelow> below = FilesBelow(io, options);
  Chain chain = OpenAlone(options.file, options.format, read_only, true);
  chain.alone = false;
  for (const FileBelow& file : below) chain.files.push_back(OpenBelow(options, file, true));
  return chain;
}

std::string BesideImage(const std::string& image, const std::string& named) {
  const std::filesystem::path path(named);
  return path.is_absolute() ? named : (std::filesystem::path(image).parent_path() / path).string();
}

std::string Plain(const std::string& text) {
  std::string plain = text;
  for (char& byte : plain) {
    const auto code = static_cast<unsigned char>(byte);
    if (code < 0x20 || code == 0x7f) byte = '?';
  }
  return plain;
}

}  // namespace bulkhead::launcher
