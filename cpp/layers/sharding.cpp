// Dealing units out to ranks.
#include "layers/sharding.h"

#include "core/error.h"

namespace minisgl {
namespace {

constexpr std::int64_t kPaddedMultiple = 8;  // rows that the devices' products take at a time

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

std::int64_t divide_even(std::int64_t a, std::int64_t b, std::string_view what) {
  if (b <= 0 || a % b != 0) {
    throw InputError(concat(a, what.empty() ? "" : " ", what, " can't be divided evenly by ", b));
  }
  return a / b;
}

bool can_split(Split split, std::int64_t units, int num_ranks) {
  return split == Split::padded || split == Split::whole || units % num_ranks == 0 ||
         (split == Split::even_or_shared && num_ranks % units == 0);
}

Slice rank_slice(Split split, std::int64_t units, int rank, int num_ranks) {
  MINISGL_CHECK(units > 0 && rank >= 0 && rank < num_ranks, units, " units for rank ", rank, " of ", num_ranks);
  if (split == Split::whole) return {0, units};
  if (split == Split::padded && num_ranks > 1) {
    const std::int64_t count = divide_up(divide_up(units, num_ranks), kPaddedMultiple) * kPaddedMultiple;
    return {rank * count, count};
  }
  if (split == Split::even_or_shared && num_ranks > units && num_ranks % units == 0) {
    return {rank / (num_ranks / units), 1};
  }
  const std::int64_t count = divide_even(units, num_ranks, "");
  return {rank * count, count};
}

}  // namespace minisgl
