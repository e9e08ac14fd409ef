// SPDX-License-Identifier: Apache-2.0
// `bulkhead img`, judged by QEMU's own programs: what it writes they read and find no fault with, and the other way
// round; and what it says of files that are none, or that a tenant made.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

constexpr int kWrongCommandLine = 2;
constexpr int kFailure = 1;

class Img : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return directory_.Path(name); }
  Finished Run(std::vector<std::string> words) const {
    words.insert(words.begin(), "img");
    return RunBulkhead(words);
  }
  void Do(const std::vector<std::string>& words) const {
    const Finished run = Run(words);
    EXPECT_EQ(run.status, 0) << run.errors << run.output;
  }
  void ExpectLine(const std::vector<std::string>& words, int status, const std::string& word) const {
    const Finished run = Run(words);
    EXPECT_EQ(run.status, status) << run.errors << run.output;
    EXPECT_EQ(std::count(run.errors.begin(), run.errors.end(), '\n'), 1) << run.errors;
    EXPECT_NE(run.errors.find(word), std::string::npos) << "no '" << word << "' in: " << run.errors;
  }
  // A command of the shell in the test's folder.
  int Shell(const std::string& command) const {
    return std::system(("cd " + directory_.path() + " && { " + command + "; } >shell.log 2>&1").c_str());
  }
  void Judge(const std::string& command) const {
    EXPECT_EQ(Shell(command), 0) << command << "\n" << ReadFile(Path("shell.log"));
  }
  // Data of all sorts: random, repeating, none.
  void MakeSource() const {
    Judge(
        "truncate -s 24M raw && dd if=/dev/urandom of=raw bs=64k count=40 conv=notrunc && "
        "dd if=/dev/urandom of=raw bs=4k count=3 seek=2001 conv=notrunc && "
        "yes bulkhead | dd of=raw bs=64k count=30 seek=200 iflag=fullblock conv=notrunc");
  }

  TempDir directory_;
};

TEST_F(Img, WhatItMakesIsWhatWasAskedFor) {
  for (const std::string words : {"cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64",
                                  "compat=0.10", "lazy_refcounts=on", "compression_type=zstd", "preallocation=metadata",
                                  "preallocation=falloc,cluster_size=4k", "preallocation=full"}) {
    Do({"create", "-q", "-f", "qcow2", "-o", words, Path("image"), "20M"});
    Judge("qemu-img check -q image && qemu-img info image >theirs");
    EXPECT_EQ(Run({"info", Path("image")}).output.substr(std::string("image: " + Path("image")).size()),
              ReadFile(Path("theirs")).substr(std::string("image: image").size()))
        << words;
  }
  Do({"create", "-q", Path("raw"), "5M"});
  Judge("[ $(stat -c %s raw) = 5242880 ]");
}

TEST_F(Img, ConvertsAnyToAnyAsQemuDoes) {
  MakeSource();
  const std::vector<std::vector<std::string>> ways{{"-O", "qcow2"},
                                                   {"-O", "qcow2", "-o", "cluster_size=512"},
                                                   {"-O", "qcow2", "-o", "compat=0.10", "-m", "1"},
                                                   {"-O", "qcow2", "-c"},
                                                   {"-O", "qcow2", "-c", "-o", "compression_type=zstd"},
                                                   {"-O", "qcow2", "-S", "0"},
                                                   {"-O", "raw", "-m", "16"}};
  for (const auto& way : ways) {
    std::vector<std::string> words{"convert", "-q"};
    words.insert(words.end(), way.begin(), way.end());
    words.insert(words.end(), {Path("raw"), Path("image")});
    Do(words);
    const std::string format = way[1];
    Judge((format == "qcow2" ? "qemu-img check -q image && " : "") + ("qemu-img compare -F " + format) + " raw image");
    Do({"convert", "-q", "-O", "raw", Path("image"), Path("back")});
    Judge("cmp raw back && rm -f image back");
  }
  for (const char* made : {"-O qcow2", "-O qcow2 -c", "-O qcow2 -c -o compression_type=zstd", "-O qcow",
                           "-O qcow2 -o cluster_size=1k,refcount_bits=8"}) {
    Judge("rm -f image && qemu-img convert " + std::string(made) + " raw image");
    const Finished compared = Run({"compare", Path("raw"), Path("image")});
    EXPECT_EQ(compared.output, "Images are identical.\n") << made << compared.errors;
  }
}

TEST_F(Img, CompressedClustersLieInOrderWhicheverIsPackedFirst) {
  MakeSource();
  for (const std::string option : {"cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "compression_type=zstd"}) {
    for (const char* image : {"image", "again"}) {
      Do({"convert", "-q", "-c", "-O", "qcow2", "-o", option, Path("raw"), Path(image)});
    }
    Judge("cmp image again && qemu-img check -q image && qemu-img compare -F qcow2 raw image");
    // From one that is compressed to another.
    Do({"convert", "-q", "-c", "-O", "qcow2", Path("image"), Path("again")});
    Judge("qemu-img check -q again && qemu-img compare -F qcow2 raw again && rm image again");
  }
}

TEST_F(Img, AClusterThatCannotBeUnpackedEndsAConversion) {
  MakeSource();
  Do({"convert", "-q", "-c", "-O", "qcow2", Path("raw"), Path("image")});
  // The last clusters of text, which lie behind those of noise.
  Judge(
      "size=$(stat -c %s image) && "
      "head -c 2048 /dev/zero | tr '\\0' '\\377' | dd of=image bs=1 seek=$((size - 2048)) conv=notrunc");
  for (const char* format : {"raw", "qcow2"}) {
    ExpectLine({"convert", "-q", "-O", format, Path("image"), Path("target")}, kFailure, "reading byte");
    Judge("! test -e target");
  }
  ExpectLine({"convert", "-q", "-c", "-O", "qcow2", Path("image"), Path("target")}, kFailure, "reading byte");
  ExpectLine({"convert", "-q", Path("raw"), Path("image"), Path("target")}, kFailure, "source 2: reading byte");
}

TEST_F(Img, ChangesThatQemuFollows) {
  MakeSource();
  std::mt19937_64 random(7);
  for (const std::string options : {"cluster_size=64k", "cluster_size=4k,compat=0.10", "cluster_size=512"}) {
    Judge("rm -f top base && qemu-img convert -O qcow2 -o " + options + " raw base && cp raw model");
    Do({"create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "-o", options, Path("top")});
    const auto write = [&] {
      const std::string at = std::to_string(random() % 5000 * 4096);
      const std::string word = "-c 'write -P " + std::to_string(random() % 255) + " " + at + " " +
                               std::to_string((1 + random() % 60) * 512) + "'";
      Judge("qemu-io -f qcow2 " + word + " top && qemu-io -f raw " + word + " model");
    };
    const auto judge = [&] {
      Judge("qemu-img check -q top && qemu-img compare -f qcow2 -F raw top model");
      EXPECT_EQ(Run({"compare", "--backing", Path("base"), Path("top"), Path("model")}).status, 0);
      EXPECT_EQ(Run({"check", "-q", Path("top")}).status, 0);
    };
    for (int i = 0; i < 4; ++i) write();
    judge();
    Do({"snapshot", "-c", "before", Path("top")});
    Judge("cp model before");
    for (int i = 0; i < 4; ++i) write();
    judge();
    Do({"snapshot", "-a", "before", Path("top")});
    Judge("cp before model");
    judge();
    Do({"snapshot", "-d", "before", Path("top")});
    if (options.find("compat=0.10") == std::string::npos) {
      Do({"resize", "-q", Path("top"), "+4M"});
    } else {
      ExpectLine({"resize", "-q", Path("top"), "+4M"}, kFailure, "--backing");
      Do({"resize", "-q", "--backing", Path("base"), Path("top"), "+4M"});
    }
    Judge("truncate -s +4M model");
    write();
    judge();
    Do({"resize", "-q", "--shrink", Path("top"), "-6M"});
    Judge("truncate -s -6M model");
    judge();
    Do({"convert", "-q", "-O", "qcow2", "--backing-from-header", Path("base"), Path("other")});
    Do({"rebase", "-q", "--backing", Path("base"), "-b", "other", "-F", "qcow2", Path("top")});
    Judge("rm base && cp other base && qemu-img compare -f qcow2 -F raw top model");
    Do({"commit", "-q", "--backing", Path("other"), Path("top")});
    Judge("qemu-img check -q top && qemu-img check -q other && qemu-img compare -f qcow2 -F raw top model");
    Judge("rm -f other");
  }
}

TEST_F(Img, ConvertsWhatABackingFileDoesNotHave) {
  MakeSource();
  // The base lacks the end, has data where the source has none, and differs here and there.
  Judge(
      "head -c 20M raw >base && yes | dd of=base bs=64k seek=150 count=10 iflag=fullblock conv=notrunc && "
      "dd if=/dev/urandom of=base bs=512 seek=77 count=1 conv=notrunc && "
      "qemu-img convert -O qcow2 base base.qcow2");
  for (const std::vector<std::string>& way : {std::vector<std::string>{"-B", "base.qcow2", "-F", "qcow2"},
                                              {"-B", "base", "-F", "raw", "-c"},
                                              {"-o", "backing_file=base,backing_fmt=raw,compat=0.10,cluster_size=4k"},
                                              {"-B", "base", "-F", "raw", "-o", "cluster_size=2M"}}) {
    std::vector<std::string> words{"convert", "-q", "-O", "qcow2"};
    words.insert(words.end(), way.begin(), way.end());
    words.insert(words.end(), {Path("raw"), Path("top")});
    Do(words);
    Judge("qemu-img check -q top && qemu-img convert -O raw top out && cmp out raw && rm out");
    if (way.back().find("2M") == std::string::npos) Judge("[ $(stat -c %s top) -lt 4000000 ]");
    // Into one that is there.
    Judge("cp raw other && dd if=/dev/zero of=other bs=64k count=3 conv=notrunc");
    ExpectLine({"convert", "-q", "-n", "-O", "qcow2", Path("other"), Path("top")}, kFailure, "-B");
    const std::string base = way[1] == "base.qcow2" ? "base.qcow2" : "base";
    Do({"convert", "-q", "-n", "-O", "qcow2", "-B", base, "-F", base == "base" ? "raw" : "qcow2", Path("other"),
        Path("top")});
    Judge("qemu-img check -q top && qemu-img convert -O raw top out && cmp out other && rm top out");
  }
  // As QEMU makes one.
  Judge("qemu-img convert -O qcow2 -B base -F raw raw top");
  EXPECT_EQ(Run({"compare", "--backing", Path("base"), Path("top"), Path("raw")}).status, 0);
  ExpectLine({"convert", "-O", "qcow2", "-B", "base", Path("raw"), Path("out")}, kWrongCommandLine, "-F");
  Judge("! test -e out");
}

TEST_F(Img, JoinsSeveralSourcesAsQemuDoes) {
  MakeSource();
  // Ends within a sector and within a chunk, of three formats, one that is empty, one over another, one with holes.
  Judge(
      "head -c 3000100 /dev/urandom >odd && qemu-img convert -O qcow2 -o cluster_size=4k odd odd.qcow2 && "
      "qemu-img convert -c -O qcow2 raw packed && qemu-img convert -O qcow odd old && : >empty && "
      "yes | head -c 700 >short && qemu-img create -q -f qcow2 -b raw -F raw over 25M && "
      "qemu-io -f qcow2 -c 'write -P 3 1M 70k' -c 'write -z 2M 1M' over");
  const std::vector<std::vector<std::string>> ways{{"-O", "raw"},
                                                   {"-O", "raw", "-S", "0", "-m", "1"},
                                                   {"-O", "qcow2", "-m", "16"},
                                                   {"-O", "qcow2", "-o", "cluster_size=512,compat=0.10"},
                                                   {"-O", "qcow2", "-c"},
                                                   {"-O", "qcow2", "-c", "-o", "cluster_size=2M"}};
  const std::vector<std::vector<std::string>> joined{{"short", "short", "odd.qcow2", "short"},
                                                     {"empty", "odd", "old", "empty", "packed", "over", "empty"}};
  for (const auto& sources : joined) {
    std::string names;
    std::vector<std::string> paths;
    for (const std::string& source : sources) {
      names += " " + source;
      paths.push_back(Path(source));
    }
    Judge("qemu-img convert -O raw" + names + " theirs");
    for (const auto& way : ways) {
      std::vector<std::string> words{"convert", "-q", "--backing-from-header"};
      words.insert(words.end(), way.begin(), way.end());
      words.insert(words.end(), paths.begin(), paths.end());
      words.push_back(Path("ours"));
      Do(words);
      const std::string judged =
          way[1] == "raw" ? "mv ours flat" : "qemu-img check -q ours && qemu-img convert -O raw ours flat";
      Judge(judged + " && cmp flat theirs && rm -f ours flat");
    }
    // Into one that is there and is not empty, and larger than need be.
    Judge("head -c 80M /dev/urandom >ours && cp ours model && dd if=theirs of=model bs=64k conv=notrunc");
    std::vector<std::string> words{"convert", "-q", "-n", "--backing-from-header"};
    words.insert(words.end(), paths.begin(), paths.end());
    words.push_back(Path("ours"));
    Do(words);
    Judge("cmp ours model && rm ours model theirs");
  }
}

TEST_F(Img, WhatDoesNotGoWithSeveralSourcesIsRefused) {
  Judge(
      "truncate -s 1M a && truncate -s 1M b && qemu-img create -q -f qcow2 -b a -F raw top 1M && "
      "truncate -s 1M small && qemu-img create -q -f qcow2 empty.qcow2 1M && qemu-img create -q -f qcow2 -o "
      "cluster_size=2M huge 2E");
  ExpectLine({"convert", Path("a")}, kWrongCommandLine, "TARGET");
  ExpectLine({"convert", "-O", "qcow2", "-B", "a", "-F", "raw", Path("a"), Path("b"), Path("out")}, kWrongCommandLine,
             "several sources");
  ExpectLine({"convert", "-O", "qcow2", "-o", "backing_file=a,backing_fmt=raw", Path("a"), Path("b"), Path("out")},
             kWrongCommandLine, "several sources");
  ExpectLine({"convert", "-l", "1", Path("a"), Path("b"), Path("out")}, kWrongCommandLine, "several sources");
  ExpectLine({"convert", "--backing", Path("a"), Path("top"), Path("b"), Path("out")}, kWrongCommandLine,
             "--backing does not");
  // What only their headers tell.
  ExpectLine({"convert", Path("b"), Path("top"), Path("out")}, kFailure, "its header names");
  ExpectLine({"convert", "-f", "qcow2", Path("empty.qcow2"), Path("b"), Path("out")}, kFailure, "not a qcow2 image");
  ExpectLine({"convert", Path("a"), Path("nothing"), Path("out")}, kFailure, "nothing': there is no such file");
  ExpectLine({"convert", Path("a"), Path("b"), Path("b")}, kFailure, "in use");
  ExpectLine({"convert", "-n", Path("a"), Path("b"), Path("small")}, kFailure, "smaller");
  const std::string huge = Path("huge");
  ExpectLine({"convert", "-O", "qcow2", huge, huge, huge, huge, Path("out")}, kFailure, "larger than any");
  Judge("! test -e out && [ $(stat -c %s b) = 1048576 ]");
  std::vector<std::string> most{"convert", "-q"};
  most.resize(2 + 63, Path("a"));
  most.push_back(Path("out"));
  Do(most);
  Judge("[ $(stat -c %s out) = $((63 << 20)) ] && rm out");
  most.insert(most.end() - 1, Path("b"));
  ExpectLine(most, kFailure, "more than 64");
  Judge("! test -e out");
}

TEST_F(Img, ConvertsWhatASnapshotHas) {
  MakeSource();
  // The first by us, the second by QEMU, of another size, under a name that is the first one's id.
  Do({"convert", "-q", "-O", "qcow2", Path("raw"), Path("top")});
  Do({"snapshot", "-c", "first", Path("top")});
  Do({"resize", "-q", Path("top"), "40M"});
  Judge(
      "qemu-io -f qcow2 -c 'write -P 7 1M 3M' -c 'write -P 8 30M 1M' top && qemu-img snapshot -c 1 top && "
      "qemu-img convert -O raw top second && qemu-io -f qcow2 -c 'write -P 9 0 40M' top && cp top before");
  for (const auto& [snapshot, model] : {std::pair{"first", "raw"}, {"1", "raw"}, {"2", "second"}}) {
    Do({"convert", "-q", "-l", snapshot, Path("top"), Path("out")});
    Judge(std::string("cmp out ") + model);
    Do({"convert", "-q", "-c", "-O", "qcow2", "-l", snapshot, Path("top"), Path("out.qcow2")});
    Judge(std::string("qemu-img check -q out.qcow2 && qemu-img compare -f qcow2 -F raw out.qcow2 ") + model +
          " && rm out out.qcow2");
  }
  Judge("cmp top before");
  ExpectLine({"convert", "-l", "third", Path("top"), Path("out")}, kFailure, "no snapshot 'third'");
  ExpectLine({"convert", "-f", "raw", "-l", "first", Path("raw"), Path("out")}, kFailure, "no snapshots");
  Judge("! test -e out");
}

TEST_F(Img, WhatALargerDiskGainsIsZeroes) {
  Judge("yes base | head -c 8M >base");
  for (const std::string options : {"compat=1.1", "compat=0.10", "compat=0.10,cluster_size=4k"}) {
    for (const std::string size : {"2M", "2100224"}) {
      Judge("rm -f top && qemu-img create -f qcow2 -b base -F raw -o " + options + " top " + size + " && head -c " +
            size + " base >model && truncate -s 11M model");
      if (options != "compat=1.1" || size != "2M") {
        ExpectLine({"resize", "-q", Path("top"), "11M"}, kFailure, "--backing");
      }
      Do({"resize", "-q", "--backing-from-header", Path("top"), "11M"});
      Judge("qemu-img check -q top && qemu-img convert -O raw top out && cmp out model");
    }
  }
}

TEST_F(Img, CheckSaysWhatQemuSaysAndRepairsIt) {
  MakeSource();
  Do({"convert", "-q", "-O", "qcow2", Path("raw"), Path("image")});
  EXPECT_EQ(Run({"check", Path("raw")}).status, 63);
  EXPECT_EQ(Run({"check", "-q", Path("image")}).status, 0);
  // The first refcount block is the third cluster; its entries are of two bytes.
  Judge(
      "truncate -s +10M image && printf '\\0\\1' | dd of=image bs=1 seek=$((2 * 65536 + 2 * 200)) conv=notrunc && "
      "! qemu-img check -q image");
  EXPECT_EQ(Run({"check", "-q", Path("image")}).status, 3);
  Do({"check", "-q", "-r", "leaks", Path("image")});
  Judge("qemu-img check -q image");
  Judge("printf '\\0\\0' | dd of=image bs=1 seek=$((2 * 65536 + 2 * 20)) conv=notrunc && ! qemu-img check -q image");
  EXPECT_EQ(Run({"check", "-q", Path("image")}).status, 2);
  Do({"check", "-q", "-r", "all", Path("image")});
  Judge("qemu-img check -q image && qemu-img compare raw image");
}

TEST_F(Img, AFileThatAHeaderNamesIsOpenedOnlyWhenAsked) {
  Judge("qemu-img create -q -u -f qcow2 -b /etc/passwd -F raw secret 1M");
  ExpectLine({"convert", Path("secret"), Path("out")}, kFailure, "/etc/passwd");
  EXPECT_NE(Run({"info", Path("secret")}).output.find("backing file: /etc/passwd"), std::string::npos);
  Judge("qemu-img create -q -u -f qcow2 -b /dev/zero -F raw device 1M");
  ExpectLine({"convert", "--backing-from-header", Path("device"), Path("out")}, kFailure, "not a regular file");
  Judge(
      "qemu-img create -q -u -f qcow2 -b two -F qcow2 one 1M && qemu-img create -q -u -f qcow2 -b one -F qcow2 two 1M");
  ExpectLine({"convert", "--backing-from-header", Path("one"), Path("out")}, kFailure, "lead back");
  Judge("qemu-img create -q -u -f qcow2 -b nowhere -F qcow2 lost 1M");
  ExpectLine({"convert", "--backing-from-header", Path("lost"), Path("out")}, kFailure, "nowhere");
  Judge(
      "qemu-img create -q -f raw base 2M && "
      "qemu-img create -q -u -f qcow2 -b base -F raw top 2M && cp top silent && "
      "python3 -c \"d=bytearray(open('silent','rb').read()); i=d.find(bytes.fromhex('e2792aca')); d[i:i+4]=bytes(4); "
      "open('silent','wb').write(d)\"");
  ExpectLine({"convert", "--backing-from-header", Path("silent"), Path("out")}, kFailure, "which format");
  Judge("! test -e out");
  // A guest wrote an image that names a file of the host's into its raw disk, which is a base now: it stays a raw disk.
  Judge("dd if=secret of=base conv=notrunc && cp base expected");
  Do({"convert", "-q", "-O", "raw", "--backing-from-header", Path("top"), Path("out")});
  Judge("cmp out expected && rm out");
  Do({"convert", "-q", "-O", "raw", "--backing", Path("base"), Path("top"), Path("out")});
  Judge("cmp out expected && rm out");
}

TEST_F(Img, MistakesGetOneLineAndLeaveNothing) {
  ExpectLine({"fly"}, kWrongCommandLine, "fly");
  ExpectLine({"create", "-f", "qcow2", Path("a"), "lots"}, kWrongCommandLine, "lots");
  ExpectLine({"create", "-f", "vmdk", Path("a"), "1M"}, kWrongCommandLine, "vmdk");
  ExpectLine({"create", "-f", "qcow2", "-o", "cluster_sise=4k", Path("a"), "1M"}, kWrongCommandLine, "cluster_size");
  ExpectLine({"create", "-f", "qcow2", "-o", "cluster_size=512", Path("a"), "16T"}, kFailure, "cluster");
  Judge("! test -e a");
  ExpectLine({"info", Path("nothing")}, kFailure, "no such file");
  ExpectLine({"info", directory_.path()}, kFailure, "directory");
  const std::string garbage = directory_.MakeFile("garbage", std::string(100'000, 'x'));
  ExpectLine({"info", "-f", "qcow2", garbage}, kFailure, "not a qcow2 image");
  ExpectLine({"check", "-f", "qcow2", garbage}, kFailure, "not a qcow2 image");
  ExpectLine({"convert", "-f", "qcow2", garbage, Path("out")}, kFailure, "not a qcow2 image");
  Do({"create", "-q", "-f", "qcow2", Path("image"), "4M"});
  ExpectLine({"resize", Path("image"), "1M"}, kFailure, "--shrink");
  ExpectLine({"snapshot", "-a", "nobody", Path("image")}, kFailure, "nobody");
  const OwnFd held(::open(Path("image").c_str(), O_RDWR));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  ASSERT_EQ(::fcntl(held.get(), F_OFD_SETLK, &lock), 0);
  ExpectLine({"info", Path("image")}, kFailure, "in use");
  EXPECT_EQ(Run({"info", "-U", Path("image")}).status, 0);
  Judge("! test -e out");
}

TEST_F(Img, AFullDiskLeavesNoTarget) {
  MakeSource();
  Command convert({"img", "convert", "-q", "-O", "qcow2", Path("raw"), Path("out")}, [](Launch&) {
    const rlimit limit{2 << 20, 2 << 20};
    return ::setrlimit(RLIMIT_FSIZE, &limit) == 0;
  });
  EXPECT_EQ(convert.Wait(), kFailure) << convert.errors();
  EXPECT_NE(convert.errors().find("File too large"), std::string::npos) << convert.errors();
  Judge("! test -e out");
}

}  // namespace
}  // namespace bulkhead::test
