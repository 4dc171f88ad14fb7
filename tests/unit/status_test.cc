// Status, Expected and the macros that pass failures on.
#include "rarefy/core/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace rarefy {
namespace {

TEST(Status, OkCarriesNothing) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::ok);
  EXPECT_EQ(status.to_string(), "ok");
  EXPECT_TRUE(status.with_context("somewhere").ok());
}

TEST(Status, EveryCodeHasANameOfItsOwn) {
  const Status failures[] = {
      Status::invalid_argument("m"),   Status::not_found("m"), Status::unsupported("m"), Status::data_loss("m"),
      Status::resource_exhausted("m"), Status::io_error("m"),  Status::cancelled("m"),   Status::internal("m")};
  for (const Status& a : failures) {
    EXPECT_FALSE(a.ok());
    EXPECT_EQ(a.message(), "m");
    EXPECT_NE(a.to_string().find(": m"), std::string::npos) << a.to_string();
    for (const Status& b : failures) EXPECT_EQ(a.code() == b.code(), to_string(a.code()) == to_string(b.code()));
  }
}

TEST(Status, ContextGoesInFront) {
  const Status status = Status::data_loss("truncated").with_context("model.safetensors");
  EXPECT_EQ(status.code(), StatusCode::data_loss);
  EXPECT_EQ(status.message(), "model.safetensors: truncated");
}

TEST(Expected, HoldsAValueOrAStatus) {
  const Expected<int> value = 5;
  ASSERT_TRUE(value);
  EXPECT_EQ(*value, 5);
  EXPECT_TRUE(value.status().ok());
  const Expected<int> failure = Status::not_found("nothing here");
  EXPECT_FALSE(failure.has_value());
  EXPECT_EQ(failure.status().message(), "nothing here");
}

TEST(Expected, AnOkStatusIsNoValue) {
  const Expected<int> wrong = Status();
  EXPECT_FALSE(wrong);
  EXPECT_EQ(wrong.status().code(), StatusCode::internal);
}

TEST(Expected, MovesWhatCannotBeCopied) {
  Expected<std::unique_ptr<int>> value = std::make_unique<int>(3);
  const std::unique_ptr<int> moved = *std::move(value);
  EXPECT_EQ(*moved, 3);
}

Expected<int> half(int value) {
  if (value % 2 != 0) return Status::invalid_argument("odd");
  return value / 2;
}

Status quarter_into(int value, int& result) {
  RAREFY_ASSIGN_OR_RETURN(const int first, half(value));
  RAREFY_ASSIGN_OR_RETURN(result, half(first));
  return {};
}

Status twice(int value) {
  int ignored = 0;
  RAREFY_RETURN_IF_ERROR(quarter_into(value, ignored));
  return {};
}

TEST(Macros, PassFailuresOn) {
  int result = 0;
  EXPECT_TRUE(quarter_into(12, result).ok());
  EXPECT_EQ(result, 3);
  EXPECT_EQ(quarter_into(6, result).message(), "odd");
  EXPECT_TRUE(twice(4).ok());
  EXPECT_FALSE(twice(2 + 1).ok());
}

}  // namespace
}  // namespace rarefy
