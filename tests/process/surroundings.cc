// SPDX-License-Identifier: Apache-2.0
#include "tests/process/surroundings.h"

#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ipc/fd.h"

namespace bulkhead::test {
namespace {

constexpr uid_t kNobody = 65534;
constexpr const char* kKvm = "/dev/kvm";

bool Write(const char* path, const std::string& text) {
  OwnFd file(::open(path, O_WRONLY | O_CLOEXEC));
  return file.valid() && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

bool EnterUserNamespace() {
  const std::string uid = std::to_string(::geteuid()), gid = std::to_string(::getegid());
  return ::unshare(CLONE_NEWUSER) == 0 && Write("/proc/self/setgroups", "deny") &&
         Write("/proc/self/uid_map", uid + " " + uid + " 1") && Write("/proc/self/gid_map", gid + " " + gid + " 1");
}

bool Bind(const std::string& from, const char* to) {
  return ::mount(from.c_str(), to, nullptr, MS_BIND | MS_REC, nullptr) == 0;
}

}  // namespace

bool EnterMountNamespace() {
  if (::geteuid() != 0 && !EnterUserNamespace()) return false;
  return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

bool HideKvm() {
  OwnFd null(::open("/dev/null", O_PATH | O_CLOEXEC));
  if (::mount("tmpfs", "/dev", "tmpfs", 0, "mode=755") != 0) return false;
  if (!OwnFd(::open("/dev/null", O_CREAT | O_WRONLY | O_CLOEXEC, 0666)).valid()) return false;
  return Bind("/proc/self/fd/" + std::to_string(null.get()), "/dev/null");
}

bool ReplaceKvm(const std::string& by) { return Bind(by, kKvm); }

bool ReplaceKvmByDevice(const std::string& directory, unsigned major, unsigned minor) {
  const std::string node = directory + "/kvm";
  ::umask(0);
  return ::mount("tmpfs", directory.c_str(), "tmpfs", 0, "mode=755") == 0 &&
         ::mknod(node.c_str(), S_IFCHR | 0666, makedev(major, minor)) == 0 && Bind(node, kKvm);
}

bool MountSmallDisk(const std::string& at, unsigned size_bytes) {
  const std::string options = "mode=777,size=" + std::to_string(size_bytes);
  return ::mount("tmpfs", at.c_str(), "tmpfs", 0, options.c_str()) == 0;
}

bool MakeSparseFile(const std::string& path, unsigned size_bytes) {
  const OwnFd file(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  return file.valid() && ::ftruncate(file.get(), size_bytes) == 0;
}

bool ForbidUserNamespaces() {
  // The limit belongs to the user namespace in which it is set, so this one is not the host's.
  return EnterUserNamespace() && Write("/proc/sys/user/max_user_namespaces", "0");
}

bool ChangeRoot(const std::string& empty_directory) {
  return Bind("/", empty_directory.c_str()) && ::chroot(empty_directory.c_str()) == 0 && ::chdir("/") == 0;
}

bool BecomeOrdinaryUser(const std::string& directory, Launch& launch) {
  if (::geteuid() != 0) return true;
  // The project may lie where only root may go.
  if (::mount("tmpfs", directory.c_str(), "tmpfs", 0, "mode=755") != 0) return false;
  const std::string build = directory + "/build", runtime = directory + "/runtime";
  if (::mkdir(build.c_str(), 0755) != 0 || !Bind(launch.build_dir, build.c_str())) return false;
  if (::mkdir(runtime.c_str(), 0700) != 0 || ::chown(runtime.c_str(), kNobody, kNobody) != 0) return false;
  launch = {build, runtime};
  return ::setgroups(0, nullptr) == 0 && ::setresgid(kNobody, kNobody, kNobody) == 0 &&
         ::setresuid(kNobody, kNobody, kNobody) == 0;
}

}  // namespace bulkhead::test
