// IndexSet: the owner's layout and the checks of a set that comes from outside.
#include "rarefy/attention/index_set.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace rarefy {
namespace {

IndexSet two_lists() {
  IndexSet set;
  set.resize(1, 2, 4);
  for (int32_t list = 0; list < 2; ++list) {
    for (int32_t i = 0; i < 4; ++i) {
      set.token_ids(0, list)[i] = 10 * i + list;
      set.log_weight(0, list)[i] = 0.5f * static_cast<float>(i);
    }
    set.count(0, list) = 4;
  }
  return set;
}

Status check(const IndexSet& set, int32_t kv_len = 100) { return validate(set.view(), set.batch(), &kv_len); }

TEST(IndexSet, ViewAndAccessorsAgree) {
  IndexSet set;
  set.resize(2, 3, 5);
  set.token_ids(1, 2)[4] = 7;
  set.log_weight(1, 2)[4] = 1.5f;
  set.count(1, 2) = 5;
  const IndexSetView view = set.view();
  EXPECT_EQ(view.token_ids[(1 * 3 + 2) * 5 + 4], 7);
  EXPECT_EQ(view.log_weight[(1 * 3 + 2) * 5 + 4], 1.5f);
  EXPECT_EQ(view.counts[1 * 3 + 2], 5);
  EXPECT_EQ(view.num_lists, 3);
  EXPECT_EQ(view.max_selected, 5);
}

TEST(IndexSet, ResizeKeepsItsBuffers) {
  IndexSet set;
  set.resize(2, 4, 100);
  const int32_t* before = set.view().token_ids;
  set.resize(1, 4, 10);
  set.resize(2, 4, 100);
  EXPECT_EQ(set.view().token_ids, before);
}

TEST(IndexSet, AcceptsAGoodSet) { EXPECT_TRUE(check(two_lists()).ok()); }

TEST(IndexSet, AcceptsAllTokensEmptyListsAndNoWeights) {
  IndexSet set = two_lists();
  set.count(0, 0) = kAllTokens;
  set.count(0, 1) = 0;
  set.token_ids(0, 1)[0] = -5;  // past the count: never read
  EXPECT_TRUE(check(set).ok());
  const IndexSet weighted = two_lists();
  IndexSetView view = weighted.view();
  view.log_weight = nullptr;
  const int32_t kv_len = 100;
  EXPECT_TRUE(validate(view, 1, &kv_len).ok());
  EXPECT_TRUE(validate(IndexSetView{nullptr, set.view().counts, nullptr, 1, 0}, 1, &kv_len).ok());
}

TEST(IndexSet, RefusesWhatDoesNotFitAndSaysWhere) {
  const auto message = [](auto change, int32_t kv_len = 100) {
    IndexSet set = two_lists();
    change(set);
    const Status status = check(set, kv_len);
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    return status.message();
  };
  EXPECT_NE(message([](IndexSet& set) { set.count(0, 1) = 5; }).find("counts[0][1]"), std::string::npos);
  EXPECT_NE(message([](IndexSet& set) { set.count(0, 0) = -2; }).find("got -2"), std::string::npos);
  EXPECT_NE(message([](IndexSet& set) { set.token_ids(0, 1)[0] = -1; }).find("token_ids[0][1][0]"), std::string::npos);
  EXPECT_NE(message([](IndexSet&) {}, 30).find("kv_len - 1 = 29, got 30"), std::string::npos);
  EXPECT_NE(message([](IndexSet& set) { set.token_ids(0, 0)[2] = 10; }).find("predecessor"), std::string::npos);
  EXPECT_NE(message([](IndexSet& set) { set.token_ids(0, 0)[2] = 9; }).find("predecessor"), std::string::npos);
  for (float weight : {-0.1f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_NE(message([weight](IndexSet& set) { set.log_weight(0, 1)[3] = weight; }).find("log_weight[0][1][3]"),
              std::string::npos);
  }
}

TEST(IndexSet, RefusesNullsAndShapes) {
  const IndexSet set = two_lists();
  const int32_t kv_len = 100;
  IndexSetView view = set.view();
  view.counts = nullptr;
  EXPECT_FALSE(validate(view, 1, &kv_len).ok());
  view = set.view();
  view.token_ids = nullptr;
  EXPECT_FALSE(validate(view, 1, &kv_len).ok());
  view = set.view();
  view.num_lists = 0;
  EXPECT_FALSE(validate(view, 1, &kv_len).ok());
}

}  // namespace
}  // namespace rarefy
