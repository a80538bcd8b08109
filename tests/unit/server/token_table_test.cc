#include "server/access/token_table.h"

#include <gmock/gmock.h>

#include "tests/support/certificates.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "sesame-0123456789";
// printf %s sesame-0123456789 | sha256sum
constexpr char kTokenSha256[] = "754840467716f32606cd61fa2b90cb2ecfda8ce0b620e6e19d592b615aecba69";

TEST(TokenTableTest, NamesRolesAndTenants) {
  const auto table = TokenTable::Parse(
      "# who may what\n\n  plain:abcdefghijklmnop infer team-a\t\nplain:ABCDEFGHIJKLMNOP admin ops\r\n"
      "plain:0123456789abcdef infer,admin spiffe://x/y",
      "tokens");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->size(), 3);
  const auto infer = table->Find("abcdefghijklmnop"), admin = table->Find("ABCDEFGHIJKLMNOP"),
             both = table->Find("0123456789abcdef");
  ASSERT_TRUE(infer && admin && both);
  EXPECT_EQ(infer->tenant, "team-a");
  EXPECT_TRUE(infer->may_infer && !infer->may_admin);
  EXPECT_EQ(admin->tenant, "ops");
  EXPECT_TRUE(!admin->may_infer && admin->may_admin);
  EXPECT_EQ(both->tenant, "spiffe://x/y");
  EXPECT_TRUE(both->may_infer && both->may_admin);
}

TEST(TokenTableTest, AHashStandsForItsToken) {
  const auto table = TokenTable::Parse(std::string("sha256:") + kTokenSha256 + " infer a", "tokens");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_TRUE(table->Find(kToken));
  EXPECT_FALSE(table->Find(kTokenSha256)) << "the hash itself is no token";
}

TEST(TokenTableTest, NothingButTheWholeTokenIsFound) {
  const auto table = TokenTable::Parse("plain:abcdefghijklmnop infer a", "tokens");
  ASSERT_TRUE(table.ok());
  for (const char* token : {"", "a", "abcdefghijklmno", "abcdefghijklmnopq", "Abcdefghijklmnop", " abcdefghijklmnop"}) {
    EXPECT_FALSE(table->Find(token)) << token;
  }
  EXPECT_FALSE(TokenTable::Parse("", "tokens")->Find("")) << "an empty table lets nobody in";
}

TEST(TokenTableTest, ErrorsNameTheLineAndNeverTheToken) {
  const std::string good = "plain:goodgoodgoodgood infer a\n";
  const std::pair<const char*, const char*> wrong[] = {
      {"plain:secretsecretsecret", "1 fields where 3 are wanted"},
      {"plain:secretsecretsecret infer", "2 fields"},
      {"plain:secretsecretsecret infer a b", "4 fields"},
      {"secretsecretsecret infer a", "sha256:<64 hex digits> or plain:<token>"},
      {"plain:secret infer a", "16 to 512 characters"},
      {"plain:secretsecretsecret! infer a", "16 to 512 characters"},
      {"sha256:secretsecretsecret infer a", "64 hex digits"},
      {"plain:secretsecretsecret infer,root a", "list of roles"},
      {"plain:secretsecretsecret infer, a", "list of roles"},
      {"plain:secretsecretsecret infer a$b", "tenant"},
      {"plain:goodgoodgoodgood admin b", "stands above already"},
  };
  for (const auto& [line, reason] : wrong) {
    const absl::Status status = TokenTable::Parse(good + line, "tokens").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << line;
    EXPECT_THAT(std::string(status.message()), HasSubstr("tokens:2: ")) << line;
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason)) << line;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret"))) << line;
  }
}

TEST(TokenStoreTest, FollowsTheFileAndKeepsWhatWorked) {
  const TestFolder folder;
  EXPECT_THAT(std::string(OpenTokens(folder.Path("tokens")).status().message()), HasSubstr("--tokens-file"));
  const std::string path = folder.Write("tokens", "plain:abcdefghijklmnop infer a\n");
  const auto store = OpenTokens(path);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_FALSE(*(*store)->Refresh()) << "nothing has changed";
  const auto before = (*store)->current();

  folder.Write("tokens", "plain:ABCDEFGHIJKLMNOP admin b\n");
  EXPECT_TRUE(*(*store)->Refresh());
  EXPECT_TRUE((*store)->current()->Find("ABCDEFGHIJKLMNOP"));
  EXPECT_FALSE((*store)->current()->Find("abcdefghijklmnop"));
  EXPECT_TRUE(before->Find("abcdefghijklmnop")) << "who has taken it keeps it";

  folder.Write("tokens", "nonsense\n");
  EXPECT_FALSE((*store)->Refresh().ok());
  EXPECT_TRUE((*store)->Refresh().ok()) << "told once";
  EXPECT_TRUE((*store)->current()->Find("ABCDEFGHIJKLMNOP"));
}

}  // namespace
}  // namespace expertd::testing
