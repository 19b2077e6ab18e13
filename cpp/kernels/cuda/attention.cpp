// Chooses the attention kernels for a head size and a cache.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/error.h"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {
namespace {

template <typename T, int padded_dim>
void launch(const AttentionArgs& args, cudaStream_t stream) {
  if (args.step.num_prefills > 0 && !hopper_prefill_attention<T, padded_dim>(args, stream))
    prefill_attention<T, padded_dim>(args, stream);
  if (args.step.num_decodes > 0) decode_attention<T, padded_dim>(args, stream);
}

template <typename T>
void launch_for_dim(const AttentionArgs& args, cudaStream_t stream) {
  const int head_dim = args.shape.head_dim;
  if (head_dim <= 64) return launch<T, 64>(args, stream);
  if (head_dim <= 80) return launch<T, 80>(args, stream);
  if (head_dim <= 96) return launch<T, 96>(args, stream);
  if (head_dim <= 128) return launch<T, 128>(args, stream);
  launch<T, 256>(args, stream);
}

void launch_bytes(const AttentionArgs& args, cudaStream_t stream) {
  const int head_dim = args.shape.head_dim;
  MINISGL_CHECK(head_dim % 16 == 0, "head_dim ", head_dim, " of an fp8 cache is not a multiple of 16");
  if (head_dim <= 64) return launch<e4m3, 64>(args, stream);
  if (head_dim <= 128) return launch<e4m3, 128>(args, stream);
  launch<e4m3, 256>(args, stream);
}

}  // namespace

void paged_attention(const AttentionArgs& args, cudaStream_t stream) {
  const HeadShape& shape = args.shape;
  const ops::KvLayer& cache = args.cache;
  MINISGL_CHECK(shape.num_kv_heads == cache.num_kv_heads && shape.head_dim == cache.head_dim,
                "heads of the cache differ");
  MINISGL_CHECK(shape.num_heads % shape.num_kv_heads == 0, shape.num_heads, " heads for ", shape.num_kv_heads,
                " KV heads");
  MINISGL_CHECK(shape.head_dim % 8 == 0 && shape.head_dim <= 256, "head_dim ", shape.head_dim,
                " is not a multiple of 8 up to 256");
  MINISGL_CHECK(cache.page_size > 0 && args.window >= 0, "page_size ", cache.page_size, ", window ", args.window);
  if (cache.dtype == DType::bf16) return launch_for_dim<__nv_bfloat16>(args, stream);
  if (cache.dtype == DType::f8e4m3) return launch_bytes(args, stream);
  MINISGL_CHECK(cache.dtype == DType::f16, "cache of ", dtype_info(cache.dtype).name);
  launch_for_dim<half>(args, stream);
}

}  // namespace minisgl::cuda
