// What runs at the same time shares no workspace; what a graph had is used again after it.
#include <gtest/gtest.h>

#include <set>

#include "comm/cuda/device_memory.h"
#include "gemm/cuda/workspaces.h"

namespace minisgl::cuda {
namespace {

class WorkspacesOnGpu : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "needs a GPU";
  }
};

TEST_F(WorkspacesOnGpu, EveryStreamAndGraphHasItsOwn) {
  Workspaces workspaces(1 << 20);
  const CudaStream first = make_stream(), second = make_stream();
  std::set<void*> all{workspaces.of(nullptr, {}), workspaces.of(first.get(), {}), workspaces.of(second.get(), {})};
  EXPECT_EQ(all.count(nullptr), 0u);
  EXPECT_EQ(workspaces.of(first.get(), {}), workspaces.of(first.get(), {}));
  const auto recorded = [&] {
    return record(first, [&] {
      const Capture capture = capture_of(first.get());
      EXPECT_NE(capture.id, 0u);
      void* own = workspaces.of(first.get(), capture);
      EXPECT_EQ(workspaces.of(first.get(), capture), own);
      all.insert(own);
    });
  };
  const CudaGraphExec one = recorded(), other = recorded();
  EXPECT_EQ(all.size(), 5u);
  EXPECT_EQ(capture_of(first.get()).id, 0u);
}

TEST_F(WorkspacesOnGpu, AGraphReturnsItsOwn) {
  Workspaces workspaces(1 << 20);
  const CudaStream stream = make_stream();
  std::set<void*> all;
  for (int turn = 0; turn < 20; ++turn) {
    const CudaGraphExec graph =
        record(stream, [&] { all.insert(workspaces.of(stream.get(), capture_of(stream.get()))); });
    MINISGL_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream.get()));
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  }
  EXPECT_LT(all.size(), 20u);  // it comes back on another thread, some time after the graph is destroyed
}

TEST_F(WorkspacesOnGpu, AGraphMayOutliveThem) {
  const CudaStream stream = make_stream();
  CudaGraphExec graph;
  {
    Workspaces workspaces(1 << 20);
    graph = record(stream, [&] {
      void* own = workspaces.of(stream.get(), capture_of(stream.get()));
      MINISGL_CUDA_CHECK(cudaMemsetAsync(own, 1, 1 << 20, stream.get()));
    });
  }
  MINISGL_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream.get()));
  MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
}

}  // namespace
}  // namespace minisgl::cuda
