// Multiplies and shifts, eight bytes at a time.
#include "models/fingerprint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "io/mapped_file.h"

namespace minisgl {
namespace {

constexpr std::size_t kBlockBytes = 4096;
constexpr std::size_t kMostBlocks = 64;

class Hash {
 public:
  void add(std::uint64_t value) {
    state_ = (state_ ^ value) * 0x9e3779b97f4a7c15u;
    state_ ^= state_ >> 32;
  }
  void add(double value) { add(std::bit_cast<std::uint64_t>(value)); }
  void add(std::span<const std::byte> bytes) {
    add(std::uint64_t{bytes.size()});
    for (std::size_t i = 0; i < bytes.size(); i += sizeof(std::uint64_t)) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + i, std::min(sizeof word, bytes.size() - i));
      add(word);
    }
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x243f6a8885a308d3u;
};

void add_rope(Hash& hash, const RopeSpec& rope) {
  for (const double value :
       {rope.theta, rope.factor, rope.original_max_position, rope.low_freq_factor, rope.high_freq_factor,
        rope.beta_fast, rope.beta_slow, rope.attention_factor, rope.query_growth}) {
    hash.add(value);
  }
  for (const std::uint64_t value : {static_cast<std::uint64_t>(rope.type), static_cast<std::uint64_t>(rope.rotary_dim),
                                    std::uint64_t{rope.truncate}, std::uint64_t{rope.interleaved}}) {
    hash.add(value);
  }
  hash.add(std::as_bytes(std::span(rope.short_factors)));
  hash.add(std::as_bytes(std::span(rope.long_factors)));
}

// What isn't among the shapes, which ranks compare by name (engine/group.h).
void add_spec(Hash& hash, const ModelSpec& spec) {
  add_rope(hash, spec.rope);
  if (spec.sliding_rope) add_rope(hash, *spec.sliding_rope);
  for (const double value : {spec.norm_eps, spec.norm_offset, spec.embedding_scale, spec.score_scale, spec.score_cap,
                             spec.logit_scale, spec.logit_cap}) {
    hash.add(value);
  }
  for (const std::uint64_t value :
       {std::uint64_t{spec.tied_embeddings}, std::uint64_t{spec.centered_norms}, std::uint64_t{spec.parallel_mlp},
        static_cast<std::uint64_t>(spec.activation), static_cast<std::uint64_t>(spec.qk_norm)}) {
    hash.add(value);
  }
  const ExpertSpec& experts = spec.experts;
  for (const std::uint64_t value :
       {static_cast<std::uint64_t>(experts.num_chosen), static_cast<std::uint64_t>(experts.scores),
        std::uint64_t{experts.normalized}, std::uint64_t{experts.choice_biased}, std::uint64_t{experts.shared_gated},
        std::uint64_t{experts.alternating}, std::uint64_t{spec.sinks}}) {
    hash.add(value);
  }
  hash.add(experts.scale);
  hash.add(std::as_bytes(std::span(experts.in_layer)));
  hash.add(std::as_bytes(std::span(spec.rotates)));
  hash.add(std::as_bytes(std::span(spec.window)));
  hash.add(std::as_bytes(std::span(spec.eos_token_ids)));
}

std::uint64_t hash_tensor(const std::string& name, const StoredTensor& tensor) {
  Hash hash;
  hash.add(std::as_bytes(std::span(name)));
  hash.add(std::as_bytes(std::span(tensor.type)));
  hash.add(std::as_bytes(std::span(tensor.shape)));
  const std::span<const std::byte> bytes = tensor.bytes;
  if (bytes.size() <= kMostBlocks * kBlockBytes) {
    hash.add(bytes);
    return hash.value();
  }
  expect_sparse_reads(bytes);
  const std::size_t last = bytes.size() - kBlockBytes;
  for (std::size_t i = 0; i < kMostBlocks; ++i) {
    hash.add(
        bytes.subspan(last / (kMostBlocks - 1) * i + last % (kMostBlocks - 1) * i / (kMostBlocks - 1), kBlockBytes));
  }
  return hash.value();
}

}  // namespace

std::uint64_t fingerprint(const ModelSpec& spec, const WeightSource& source, ThreadPool& pool) {
  std::vector<std::string> names = source.names();
  std::ranges::sort(names);
  std::vector<std::uint64_t> tensors(names.size());
  pool.parallel_for(std::ssize(names), [&](std::int64_t index, int) {
    const auto i = static_cast<std::size_t>(index);
    tensors[i] = hash_tensor(names[i], source.stored(names[i]));
  });
  Hash hash;
  add_spec(hash, spec);
  for (const std::uint64_t tensor : tensors) hash.add(tensor);
  return std::max<std::uint64_t>(hash.value(), 1);
}

}  // namespace minisgl
