// The numbers of a part stand in its metadata (split.no, split.count, split.tensors.count) and in its name; both have
// to agree.
#include "io/gguf_parts.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "io/quote.h"

namespace minisgl {
namespace {

constexpr std::uint64_t max_parts = 65535;  // split.no and split.count are of 16 bits

// A number of the metadata; 0 where there is none.
std::uint64_t split_number(const GgufFile& file, const char* key, const std::string& path) {
  const auto entry = file.metadata.find(key);
  if (entry == file.metadata.end()) return 0;
  if (!entry->second.is_number_integer() || entry->second < 0) {
    throw InputError(concat("'", path, "': ", key, " must be a number"));
  }
  return entry->second.get<std::uint64_t>();
}

constexpr std::string_view usual_suffix = ".gguf";

// The suffix of a .gguf file's name as it is written there, in either case; the usual one where there is none.
std::string suffix_of(const std::string& path) {
  const std::string suffix = std::filesystem::path(path).extension().string();
  const auto same = [](char written, char usual) {
    return (written >= 'A' && written <= 'Z' ? written + 32 : written) == usual;
  };
  return std::ranges::equal(suffix, usual_suffix, same) ? suffix : std::string(usual_suffix);
}

// "-00002-of-00003.gguf" for index 1 of 3 and that suffix.
std::string name_ending(std::uint64_t index, std::uint64_t count, const std::string& suffix) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "-%05llu-of-%05llu", static_cast<unsigned long long>(index + 1),
                static_cast<unsigned long long>(count));
  return text.data() + suffix;
}

// The paths of all parts, out of one of them. Throws where a part isn't there.
std::vector<std::string> part_paths(const std::string& path, std::uint64_t index, std::uint64_t count) {
  const std::string suffix = suffix_of(path);
  const std::string ending = name_ending(index, count, suffix);
  if (!path.ends_with(ending)) {
    throw InputError(concat("'", path, "' is part ", index + 1, " of a model of ", count,
                            " files, but its name doesn't end in ", ending, ", so the others can't be found"));
  }
  const std::string stem = path.substr(0, path.size() - ending.size());
  std::vector<std::string> paths;
  std::string missing;
  std::uint64_t num_missing = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    paths.push_back(stem + name_ending(i, count, suffix));
    std::error_code ignored;
    if (std::filesystem::exists(paths.back(), ignored)) continue;
    if (++num_missing == 1) missing = paths.back();
  }
  if (num_missing > 0) {
    throw InputError(concat("'", path, "' is one of ", count, " files of a model, and '", missing, "'",
                            num_missing > 1 ? concat(" and ", num_missing - 1, " more are") : " is", " missing"));
  }
  return paths;
}

void add_tensors(GgufFile& model, GgufFile part, const std::string& path) {
  for (auto& [name, tensor] : part.tensors) {
    if (!model.tensors.try_emplace(name, std::move(tensor)).second) {
      throw InputError(concat("'", path, "' has the tensor ", quote_name(name), ", as has another part of the model"));
    }
  }
}

}  // namespace

GgufModel open_gguf_model(const std::string& path) {
  GgufModel model;
  model.mappings.emplace_back(path);
  model.file = parse_gguf(model.mappings.front().bytes(), path);
  const std::uint64_t count = split_number(model.file, "split.count", path);
  if (count <= 1) return model;
  const std::uint64_t given = split_number(model.file, "split.no", path);
  if (count > max_parts || given >= count) {
    throw InputError(concat("'", path, "' says that it is part ", given + 1, " of ", count));
  }
  const std::vector<std::string> paths = part_paths(path, given, count);
  model = {};
  for (std::uint64_t i = 0; i < count; ++i) {
    const MappedFile& mapping = model.mappings.emplace_back(paths[i]);
    GgufFile part = parse_gguf(mapping.bytes(), paths[i]);
    if (split_number(part, "split.no", paths[i]) != i || split_number(part, "split.count", paths[i]) != count) {
      throw InputError(concat("'", paths[i], "' is not part ", i + 1, " of ", count, ", as its name says"));
    }
    if (i == 0) {
      model.file = std::move(part);
    } else {
      add_tensors(model.file, std::move(part), paths[i]);
    }
  }
  const std::uint64_t promised = split_number(model.file, "split.tensors.count", paths[0]);
  if (promised != 0 && promised != model.file.tensors.size()) {
    throw InputError(concat("'", paths[0], "' promises ", promised, " tensors in ", count, " files, which hold ",
                            model.file.tensors.size()));
  }
  return model;
}

}  // namespace minisgl
