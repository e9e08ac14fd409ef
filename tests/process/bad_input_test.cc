// SPDX-License-Identifier: Apache-2.0
// What newcomers meet first: each mistake gets one line that names what failed, on what and why, and leaves nothing
// behind.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

constexpr int kWrongCommandLine = 2;
constexpr int kFailure = 1;

void ExpectOneLine(const Finished& run, int status, const std::string& word) {
  EXPECT_EQ(run.status, status) << run.errors << run.output;
  EXPECT_EQ(std::count(run.errors.begin(), run.errors.end(), '\n'), 1) << run.errors;
  EXPECT_NE(run.errors.find(word), std::string::npos) << "no '" << word << "' in: " << run.errors;
  EXPECT_TRUE(run.output.empty()) << run.output;
}

// Runs with these arguments after a name of its own, and expects that nothing is left of it.
void ExpectError(std::vector<std::string> arguments, int status, const std::string& word) {
  const std::string name = UniqueName();
  arguments.insert(arguments.begin(), {"run", "--name", name, "--console", "none"});
  ExpectOneLine(RunBulkhead(arguments), status, word);
  EXPECT_TRUE(ProcessesOf(name).empty());
  for (const std::string& file : RuntimeFiles()) EXPECT_EQ(file.find(name + "."), std::string::npos) << file;
}

void ExpectKernelError(const std::string& kernel, const std::string& word) {
  ExpectError({"--kernel", kernel}, kFailure, word);
}

// A bzImage header with the fields the loader looks at first.
std::string BzImageHeader(size_t size_bytes) {
  std::string image(size_bytes, '\0');
  const auto put = [&](size_t at, const std::string& bytes) { image.replace(at, bytes.size(), bytes); };
  if (size_bytes > 0x268) {
    put(0x1F1, "\x1B");
    put(0x1F4, std::string("\x00\x00\x01\x00", 4));
    put(0x201, "\x66");
    put(0x202, "HdrS");
    put(0x206, std::string("\x0F\x02", 2));
    put(0x211, "\x01");
  }
  return image;
}

TEST(BadInput, UnknownOptionsAndCommandsAreWrongCommandLines) {
  ExpectOneLine(RunBulkhead({"run", "--no-such-option"}), kWrongCommandLine, "no-such-option");
  ExpectOneLine(RunBulkhead({"fly"}), kWrongCommandLine, "fly");
  ExpectOneLine(RunBulkhead({"run", "--kernel", "k", "-m", "lots"}), kWrongCommandLine, "lots");
  ExpectOneLine(RunBulkhead({"run", "--kernel", "k", "-c", "65"}), kWrongCommandLine, "65");
  ExpectOneLine(RunBulkhead({"run", "--kernel", "k", "--name", "../x"}), kWrongCommandLine, "../x");
}

TEST(BadInput, NoKernel) { ExpectError({}, kWrongCommandLine, "--kernel"); }

TEST(BadInput, MissingKernel) { ExpectKernelError("/nonexistent/vmlinuz", "/nonexistent/vmlinuz"); }

TEST(BadInput, KernelIsADirectory) { ExpectKernelError("/usr", "directory"); }

TEST(BadInput, EmptyKernel) {
  const TempDir dir;
  ExpectKernelError(dir.MakeFile("vmlinuz", ""), "empty");
}

TEST(BadInput, KernelOfAnotherFormat) {
  const TempDir dir;
  ExpectKernelError(dir.MakeFile("vmlinuz", std::string(100000, 'x')), "neither");
  ExpectKernelError(dir.MakeFile("vmlinuz.gz", "\x1f\x8b" + std::string(1000, 'x')), "gzip");
}

TEST(BadInput, TruncatedBzImage) {
  const TempDir dir;
  ExpectKernelError(dir.MakeFile("short", BzImageHeader(4096)), "truncated");
  ExpectKernelError(dir.MakeFile("longer", BzImageHeader(100000)), "truncated");
}

TEST(BadInput, TruncatedElf) {
  const TempDir dir;
  const std::string elf = ReadFile(Payload("hello"));
  ASSERT_GT(elf.size(), 4096u);
  ExpectKernelError(dir.MakeFile("header", elf.substr(0, 40)), "header");
  ExpectKernelError(dir.MakeFile("middle", elf.substr(0, 4096)), "truncated");
}

TEST(BadInput, ElfForAnotherProcessor) {
  const TempDir dir;
  std::string elf = ReadFile(Payload("hello"));
  elf[18] = '\xB7';  // EM_AARCH64
  ExpectKernelError(dir.MakeFile("arm", elf), "another processor");
}

TEST(BadInput, InitrdLargerThanMemory) {
  const TempDir dir;
  ExpectError({"--kernel", Payload("hello"), "-m", "64", "--initrd", dir.MakeImage("initrd", 80 << 20)}, kFailure,
              "-m");
  ExpectError({"--kernel", Payload("hello"), "--initrd", "/nonexistent/initrd"}, kFailure, "/nonexistent/initrd");
}

TEST(BadInput, CommandLineTooLong) {
  ExpectError({"--kernel", Payload("hello"), "--append", std::string(5000, 'a')}, kFailure, "--append");
}

TEST(BadInput, MemoryTooSmallOrLargerThanTheHost) {
  ExpectError({"--kernel", Payload("hello"), "-m", "1"}, kWrongCommandLine, "16");
  ExpectError({"--kernel", Payload("hello"), "-m", "3000G"}, kFailure, "memory");
}

TEST(BadInput, Images) {
  const TempDir dir;
  const std::string kernel = Payload("hello");
  ExpectError({"--kernel", kernel, "--disk", "/nonexistent/disk.img"}, kFailure, "/nonexistent/disk.img");
  ExpectError({"--kernel", kernel, "--disk", dir.path()}, kFailure, "directory");
  ExpectError({"--kernel", kernel, "--disk", dir.MakeImage("empty.img", 0)}, kFailure, "empty");
  ExpectError({"--kernel", kernel, "--disk", dir.MakeImage("ragged.img", 1000)}, kFailure, "512");
  const std::string image = dir.MakeImage("twice.img", 1 << 20);
  ExpectError({"--kernel", kernel, "--disk", image, "--disk", image}, kFailure, "twice.img");
  ExpectError({"--kernel", kernel, "--disk", image + ",format=vmdk"}, kWrongCommandLine, "qcow2");
  ExpectError({"--kernel", kernel, "--disk", image + ",colour=red"}, kWrongCommandLine, "colour");
}

// What only the disk's process finds out, once it is locked down.
TEST(BadInput, AnImageThatItsProcessRefusesIsOneLineThatNamesIt) {
  const TempDir dir;
  const std::string image = dir.MakeImage("top.img", 1 << 20);
  const std::string base = dir.MakeImage("base.img", 1 << 20);
  for (int attempt = 0; attempt < 3; ++attempt) {
    ExpectError({"--kernel", Payload("hello"), "--disk", image + ",backing=" + base}, kFailure,
                "disk '" + image + "': a raw image has no backing file");
  }
  const Finished run = RunBulkhead({"run", "--kernel", Payload("hello"), "--disk", image});
  EXPECT_EQ(run.status, 0) << run.errors;
}

TEST(BadInput, NoSuchVm) {
  for (const char* command : {"stop", "kill", "inspect"}) {
    ExpectOneLine(RunBulkhead({command, "nobody-has-this-name"}), kFailure, "nobody-has-this-name");
  }
}

TEST(BadInput, HelpAndVersionAreNoErrors) {
  EXPECT_EQ(RunBulkhead({"--help"}).status, 0);
  EXPECT_EQ(RunBulkhead({"run", "--help"}).status, 0);
  EXPECT_EQ(RunBulkhead({"--version"}).status, 0);
}

TEST(Check, SaysWhatThisHostCanDo) {
  const Finished check = RunBulkhead({"check"});
  EXPECT_EQ(check.status, 0) << check.errors;
  for (const char* word : {"CPL 0", "CPL 3", "irqfd", "dirty", "SIPI"}) {
    EXPECT_NE(check.output.find(word), std::string::npos) << word << " in " << check.output;
  }
}

}  // namespace
}  // namespace bulkhead::test
