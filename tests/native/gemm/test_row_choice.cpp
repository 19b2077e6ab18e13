// Which of an instruction set's added kernels are taken, and from how many rows on.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "gemm/dispatch.h"
#include "gemm/row_choice.h"

namespace minisgl {
namespace {

void take_no_time(const KernelArgs&) {}
void take_long(const KernelArgs&) {
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
}
void take_long_for_few_rows(const KernelArgs& args) {
  if (args.num_rows < 200) take_long(args);
}

TEST(RowChoice, KernelsAreTakenFromWhereTheyAreFaster) {
  const KernelTable& base = gemm_kernel_table(supported_base_isas().back());
  const Kernel kernels[] = {{.dtype = DType::q8_0, .min_rows = 1, .run = take_no_time},
                            {.dtype = DType::q4_0, .min_rows = 1, .run = take_long_for_few_rows},
                            {.dtype = DType::q4_k, .min_rows = 1, .run = take_long}};
  const std::vector<Kernel> chosen = choose_by_rows(base, {.bf16_rows = nullptr, .kernels = kernels, .num_kernels = 3});
  ASSERT_EQ(chosen.size(), 2u);
  EXPECT_EQ(chosen[0].dtype, DType::q8_0);
  EXPECT_EQ(chosen[0].min_rows, 128);
  EXPECT_EQ(chosen[1].dtype, DType::q4_0);
  EXPECT_EQ(chosen[1].min_rows, 256);
}

}  // namespace
}  // namespace minisgl
