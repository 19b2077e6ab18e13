// A line of text for each choice, between a line that names the owner and one that counts them.
#include "gemm/choice_file.h"

#include <unistd.h>

#include <fstream>
#include <ios>
#include <optional>
#include <sstream>
#include <system_error>

#include "core/log.h"

namespace minisgl {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTitle = "minisgl's choices of GEMM algorithms, version 2: ";

// All lines after the first; nothing if one of them is not as it was written.
std::optional<GemmChoices> parse(std::istream& in) {
  GemmChoices choices;
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    if (line.starts_with("end ")) {
      std::string end;
      std::size_t count = 0;
      if (!(words >> end >> count) || count != choices.size() || std::getline(in, line)) return {};
      return choices;
    }
    ProductShape shape{};
    AlgorithmWords algorithm{};
    words >> shape.outputs >> shape.inputs >> shape.rows >> shape.y_is_f32 >> shape.added >> shape.of_bytes >> std::hex;
    for (std::uint64_t& word : algorithm) words >> word;
    if (!words || !(words >> std::ws).eof() || !choices.emplace(shape, algorithm).second) return {};
  }
  return {};
}

}  // namespace

GemmChoices read_choices(const fs::path& file, const std::string& owner) {
  std::ifstream in(file);
  std::string title;
  if (!std::getline(in, title) || title != kTitle + owner) return {};
  std::optional<GemmChoices> choices = parse(in);
  if (!choices) log_line(LogLevel::warning, file.string() + " is damaged; the kernels are measured again");
  return choices.value_or(GemmChoices{});
}

void write_choices(const fs::path& file, const std::string& owner, const GemmChoices& choices) {
  std::ostringstream text;
  text << kTitle << owner << '\n';
  for (const auto& [shape, algorithm] : choices) {
    text << shape.outputs << ' ' << shape.inputs << ' ' << shape.rows << ' ' << shape.y_is_f32 << ' ' << shape.added
         << ' ' << shape.of_bytes << std::hex;
    for (const std::uint64_t word : algorithm) text << ' ' << word;
    text << std::dec << '\n';
  }
  text << "end " << choices.size() << '\n';

  const fs::path draft = file.string() + "." + std::to_string(getpid());
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  std::ofstream out(draft);
  out << text.str();
  out.close();
  if (out) fs::rename(draft, file, error);
  if (out && !error) return;
  log_line(LogLevel::warning, file.string() + " can't be written; the kernels are measured again at each start");
  fs::remove(draft, error);
}

}  // namespace minisgl
