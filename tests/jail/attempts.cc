// SPDX-License-Identifier: Apache-2.0
#include "tests/jail/attempts.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/kvm.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#define VIRTIO_RING_NO_LEGACY  // that part of the kernel's header is C only
#include <linux/vhost.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>

namespace bulkhead::jail {
namespace {

constexpr int kManyDescriptors = 256;
constexpr const char* kVhostNet = "/dev/vhost-net";

// No wrapper of the C library stands between an attempt and the kernel, and none allocates.
template <typename... Args>
long Call(long number, Args... args) {
  return ::syscall(number, args...);
}

bool Opens(const char* path, int flags) { return Call(SYS_openat, AT_FDCWD, path, flags, 0600) >= 0; }

bool Readable(long fd) {
  char byte;
  return fd >= 0 && Call(SYS_pread64, static_cast<int>(fd), &byte, size_t{1}, off_t{0}) == 1;
}

bool OpenFile(const Targets& targets) { return Readable(Call(SYS_openat, AT_FDCWD, targets.file.c_str(), O_RDONLY)); }
bool WriteFile(const Targets& targets) { return Opens(targets.file.c_str(), O_WRONLY | O_APPEND); }
bool CreateFile(const Targets& targets) {
  const std::string path = targets.file + ".new";
  return Call(SYS_openat, AT_FDCWD, path.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600) >= 0 &&
         ::unlink(path.c_str()) == 0;
}
bool RemoveFile(const Targets& targets) {
  const std::string path = targets.file + ".other";
  return Call(SYS_unlinkat, AT_FDCWD, path.c_str(), 0) == 0;
}
bool OpenProc(const Targets&) { return Readable(Call(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY)); }
bool OpenVictimsMemory(const Targets& targets) {
  const std::string path = "/proc/" + std::to_string(targets.victim) + "/environ";
  return Call(SYS_openat, AT_FDCWD, path.c_str(), O_RDONLY) >= 0;
}
bool OpenByInheritedDirectory(const Targets&) {
  for (int fd = 0; fd < kManyDescriptors; ++fd) {
    if (Call(SYS_openat, fd, "etc/passwd", O_RDONLY) >= 0 || Call(SYS_openat, fd, "../etc/passwd", O_RDONLY) >= 0)
      return true;
  }
  // Where nothing was inherited, this is what it would have been.
  const long root = Call(SYS_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY);
  return root >= 0 && Readable(Call(SYS_openat, static_cast<int>(root), "etc/passwd", O_RDONLY));
}
bool ListRoot(const Targets&) {
  std::array<char, 4096> entries;
  const long root = Call(SYS_openat, AT_FDCWD, "/", O_RDONLY | O_DIRECTORY);
  // "." and ".." are 24 bytes each.
  return root >= 0 && Call(SYS_getdents64, static_cast<int>(root), entries.data(), entries.size()) > 48;
}
bool OpenKvm(const Targets&) { return Opens("/dev/kvm", O_RDWR); }
bool OpenHostMemory(const Targets&) { return Opens("/dev/kmsg", O_RDONLY); }

// By the descriptor itself, then by the detour that gives a reader a writable one of the same file. Regular files only:
// what is shared memory here, with its size sealed, is meant to be written.
bool Overwrites(int fd) {
  char byte;
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return false;
  if (const long seals = Call(SYS_fcntl, fd, F_GET_SEALS); seals >= 0 && (seals & F_SEAL_SHRINK) != 0) return false;
  if (Call(SYS_pread64, fd, &byte, size_t{1}, off_t{0}) != 1) return false;
  if (Call(SYS_pwrite64, fd, &byte, size_t{1}, off_t{0}) == 1) return true;
  if (Call(SYS_mmap, nullptr, size_t{4096}, PROT_READ | PROT_WRITE, MAP_SHARED, fd, off_t{0}) !=
      reinterpret_cast<long>(MAP_FAILED)) {
    return true;
  }
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const long again = Call(SYS_openat, AT_FDCWD, path.c_str(), O_RDWR);
  return again >= 0 && Call(SYS_pwrite64, static_cast<int>(again), &byte, size_t{1}, off_t{0}) == 1;
}
bool WriteReadOnlyGrant(const Targets& targets) {
  for (int fd = 3; fd < kManyDescriptors; ++fd) {
    if (Overwrites(fd)) return true;
  }
  const long own = Call(SYS_openat, AT_FDCWD, targets.file.c_str(), O_RDONLY);
  return own >= 0 && Overwrites(static_cast<int>(own));
}

bool Socket(int family, int type, int protocol = 0) { return Call(SYS_socket, family, type, protocol) >= 0; }
// In an empty network namespace sockets can be made; what counts is whether one leads anywhere.
bool InternetSocket(int family) {
  const long fd = Call(SYS_socket, family, SOCK_DGRAM, 0);
  if (fd < 0) return false;
  sockaddr_in loopback{};
  loopback.sin_family = AF_INET;
  loopback.sin_port = htons(9);
  loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_in6 loopback6{};
  loopback6.sin6_family = AF_INET6;
  loopback6.sin6_port = htons(9);
  loopback6.sin6_addr = IN6ADDR_LOOPBACK_INIT;
  return family == AF_INET ? Call(SYS_connect, static_cast<int>(fd), &loopback, sizeof loopback) == 0
                           : Call(SYS_connect, static_cast<int>(fd), &loopback6, sizeof loopback6) == 0;
}
bool SocketInet(const Targets&) { return InternetSocket(AF_INET); }
bool SocketInet6(const Targets&) {
  // A host without IPv6 cannot show it; its IPv4 stands for it.
  return InternetSocket(AF_INET6) || InternetSocket(AF_INET);
}
bool SocketNetlink(const Targets&) { return Socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE); }
bool SocketPacket(const Targets&) { return Socket(AF_PACKET, SOCK_RAW); }
bool SocketUnix(const Targets& targets) {
  const long fd = Call(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, targets.socket.c_str(), sizeof address.sun_path - 1);
  return fd >= 0 && Call(SYS_connect, static_cast<int>(fd), &address, sizeof address) == 0;
}
bool SocketPair(const Targets&) {
  int ends[2];
  return Call(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, ends) == 0;
}

bool SendDescriptorOver(int socket) {
  char byte = 0;
  iovec bytes{&byte, 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = 2;
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return Call(SYS_sendmsg, socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
}
// To whoever is at the other end of any socket that is there, or of one of its own.
bool SendDescriptor(const Targets&) {
  for (int fd = 3; fd < kManyDescriptors; ++fd) {
    if (SendDescriptorOver(fd)) return true;
  }
  int ends[2];
  return Call(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, ends) == 0 && SendDescriptorOver(ends[0]);
}

bool Ptrace(const Targets& targets) { return Call(SYS_ptrace, PTRACE_SEIZE, targets.victim, nullptr, nullptr) == 0; }
bool TakeVictimsDescriptor(const Targets& targets) {
  const long pidfd = Call(SYS_pidfd_open, targets.victim, 0);
  return pidfd >= 0 && Call(SYS_pidfd_getfd, static_cast<int>(pidfd), 1, 0) >= 0;
}
bool ReadVictimsMemory(const Targets& targets) {
  // Its code lies where this process's does: it was forked from it.
  static const char kHere[] = "here";
  char there[sizeof kHere];
  iovec local{there, sizeof there}, remote{const_cast<char*>(kHere), sizeof kHere};
  return Call(SYS_process_vm_readv, targets.victim, &local, 1UL, &remote, 1UL, 0UL) == static_cast<long>(sizeof there);
}
bool WriteVictimsMemory(const Targets& targets) {
  static char here[] = "here";
  iovec local{here, sizeof here}, remote{here, sizeof here};
  return Call(SYS_process_vm_writev, targets.victim, &local, 1UL, &remote, 1UL, 0UL) == static_cast<long>(sizeof here);
}
bool SignalVictim(const Targets& targets) { return Call(SYS_kill, targets.victim, SIGCONT) == 0; }
bool SignalVictimsThread(const Targets& targets) {
  return Call(SYS_tgkill, targets.victim, targets.victim, SIGCONT) == 0;
}
bool SignalParent(const Targets&) {
  const long parent = Call(SYS_getppid);
  return parent > 0 && Call(SYS_kill, static_cast<pid_t>(parent), 0) == 0;
}
bool LimitVictim(const Targets& targets) {
  rlimit64 limit{};
  return Call(SYS_prlimit64, targets.victim, RLIMIT_NOFILE, nullptr, &limit) == 0;
}
bool SlowVictim(const Targets& targets) { return Call(SYS_setpriority, PRIO_PROCESS, targets.victim, 19) == 0; }

bool NewUserNamespace(const Targets&) { return Call(SYS_unshare, CLONE_NEWUSER) == 0; }
bool NewMountNamespace(const Targets&) { return Call(SYS_unshare, CLONE_NEWNS) == 0; }
bool Mount(const Targets&) { return Call(SYS_mount, "tmpfs", "/", "tmpfs", 0UL, nullptr) == 0; }
bool Chroot(const Targets&) { return Call(SYS_chroot, "/") == 0; }
bool SetHostName(const Targets&) { return Call(SYS_sethostname, "owned", size_t{5}) == 0; }
bool SetUid(const Targets&) { return Call(SYS_setgroups, size_t{0}, nullptr) == 0; }
bool SwapOff(const Targets&) {
  // A process that may do it is told that there is no such file.
  return Call(SYS_swapoff, "/nonexistent") < 0 && errno == ENOENT;
}
bool ReadKernelLog(const Targets&) {
  constexpr int kSizeOfBuffer = 10;
  return Call(SYS_syslog, kSizeOfBuffer, nullptr, 0) > 0;
}
bool RaisePriority(const Targets&) { return Call(SYS_setpriority, PRIO_PROCESS, 0, -5) == 0; }

bool Fork(const Targets&) {
  const long child = Call(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, 0L);
  if (child == 0) ::_exit(0);
  return child > 0;
}
bool Execute(const Targets&) {
  const long child = Call(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, 0L);
  if (child == 0) {
    const char* const arguments[] = {"true", nullptr};
    Call(SYS_execve, "/bin/true", arguments, nullptr);
    ::_exit(1);
  }
  int status = -1;
  return child > 0 && ::waitpid(static_cast<pid_t>(child), &status, 0) == child && status == 0;
}
bool ExecuteInPlace(const Targets&) {
  // Only whether it may: the file is no program, so that this one goes on.
  const char* const arguments[] = {"x", nullptr};
  return Call(SYS_execve, "/etc/passwd", arguments, nullptr) < 0 && (errno == EACCES || errno == ENOEXEC);
}

bool MapExecutable(const Targets&) {
  return Call(SYS_mmap, nullptr, size_t{4096}, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, off_t{0}) !=
         reinterpret_cast<long>(MAP_FAILED);
}
alignas(4096) std::array<char, 4096> page_for_code;
bool ProtectExecutable(const Targets&) {
  return Call(SYS_mprotect, page_for_code.data(), page_for_code.size(), PROT_READ | PROT_EXEC) == 0;
}
bool MapMoreMemory(const Targets&) {
  return Call(SYS_mmap, nullptr, size_t{1} << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, off_t{0}) !=
         reinterpret_cast<long>(MAP_FAILED);
}
bool GrowHeap(const Targets&) {
  const long end = Call(SYS_brk, 0L);
  return Call(SYS_brk, end + (1L << 20)) == end + (1L << 20);
}
bool MakeMemoryFile(const Targets&) { return Call(SYS_memfd_create, "x", 0U) >= 0; }
constexpr size_t kMegabyte = size_t{1} << 20;
// Every descriptor: a shared memory among them that is larger than the exit channel would be guest memory.
bool MapShared(int fd) {
  return Call(SYS_mmap, nullptr, kMegabyte, PROT_READ | PROT_WRITE, MAP_SHARED, fd, off_t{64 << 10}) !=
         reinterpret_cast<long>(MAP_FAILED);
}
bool MapGuestMemory(const Targets&) {
  for (int fd = 0; fd < kManyDescriptors; ++fd) {
    if (MapShared(fd)) return true;
  }
  const long own = Call(SYS_memfd_create, "own", 0U);
  return own >= 0 && Call(SYS_ftruncate, static_cast<int>(own), off_t{2 * kMegabyte}) == 0 &&
         MapShared(static_cast<int>(own));
}
bool ResizeMemoryFiles(const Targets&) {
  for (int fd = 0; fd < kManyDescriptors; ++fd) {
    if (Call(SYS_ftruncate, fd, off_t{kMegabyte}) == 0) return true;
  }
  const long own = Call(SYS_memfd_create, "own", 0U);
  return own >= 0 && Call(SYS_ftruncate, static_cast<int>(own), off_t{kMegabyte}) == 0;
}

bool IoUring(const Targets&) {
  io_uring_params parameters{};
  return Call(SYS_io_uring_setup, 4U, &parameters) >= 0;
}
bool UserFaultFd(const Targets&) { return Call(SYS_userfaultfd, UFFD_USER_MODE_ONLY) >= 0; }
bool Bpf(const Targets&) {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = 4;
  attributes.value_size = 4;
  attributes.max_entries = 1;
  return Call(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes) >= 0;
}
bool SharedMemory(const Targets&) {
  const long segment = Call(SYS_shmget, IPC_PRIVATE, size_t{4096}, 0600);
  return segment >= 0 && Call(SYS_shmctl, static_cast<int>(segment), IPC_RMID, nullptr) == 0;
}
bool AddKey(const Targets&) {
  return Call(SYS_add_key, "user", "bulkhead-test", "x", size_t{1}, KEY_SPEC_PROCESS_KEYRING) > 0;
}
// Other memory for the kernel's thread than the process had set before it was locked down.
bool ChangeVhostMemory(const Targets&) {
  vhost_memory none{};
  for (int fd = 0; fd < kManyDescriptors; ++fd) {
    if (Call(SYS_ioctl, fd, VHOST_SET_MEM_TABLE, &none) == 0) return true;
  }
  const long own = Call(SYS_openat, AT_FDCWD, kVhostNet, O_RDWR);
  return own >= 0 && Call(SYS_ioctl, static_cast<int>(own), VHOST_SET_OWNER, nullptr) == 0 &&
         Call(SYS_ioctl, static_cast<int>(own), VHOST_SET_MEM_TABLE, &none) == 0;
}
bool CreateVm(const Targets&) {
  for (int fd = 0; fd < kManyDescriptors; ++fd) {
    if (Call(SYS_ioctl, fd, KVM_CREATE_VM, 0UL) >= 0 || Call(SYS_ioctl, fd, KVM_CREATE_VCPU, 63UL) >= 0) return true;
  }
  const long kvm = Call(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR);
  return kvm >= 0 && Call(SYS_ioctl, static_cast<int>(kvm), KVM_CREATE_VM, 0UL) >= 0;
}
bool FakeTerminalInput(const Targets&) {
  // Which descriptors are terminals depends on who runs this: so it counts that it may ask at all.
  for (int fd = 0; fd < 3; ++fd) {
    if (Call(SYS_ioctl, fd, TIOCSTI, "x") == 0 || errno == ENOTTY || errno == EIO || errno == EPERM) return true;
  }
  return false;
}
bool MakeDumpable(const Targets&) { return Call(SYS_prctl, PR_SET_DUMPABLE, 1UL, 0UL, 0UL, 0UL) == 0; }
bool RaiseLimits(const Targets&) {
  rlimit64 limit{1 << 16, 1 << 16};
  return Call(SYS_prlimit64, 0, RLIMIT_MEMLOCK, &limit, nullptr) == 0;
}
bool OtherArchitecture(const Targets&) {
  // getpid of 32-bit programs.
  long result = 20;
  asm volatile("int $0x80" : "+a"(result)::"memory", "cc");
  return result > 0;
}
bool NewThread(const Targets&) {
  alignas(16) static std::array<char, 16384> stack;
  return ::clone([](void*) { return 0; }, stack.data() + stack.size(), CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr) > 0;
}

constexpr const char* kRoot = "empty root";
constexpr const char* kNet = "network namespace";
constexpr const char* kPid = "pid namespace";
constexpr const char* kCaps = "no capabilities";
constexpr const char* kLimits = "resource limits";
constexpr const char* kGrants = "nothing of the kind was granted";
constexpr const char* kReadOnly = "a descriptor that cannot write, and the empty root";
constexpr const char* kNone = nullptr;

constexpr Attempt kAttempts[] = {
    {"open-file", OpenFile, kRoot},
    {"write-file", WriteFile, kRoot},
    {"create-file", CreateFile, kRoot},
    {"remove-file", RemoveFile, kRoot},
    {"write-read-only-grant", WriteReadOnlyGrant, kReadOnly},
    {"open-proc", OpenProc, kRoot},
    {"open-victims-environment", OpenVictimsMemory, kRoot},
    {"open-by-inherited-directory", OpenByInheritedDirectory, kRoot},
    {"list-root", ListRoot, kRoot},
    {"open-kvm", OpenKvm, kRoot, true},
    {"open-kernel-log", OpenHostMemory, kRoot, true},
    {"socket-inet", SocketInet, kNet},
    {"socket-inet6", SocketInet6, kNet},
    {"socket-netlink", SocketNetlink, kNone},
    {"socket-packet", SocketPacket, kCaps, true},
    {"socket-unix", SocketUnix, kRoot},
    {"socketpair", SocketPair, kNone},
    {"send-descriptor", SendDescriptor, kNone},
    {"ptrace", Ptrace, kPid},
    {"take-victims-descriptor", TakeVictimsDescriptor, kPid},
    {"read-victims-memory", ReadVictimsMemory, kPid},
    {"write-victims-memory", WriteVictimsMemory, kPid},
    {"signal-victim", SignalVictim, kPid},
    {"signal-victims-thread", SignalVictimsThread, kPid},
    {"signal-parent", SignalParent, kPid},
    {"limit-victim", LimitVictim, kPid},
    {"slow-victim", SlowVictim, kPid},
    {"new-user-namespace", NewUserNamespace, kNone},
    {"new-mount-namespace", NewMountNamespace, kCaps, true},
    {"mount", Mount, kCaps, true},
    {"chroot", Chroot, kCaps, true},
    {"set-host-name", SetHostName, kCaps, true},
    {"set-groups", SetUid, kCaps, true},
    {"swap-off", SwapOff, kCaps, true},
    {"read-kernel-log", ReadKernelLog, kCaps, true},
    {"raise-priority", RaisePriority, kCaps, true},
    {"fork", Fork, kNone},
    {"new-thread", NewThread, kNone},
    {"execute", Execute, kRoot},
    {"execute-in-place", ExecuteInPlace, kRoot},
    {"map-executable", MapExecutable, kNone},
    {"protect-executable", ProtectExecutable, kNone},
    {"map-more-memory", MapMoreMemory, kNone},
    {"grow-heap", GrowHeap, kNone},
    {"make-memory-file", MakeMemoryFile, kNone},
    {"map-guest-memory", MapGuestMemory, kNone},
    {"resize-memory-files", ResizeMemoryFiles, kNone},
    {"io-uring", IoUring, kNone},
    {"userfaultfd", UserFaultFd, kNone},
    {"bpf", Bpf, kCaps, true},
    {"shared-memory", SharedMemory, kNone},
    {"add-key", AddKey, kNone},
    {"create-vm", CreateVm, kGrants, true},
    {"change-vhost-memory", ChangeVhostMemory, kNone, true, kVhostNet},
    {"fake-terminal-input", FakeTerminalInput, kNone},
    {"make-dumpable", MakeDumpable, kNone},
    {"raise-limits", RaiseLimits, kLimits},
    {"other-architecture", OtherArchitecture, kNone},
};

}  // namespace

std::span<const Attempt> Attempts() { return kAttempts; }

const Attempt* FindAttempt(const std::string& name) {
  for (const Attempt& attempt : kAttempts) {
    if (attempt.name == name) return &attempt;
  }
  return nullptr;
}

}  // namespace bulkhead::jail
