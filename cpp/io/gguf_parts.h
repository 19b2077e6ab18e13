// A GGUF model that is published in parts: name-00001-of-00003.gguf and so on.
#pragma once

#include <string>
#include <vector>

#include "io/gguf_file.h"
#include "io/mapped_file.h"

namespace minisgl {

struct GgufModel {
  std::vector<MappedFile> mappings;  // hold what the tensors point into
  GgufFile file;                     // the first part's metadata, all parts' tensors
};

// Opens a file, and the others of its model when it is a part of one, whichever. The parts lie in one folder, under
// names that differ in their numbers only. Throws InputError; it names a part that is missing or isn't what its name
// says.
GgufModel open_gguf_model(const std::string& path);

}  // namespace minisgl
