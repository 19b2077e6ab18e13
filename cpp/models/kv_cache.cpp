// One allocation, and where the layers lie in it.
#include "models/kv_cache.h"

#include "core/error.h"
#include "models/model_shard.h"

namespace minisgl {
namespace {

// Bytes of the keys (or values) of one layer in one page.
std::int64_t plane_bytes_per_page(std::int64_t num_kv_heads, std::int64_t head_dim, DType dtype, int page_size) {
  return row_bytes(dtype, num_kv_heads * head_dim * page_size);
}

}  // namespace

std::int64_t KvCache::bytes_per_page(const ModelSpec& spec, DType dtype, int page_size, int num_ranks) {
  const std::int64_t num_kv_heads = shard_of(spec, num_ranks).num_kv_heads;
  return spec.num_layers * 2 * plane_bytes_per_page(num_kv_heads, spec.head_dim, dtype, page_size);
}

KvCache::KvCache(Device& device, const ModelSpec& spec, DType dtype, std::int64_t num_pages, int page_size)
    : dtype_(dtype),
      num_pages_(num_pages),
      page_size_(page_size),
      num_layers_(spec.num_layers),
      num_kv_heads_(static_cast<int>(shard_of(spec, device.num_ranks()).num_kv_heads)),
      head_dim_(static_cast<int>(spec.head_dim)) {
  MINISGL_CHECK(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, "dtype ", dtype_info(dtype).name);
  MINISGL_CHECK(num_pages > 0 && page_size > 0);
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(bytes_per_page(spec, dtype, page_size, device.num_ranks()), num_pages, &bytes)) {
    throw InputError(concat("a KV cache of ", num_pages, " pages of ", page_size,
                            " tokens is too large to count its bytes; lower --kv-cache-tokens"));
  }
  data_ = device.allocate(static_cast<std::size_t>(bytes));
}

void KvCache::copy_page(Hardware& device, std::int32_t source, std::int32_t destination) {
  MINISGL_CHECK(source >= 0 && source < num_pages_ && destination >= 0 && destination < num_pages_, "page ", source,
                " to ", destination);
  const std::int64_t bytes = plane_bytes_per_page(num_kv_heads_, head_dim_, dtype_, page_size_);
  for (std::int64_t plane = 0; plane < 2 * num_layers_; ++plane) {
    std::byte* base = data_.data() + plane * num_pages_ * bytes;
    device.copy(base + source * bytes, static_cast<std::size_t>(bytes), base + destination * bytes);
  }
}

std::vector<PagePlane> KvCache::planes() const {
  const std::int64_t bytes = plane_bytes_per_page(num_kv_heads_, head_dim_, dtype_, page_size_);
  std::vector<PagePlane> planes;
  for (std::int64_t plane = 0; plane < 2 * num_layers_; ++plane) {
    planes.push_back({data_.data() + plane * num_pages_ * bytes, bytes});
  }
  return planes;
}

ops::KvLayer KvCache::layer(std::int64_t index) const {
  MINISGL_CHECK(index >= 0 && index < num_layers_);
  const std::int64_t plane = num_pages_ * plane_bytes_per_page(num_kv_heads_, head_dim_, dtype_, page_size_);
  std::byte* base = data_.data() + index * 2 * plane;
  return {.keys = base,
          .values = base + plane,
          .dtype = dtype_,
          .num_kv_heads = num_kv_heads_,
          .page_size = page_size_,
          .head_dim = head_dim_};
}

}  // namespace minisgl
