// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/fat_image.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "ipc/result.h"

namespace bulkhead::launcher {
namespace {

// An image in a file, and what mtools and fsck.fat, who judge it, say about it.
class FatImageTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = std::filesystem::temp_directory_path() / "fat-image.XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void Write(const FatImage& image) {
    {
      std::ofstream file(Path(), std::ios::binary);
      for (const FatPiece& piece : image.pieces) {
        file.seekp(static_cast<std::streamoff>(piece.offset_bytes));
        file << piece.bytes;
      }
    }
    std::filesystem::resize_file(Path(), image.size_bytes);
  }
  std::string Path() const { return directory_ / "image"; }
  // What a command prints; its failure is the test's.
  std::string Run(const std::string& command) {
    FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
    std::string output;
    char bytes[4096];
    while (const size_t count = ::fread(bytes, 1, sizeof bytes, pipe)) output.append(bytes, count);
    EXPECT_EQ(::pclose(pipe), 0) << command << ": " << output.substr(0, 1000);
    return output;
  }
  std::string Contents(const std::string& name) { return Run("mtype -i " + Path() + " '::" + name + "'"); }

  std::filesystem::path directory_;
};

TEST_F(FatImageTest, FilesHaveTheirNamesAndContents) {
  const std::string large(100'000, 'x');
  Write(
      MakeFatImage("cidata", {{"user-data", "#cloud-config\n"}, {"empty", ""}, {"a name of several entries", large}}));
  Run("fsck.fat -n " + Path());
  EXPECT_EQ(Contents("user-data"), "#cloud-config\n");
  EXPECT_EQ(Contents("empty"), "");
  EXPECT_EQ(Contents("a name of several entries"), large);
}

TEST_F(FatImageTest, NamesThatFillTheirEntriesAreWhole) {
  const std::string thirteen(13, 'n'), longest(255, 'l');
  Write(MakeFatImage("cidata", {{thirteen, "1"}, {longest, "2"}}));
  Run("fsck.fat -n " + Path());
  EXPECT_EQ(Contents(thirteen), "1");
  EXPECT_EQ(Contents(longest), "2");
}

TEST_F(FatImageTest, LabelIsFoundAsWritten) {
  Write(MakeFatImage("cidata", {{"user-data", "x"}}));
  EXPECT_EQ(Run("blkid -p -o value -s LABEL " + Path()), "cidata\n");
  EXPECT_EQ(Run("blkid -p -o value -s TYPE " + Path()), "vfat\n");
}

TEST_F(FatImageTest, GrowsWithWhatIsInIt) {
  const std::string large(40 << 20, 'y');
  Write(MakeFatImage("cidata", {{"large", large}, {"small", "z"}}));
  Run("fsck.fat -n " + Path());
  EXPECT_EQ(Contents("large").size(), large.size());
  EXPECT_EQ(Contents("small"), "z");
}

TEST(FatImage, TheSameFilesMakeTheSameImage) {
  const FatImage one = MakeFatImage("cidata", {{"user-data", "x"}}),
                 other = MakeFatImage("cidata", {{"user-data", "x"}});
  ASSERT_EQ(one.pieces.size(), other.pieces.size());
  for (size_t i = 0; i < one.pieces.size(); ++i) EXPECT_EQ(one.pieces[i].bytes, other.pieces[i].bytes);
}

TEST(FatImage, TooMuchIsRefused) {
  EXPECT_THROW(MakeFatImage("cidata", {{"large", std::string((64 << 20) + 1, 'x')}}), FatalError);
  EXPECT_THROW(MakeFatImage("cidata", {{"", "nameless"}}), FatalError);
  EXPECT_THROW(MakeFatImage("cidata", std::vector<FatFile>(300, {"a name of several entries", "x"})), FatalError);
}

}  // namespace
}  // namespace bulkhead::launcher
