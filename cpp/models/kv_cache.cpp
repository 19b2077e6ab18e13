// One allocation, and where the layers lie in it.
#include "models/kv_cache.h"

#include <algorithm>
#include <iterator>

#include "core/error.h"
#include "models/model_shard.h"

namespace minisgl {
namespace {

// Bytes of the keys (or values) of one layer in one page.
std::int64_t data_page_bytes(std::int64_t num_kv_heads, std::int64_t head_dim, DType dtype, int page_size) {
  return row_bytes(dtype, num_kv_heads * head_dim * page_size);
}

// Bytes of their scales.
std::int64_t scale_page_bytes(std::int64_t num_kv_heads, DType dtype, int page_size) {
  return has_kv_scales(dtype) ? num_kv_heads * page_size * std::int64_t{sizeof(float)} : 0;
}

}  // namespace

std::int64_t KvCache::bytes_per_page(const ModelSpec& spec, DType dtype, int page_size, int num_ranks) {
  const std::int64_t num_kv_heads = shard_of(spec, num_ranks).num_kv_heads;
  return spec.num_layers * 2 *
         (data_page_bytes(num_kv_heads, spec.head_dim, dtype, page_size) +
          scale_page_bytes(num_kv_heads, dtype, page_size));
}

KvCache::KvCache(Device& device, const ModelSpec& spec, DType dtype, std::int64_t num_pages, int page_size)
    : dtype_(dtype),
      num_pages_(num_pages),
      page_size_(page_size),
      num_layers_(spec.num_layers),
      num_kv_heads_(static_cast<int>(shard_of(spec, device.num_ranks()).num_kv_heads)),
      head_dim_(static_cast<int>(spec.head_dim)) {
  MINISGL_CHECK(std::ranges::find(kv_dtypes, dtype) != std::end(kv_dtypes), "dtype ", dtype_info(dtype).name);
  MINISGL_CHECK(num_pages > 0 && page_size > 0);
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(bytes_per_page(spec, dtype, page_size, device.num_ranks()), num_pages, &bytes)) {
    throw InputError(concat("a KV cache of ", num_pages, " pages of ", page_size,
                            " tokens is too large to count its bytes; lower --kv-cache-tokens"));
  }
  std::int64_t offset = 0;
  for (const std::int64_t page_bytes : {data_page_bytes(num_kv_heads_, head_dim_, dtype, page_size),
                                        scale_page_bytes(num_kv_heads_, dtype, page_size)}) {
    for (std::int64_t i = 0; page_bytes > 0 && i < 2 * num_layers_; ++i, offset += num_pages * page_bytes) {
      planes_.push_back({offset, page_bytes});
    }
  }
  MINISGL_CHECK(offset == bytes, "planes of ", offset, " bytes, counted ", bytes);
  data_ = device.allocate(static_cast<std::size_t>(bytes));
}

void KvCache::copy_page(Hardware& device, std::int32_t source, std::int32_t destination) {
  MINISGL_CHECK(source >= 0 && source < num_pages_ && destination >= 0 && destination < num_pages_, "page ", source,
                " to ", destination);
  for (const auto& [offset, page_bytes] : planes_) {
    std::byte* base = data_.data() + offset;
    device.copy(base + source * page_bytes, static_cast<std::size_t>(page_bytes), base + destination * page_bytes);
  }
}

std::vector<PagePlane> KvCache::planes() const {
  std::vector<PagePlane> planes;
  for (const auto& [offset, page_bytes] : planes_) planes.push_back({data_.data() + offset, page_bytes});
  return planes;
}

ops::KvLayer KvCache::layer(std::int64_t index) const {
  MINISGL_CHECK(index >= 0 && index < num_layers_);
  const auto plane = [&](std::int64_t i) { return data_.data() + planes_[static_cast<std::size_t>(i)].offset; };
  const std::int64_t keys = 2 * index;
  ops::KvLayer layer{.keys = plane(keys),
                     .values = plane(keys + 1),
                     .dtype = dtype_,
                     .num_kv_heads = num_kv_heads_,
                     .page_size = page_size_,
                     .head_dim = head_dim_};
  if (has_kv_scales(dtype_)) {
    layer.key_scales = reinterpret_cast<float*>(plane(2 * num_layers_ + keys));
    layer.value_scales = reinterpret_cast<float*>(plane(2 * num_layers_ + keys + 1));
  }
  return layer;
}

}  // namespace minisgl
