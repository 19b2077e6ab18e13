// What enters and leaves the prefix cache, for those who route requests by it. Off unless somebody asked for it.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace minisgl {

// Blocks are the cache's full pages, named by hashes that anybody can compute: XXH64 of a block's token ids, as 32-bit
// little-endian integers, with the hash of the block before it as the seed. The seed of the first one is 0 in the space
// without adapter and salt, else XXH64 of both (4 and 16 bytes) with seed 0.
struct BlockEvent {
  enum class Kind { stored, removed, cleared };
  Kind kind = Kind::cleared;
  std::string medium = {};                   // where the blocks are: "GPU", "CPU"
  std::vector<std::uint64_t> hashes = {};    // stored: each follows the one before it
  std::optional<std::uint64_t> parent = {};  // stored: what the first one follows; none: it is a prompt's first
  std::vector<std::int32_t> tokens = {};     // stored: of all blocks
  std::array<std::uint64_t, 2> salt = {};    // stored: of the space
};

// Events until they are taken. Thread-safe. Whoever doesn't take them loses them: beyond kMostBlocks there is one event
// left, "cleared", which those who listen can only believe too little after.
class BlockEvents {
 public:
  static constexpr std::size_t kMostBlocks = std::size_t{1} << 16;

  void stored(const std::string& medium, const std::optional<std::uint64_t>& parent, std::uint64_t hash,
              std::span<const std::int32_t> tokens, const std::array<std::uint64_t, 2>& salt);
  void removed(const std::string& medium, std::uint64_t hash);
  std::vector<BlockEvent> take();

 private:
  bool has_room();

  std::mutex mutex_;
  std::vector<BlockEvent> events_;
  std::size_t num_blocks_ = 0;
  bool is_lossy_ = false;  // more came than is kept
};

}  // namespace minisgl
