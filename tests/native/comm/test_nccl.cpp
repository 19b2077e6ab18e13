// What holds for both backends on a machine without NCCL: a clear InputError, never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "comm/nccl.h"
#include "comm/shm.h"
#include "core/error.h"

namespace minisgl {
namespace {

constexpr const char* kNowhere = "/nowhere/libnccl.so.2";

template <typename Call>
std::string input_error(Call call) {
  try {
    call();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(Nccl, UniqueIdNeedsTheLibrary) {
  EXPECT_THAT(input_error([] { make_nccl_unique_id(kNowhere); }), testing::HasSubstr("NCCL"));
}

TEST(Nccl, CreationNeedsTheLibrary) {
  NcclOptions options;
  options.library = kNowhere;
  const auto host = std::move(make_shm_communicators(1).front());
  for (const GpuSums sums : {GpuSums::fastest, GpuSums::nccl}) {
    options.sums = sums;
    EXPECT_THAT(input_error([&] { make_gpu_communicator(options, *host); }), testing::HasSubstr("NCCL"));
  }
}

TEST(Nccl, CountsGpusWithoutADriver) {
  EXPECT_GE(num_gpus(), 0);
}

}  // namespace
}  // namespace minisgl
