#include "server/scheduler/tenants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertd {
namespace {

using ::testing::HasSubstr;

TEST(TenantWeightsTest, NamesTheirWeightsAndNobodyElses) {
  const auto weights = TenantWeights::Parse("a=4,b=0.5,CN=c=2");
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->Of("a"), 4);
  EXPECT_EQ(weights->Of("b"), 0.5);
  EXPECT_EQ(weights->Of("CN=c"), 2);
  EXPECT_EQ(weights->Of("stranger"), 1);
  EXPECT_EQ(TenantWeights::Parse("")->Of("a"), 1);
}

TEST(TenantWeightsTest, WhatIsWrongIsNamed) {
  for (const char* wrong : {"a", "=1", "a=", "a=0", "a=-1", "a=nan", "a=1001", "a=1,,b=2", "a=x"}) {
    EXPECT_EQ(TenantWeights::Parse(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
  EXPECT_THAT(TenantWeights::Parse("b=1,a=0").status().message(), HasSubstr("'a=0'"));
  EXPECT_THAT(TenantWeights::Parse("a=1,a=2").status().message(), HasSubstr("'a' is named twice"));
}

TEST(TenantAccountsTest, WhoComesBackFromIdlenessHasSavedNothing) {
  TenantAccounts accounts({});
  TenantAccount& busy = accounts.Enter("busy");
  busy.Charge(10);
  EXPECT_EQ(accounts.Enter("late").virtual_time, 10);
}

TEST(TenantAccountsTest, DebtsAreNotForgottenByABreak) {
  TenantAccounts accounts({});
  accounts.Enter("calm");
  TenantAccount& debtor = accounts.Enter("debtor");
  debtor.Charge(5);
  accounts.Leave(debtor);
  EXPECT_EQ(accounts.Enter("debtor").virtual_time, 5);
}

TEST(TenantAccountsTest, AWeightStretchesTime) {
  TenantAccounts accounts(*TenantWeights::Parse("heavy=4"));
  TenantAccount& heavy = accounts.Enter("heavy");
  heavy.Charge(8);
  EXPECT_EQ(heavy.virtual_time, 2);
}

TEST(TenantAccountsTest, NamesDoNotPileUp) {
  TenantAccounts accounts({});
  TenantAccount& steady = accounts.Enter("steady");
  for (int i = 0; i < 1000; ++i) {
    TenantAccount& passing = accounts.Enter("passing" + std::to_string(i));
    passing.Charge(1);
    steady.Charge(1);
    accounts.Leave(passing);
  }
  EXPECT_LE(accounts.size(), 3u);
}

}  // namespace
}  // namespace expertd
