// Who asks for a GPU that there isn't reads why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "gemm/tensor_product.h"

namespace minisgl {
namespace {

TEST(TensorProduct, NamesTheGpuThatThereIsNot) {
  try {
    make_gpu_products(1000);
    FAIL() << "there is no such GPU";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::AnyOf(testing::HasSubstr("no CUDA device 1000"),
                                             testing::HasSubstr("this build of minisgl has no CUDA")));
  }
}

}  // namespace
}  // namespace minisgl
