// PagedKvView: where rows lie, and the checks of a view that comes from outside.
#include "rarefy/attention/paged_kv.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace rarefy {
namespace {

struct Pool {
  std::vector<uint16_t> rows =
      std::vector<uint16_t>(4 * 8 * 2 * 16);               // [num_pages, page_size, num_kv_heads, head_dim] bits
  std::vector<int32_t> page_table = {2, 0, 3, 1, -1, -1};  // [batch, max_pages_per_sequence] i32
  std::vector<int32_t> kv_lens = {17, 5};                  // [batch] i32
  PagedKvView view;

  Pool() {
    view.keys = view.values = rows.data();
    view.page_stride = 8 * 2 * 16;
    view.token_stride = 2 * 16;
    view.head_stride = 16;
    view.num_pages = 4;
    view.page_size = 8;
    view.num_kv_heads = 2;
    view.head_dim = 16;
    view.page_table = page_table.data();
    view.max_pages_per_sequence = 3;
    view.kv_lens = kv_lens.data();
  }
  std::string refusal() const {
    const Status status = validate(view, 2);
    EXPECT_FALSE(status.ok());
    return status.message();
  }
};

TEST(PagedKvView, RowOffsetFollowsPageTableAndStrides) {
  Pool pool;
  EXPECT_EQ(pool.view.row_offset(0, 0, 0), 2 * 256);
  EXPECT_EQ(pool.view.row_offset(0, 9, 1), 0 * 256 + 1 * 32 + 16);
  EXPECT_EQ(pool.view.row_offset(1, 4, 0), 1 * 256 + 4 * 32);
  // Strides beyond 2^31 elements must not overflow.
  pool.view.page_stride = int64_t{1} << 33;
  EXPECT_EQ(pool.view.row_offset(0, 16, 0), 3 * (int64_t{1} << 33));
}

TEST(PagedKvView, AcceptsAGoodView) {
  Pool pool;
  EXPECT_TRUE(validate(pool.view, 2).ok());
  // Nothing cached: keys, values and page table are not looked at.
  pool.kv_lens = {0, 0};
  pool.view.keys = pool.view.values = nullptr;
  pool.view.page_table = nullptr;
  EXPECT_TRUE(validate(pool.view, 2).ok());
}

TEST(PagedKvView, RefusesWhatDoesNotFit) {
  const auto message = [](auto change) {
    Pool pool;
    change(pool);
    return pool.refusal();
  };
  EXPECT_NE(message([](Pool& pool) { pool.view.page_size = 12; }).find("power of two"), std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.view.page_size = 512; }).find("power of two"), std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.view.dtype = DType::i8; }).find("f32, f16, bf16 or f8_e4m3, got i8"),
            std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.view.key_scales = reinterpret_cast<float*>(pool.rows.data()); }).find("scales"),
            std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.view.token_stride = -1; }).find("strides"), std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.view.keys = nullptr; }).find("keys"), std::string::npos);
  EXPECT_NE(
      message([](Pool& pool) { pool.view.values = reinterpret_cast<const char*>(pool.rows.data()) + 1; }).find("values"),
      std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.view.kv_lens = nullptr; }).find("kv_lens"), std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.kv_lens[0] = 25; }).find("kv_lens[0]: expected 0 to 24"), std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.kv_lens[1] = -1; }).find("kv_lens[1]"), std::string::npos);
  EXPECT_NE(
      message([](Pool& pool) { pool.page_table[1] = 4; }).find("page_table[0][1]: expected a page from 0 to 3, got 4"),
      std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.page_table[3] = -1; }).find("page_table[1][0]"), std::string::npos);
  EXPECT_NE(message([](Pool& pool) { pool.view.num_kv_heads = 0; }).find("num_kv_heads"), std::string::npos);
}

}  // namespace
}  // namespace rarefy
