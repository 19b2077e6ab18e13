// Brings the activations into the form that the kernels read, cuts the product into tasks of some groups of outputs x
// some rows, runs the kernels, and rounds what they wrote.
#include "gemm/gemm.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "gemm/block_codec.h"
#include "gemm/dispatch.h"
#include "gemm/layout.h"
#include "gemm/row_choice.h"

namespace minisgl {
namespace {

constexpr std::int64_t bf16_task_weight_bytes = 4 << 20;  // those kernels take columns in blocks by themselves
constexpr std::int64_t bf16_tile_groups = 12;
constexpr std::int64_t tasks_per_thread = 4;             // enough to even out threads that are late
constexpr std::int64_t inline_convert_values = 8 << 10;  // fewer activations are not worth waking a thread

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// One part, cut: its tasks are all pairs of a chunk of groups and a chunk of rows.
struct PartPlan {
  std::int64_t first_task;
  std::int64_t first_row, num_rows;
  std::int64_t rows_per_chunk;
  std::int64_t num_row_chunks;
  Kernel kernel;
  DType reads;  // what the kernel reads: the weights' format where activations are quantised, else f32 or bf16
  std::int64_t group_bytes;
  std::int64_t num_groups;
  std::int64_t groups_per_task;
  std::int64_t num_group_chunks;
  const std::byte* activations;
  std::int64_t activation_stride;
};

struct Plan {
  std::span<PartPlan> parts;  // in the workspace
  std::int64_t num_tasks = 0;
  float* outputs;  // [num_rows, y_stride]: y, or scratch where y is rounded
};

// Calls convert(row) for all rows, spread over the threads where they have enough columns.
template <typename Convert>
void convert_rows(std::int64_t num_rows, std::int64_t cols, ThreadPool& pool, Convert convert) {
  const std::int64_t rows_a_task = std::max<std::int64_t>(1, inline_convert_values / std::max<std::int64_t>(cols, 1));
  pool.parallel_for(divide_up(num_rows, rows_a_task), [&](std::int64_t task, int) {
    const std::int64_t end = std::min(num_rows, (task + 1) * rows_a_task);
    for (std::int64_t row = task * rows_a_task; row < end; ++row) convert(row);
  });
}

// [num_rows, cols] f32: x itself, or its values in the workspace.
const float* widen_rows(const KernelTable& table, const GemmArgs& args, std::int64_t cols, GemmWorkspace& workspace,
                        ThreadPool& pool) {
  if (args.x_dtype == DType::f32) return static_cast<const float*>(args.x);
  workspace.widened.reserve(static_cast<std::size_t>(args.num_rows * cols) * sizeof(float));
  float* const rows = workspace.widened.as<float>();
  const std::int64_t bytes = row_bytes(args.x_dtype, cols);
  convert_rows(args.num_rows, cols, pool, [&](std::int64_t row) {
    table.widen(static_cast<const std::byte*>(args.x) + row * bytes, args.x_dtype, cols, rows + row * cols);
  });
  return rows;
}

// [num_rows, cols / 32], in the workspace.
const ActivationBlock* quantize_rows(QuantizeFunction quantize, const float* x, std::int64_t num_rows,
                                     std::int64_t cols, GemmWorkspace& workspace, ThreadPool& pool) {
  const std::int64_t blocks_a_row = cols / 32;
  workspace.activations.reserve(static_cast<std::size_t>(num_rows * blocks_a_row) * sizeof(ActivationBlock));
  auto* const blocks = workspace.activations.as<ActivationBlock>();
  convert_rows(num_rows, cols, pool,
               [&](std::int64_t row) { quantize(x + row * cols, cols, blocks + row * blocks_a_row); });
  return blocks;
}

// Fills in the activations of every part; each form of them is made once for all parts that read it.
void prepare_activations(const KernelTable& table, const GemmArgs& args, std::int64_t cols, Plan& plan,
                         GemmWorkspace& workspace, ThreadPool& pool) {
  const float* widened = nullptr;
  const ActivationBlock* quantized = args.quantized;
  const auto f32_rows = [&] {
    if (!widened) widened = widen_rows(table, args, cols, workspace, pool);
    return widened;
  };
  for (std::size_t i = 0; i < args.parts.size(); ++i) {
    PartPlan& part = plan.parts[i];
    if (part.num_rows == 0) continue;
    if (is_quantized(part.reads)) {
      if (!quantized) quantized = quantize_rows(table.quantize, f32_rows(), args.num_rows, cols, workspace, pool);
      part.activations = reinterpret_cast<const std::byte*>(quantized);
      part.activation_stride = cols / 32 * static_cast<std::int64_t>(sizeof(ActivationBlock));
    } else if (part.reads == DType::bf16) {
      part.activations = static_cast<const std::byte*>(args.x);
      part.activation_stride = row_bytes(DType::bf16, cols);
    } else {
      part.activations = reinterpret_cast<const std::byte*>(f32_rows());
      part.activation_stride = cols * static_cast<std::int64_t>(sizeof(float));
    }
  }
}

void place_rows(const GemmArgs& args, const GemmPart& part, PartPlan& plan) {
  const bool all = part.num_rows == GemmPart::kAllRows;
  plan.first_row = all ? 0 : part.first_row;
  plan.num_rows = all ? args.num_rows : part.num_rows;
  MINISGL_CHECK(plan.num_rows >= 0 && plan.first_row >= 0 && plan.first_row + plan.num_rows <= args.num_rows, "rows ",
                plan.first_row, " to ", plan.first_row + plan.num_rows, " of ", args.num_rows);
}

// Its rows in chunks.
void cut_rows(PartPlan& plan) {
  const std::int64_t num_chunks = std::max<std::int64_t>(1, divide_up(plan.num_rows, plan.kernel.task_rows));
  plan.rows_per_chunk = std::max<std::int64_t>(4, divide_up(divide_up(plan.num_rows, num_chunks), 4) * 4);
  plan.num_row_chunks = divide_up(plan.num_rows, plan.rows_per_chunk);
}

Plan make_plan(const KernelTable& table, const GemmArgs& args, std::int64_t cols, int num_threads,
               GemmWorkspace& workspace) {
  Plan plan;
  workspace.parts.reserve(args.parts.size() * sizeof(PartPlan));
  plan.parts = {workspace.parts.as<PartPlan>(), args.parts.size()};
  std::int64_t total_bytes = 0;  // that tasks of all chunks of rows read
  for (std::size_t i = 0; i < args.parts.size(); ++i) {
    const PackedMatrix& weight = *args.parts[i].weight;
    PartPlan& part = plan.parts[i];
    part = {};
    place_rows(args, args.parts[i], part);
    if (part.num_rows == 0) continue;
    if (table.bf16_rows && weight.dtype() == DType::bf16 && args.x_dtype == DType::bf16) {
      part.kernel = {.dtype = DType::bf16,
                     .min_rows = 1,
                     .run = table.bf16_rows,
                     .task_weight_bytes = bf16_task_weight_bytes,
                     .tile_groups = bf16_tile_groups};
      part.reads = DType::bf16;
    } else {
      part.kernel = find_gemm_kernel(table, weight.dtype(), part.num_rows);
      part.reads = is_quantized(weight.dtype()) ? weight.dtype() : DType::f32;
    }
    cut_rows(part);
    part.group_bytes = packed_group_bytes(weight.dtype(), cols);
    part.num_groups = divide_up(weight.rows(), group_rows);
    total_bytes += part.num_groups * part.group_bytes * part.num_row_chunks;
  }
  // Chunks of equal bytes: small enough for the cache when there are rows to reuse them, many enough for the threads.
  const std::int64_t wanted_tasks = num_threads == 1 ? 1 : num_threads * tasks_per_thread;
  const std::int64_t even_bytes = divide_up(total_bytes, wanted_tasks);
  for (PartPlan& part : plan.parts) {
    part.first_task = plan.num_tasks;
    if (part.num_rows == 0) continue;
    const std::int64_t chunk_bytes =
        part.num_rows > 1 ? std::min(even_bytes, part.kernel.task_weight_bytes) : even_bytes;
    const std::int64_t tile_groups = part.kernel.tile_groups;
    part.groups_per_task = std::max<std::int64_t>(1, chunk_bytes / std::max<std::int64_t>(part.group_bytes, 1));
    part.groups_per_task = divide_up(part.groups_per_task, tile_groups) * tile_groups;
    part.num_group_chunks = divide_up(part.num_groups, part.groups_per_task);
    plan.num_tasks += part.num_group_chunks * part.num_row_chunks;
  }
  return plan;
}

void run_task(const KernelTable& table, const GemmArgs& args, const Plan& plan, std::int64_t cols, std::int64_t task) {
  // The last part that begins at the task or before it: those without rows have no tasks.
  const auto behind = std::ranges::upper_bound(plan.parts, task, {}, &PartPlan::first_task);
  const PartPlan& cut = *(behind - 1);
  const GemmPart& part = args.parts[static_cast<std::size_t>(behind - 1 - plan.parts.begin())];
  task -= cut.first_task;
  const std::int64_t first_group = task / cut.num_row_chunks * cut.groups_per_task;
  const std::int64_t chunk_row = task % cut.num_row_chunks * cut.rows_per_chunk;
  const std::int64_t first_row = cut.first_row + chunk_row;
  const std::int64_t first_output = first_group * group_rows;
  const KernelArgs kernel_args{
      .weights = part.weight->data() + first_group * cut.group_bytes,
      .cols = cols,
      .num_outputs = std::min(part.weight->rows() - first_output, cut.groups_per_task * group_rows),
      .bias = part.bias ? part.bias + first_output : nullptr,
      .activations = cut.activations + first_row * cut.activation_stride,
      .activation_stride = cut.activation_stride,
      .num_rows = std::min(cut.rows_per_chunk, cut.num_rows - chunk_row),
      .y = plan.outputs + first_row * args.y_stride + part.column + first_output,
      .y_stride = args.y_stride,
  };
  cut.kernel.run(kernel_args);
  if (args.y_dtype == DType::f32) return;
  for (std::int64_t row = 0; row < kernel_args.num_rows; ++row) {
    const float* from = kernel_args.y + row * args.y_stride;
    table.round(from, args.y_dtype, kernel_args.num_outputs,
                static_cast<std::byte*>(args.y) + row_bytes(args.y_dtype, from - plan.outputs));
  }
}

// The kernels of an instruction set that adds some to another's.
struct ExtendedTable {
  ExtendedTable(CpuIsa isa, const MoreKernels& more)
      : table(gemm_kernel_table(base_isa(isa))), chosen(choose_by_rows(table, more)) {
    table.isa = isa;
    table.bf16_rows = more.bf16_rows;
    table.more_kernels = chosen.data();
    table.num_more_kernels = static_cast<int>(chosen.size());
  }
  KernelTable table;
  std::vector<Kernel> chosen;
};

}  // namespace

const KernelTable& gemm_kernel_table(CpuIsa isa) {
#define MINISGL_RETURN_TABLE(name) \
  if (isa == CpuIsa::name) return name::gemm_kernels;
  MINISGL_FOR_EACH_ISA(MINISGL_RETURN_TABLE)
#undef MINISGL_RETURN_TABLE
#define MINISGL_RETURN_EXTENDED_TABLE(name)                         \
  if (isa == CpuIsa::name) {                                        \
    static const ExtendedTable table(isa, name::more_gemm_kernels); \
    return table.table;                                             \
  }
  MINISGL_FOR_EACH_MORE_ISA(MINISGL_RETURN_EXTENDED_TABLE)
#undef MINISGL_RETURN_EXTENDED_TABLE
  throw CheckError(concat("this build has no ", cpu_isa_label(isa), " kernels"));
}

const Kernel& find_gemm_kernel(const KernelTable& table, DType dtype, std::int64_t num_rows) {
  const Kernel* best = nullptr;
  for (const auto& kernels : {std::span(table.kernels, static_cast<std::size_t>(table.num_kernels)),
                              std::span(table.more_kernels, static_cast<std::size_t>(table.num_more_kernels))})
    for (const Kernel& kernel : kernels)
      if (kernel.dtype == dtype && kernel.min_rows <= num_rows && (!best || kernel.min_rows > best->min_rows))
        best = &kernel;
  MINISGL_CHECK(best != nullptr, "no kernel for ", num_rows, " rows of ", dtype_info(dtype).name);
  return *best;
}

void gemm_with(const KernelTable& table, const GemmArgs& args, GemmWorkspace& workspace, ThreadPool& pool) {
  if (args.num_rows == 0 || args.parts.empty()) return;
  MINISGL_CHECK(!is_quantized(args.x_dtype) && !is_quantized(args.y_dtype), "x is ", dtype_info(args.x_dtype).name,
                ", y is ", dtype_info(args.y_dtype).name);
  const std::int64_t cols = args.parts.front().weight->cols();
  for (const GemmPart& part : args.parts)
    MINISGL_CHECK(part.weight->cols() == cols, "parts read ", cols, " and ", part.weight->cols(), " features");
  Plan plan = make_plan(table, args, cols, pool.num_threads(), workspace);
  prepare_activations(table, args, cols, plan, workspace, pool);
  if (args.y_dtype == DType::f32) {
    plan.outputs = static_cast<float*>(args.y);
  } else {
    workspace.outputs.reserve(static_cast<std::size_t>(args.num_rows * args.y_stride) * sizeof(float));
    plan.outputs = workspace.outputs.as<float>();
  }
  pool.parallel_for(plan.num_tasks, [&](std::int64_t task, int) { run_task(table, args, plan, cols, task); });
}

namespace {

const KernelTable& own_kernels() {
  static const KernelTable& table = gemm_kernel_table(cpu_isa());
  return table;
}

}  // namespace

void gemm(const GemmArgs& args, GemmWorkspace& workspace, ThreadPool& pool) {
  gemm_with(own_kernels(), args, workspace, pool);
}

void quantize_row(const float* x, std::int64_t cols, ActivationBlock* blocks) {
  own_kernels().quantize(x, cols, blocks);
}

const char* cpu_isa_name() {
  return cpu_isa_label(cpu_isa()).data();
}

}  // namespace minisgl
