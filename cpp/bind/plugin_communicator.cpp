// Takes the GIL and calls.
#include "bind/plugin_communicator.h"

#include <exception>
#include <string>
#include <utility>

#include "bind/lent_tensor.h"
#include "core/error.h"

namespace py = pybind11;

namespace minisgl {
namespace {

class PluginCommunicator final : public Communicator {
 public:
  PluginCommunicator(py::object target, int rank, int size, int device)
      : target_(std::move(target)), rank_(rank), size_(size), device_(device) {
    check_rank(rank, size);
  }
  ~PluginCommunicator() override {
    const py::gil_scoped_acquire gil;
    target_ = py::object();
  }

  std::string name() const override { return "a Python plug-in"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int device() const override { return device_; }

  void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle stream) override {
    call([&] { target_.attr("all_reduce")(lend_tensor(data, count, dtype, device_), stream); });
  }
  void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle stream) override {
    call([&] {
      target_.attr("all_gather")(lend_bytes(const_cast<void*>(input), num_bytes, device_),
                                 lend_bytes(output, num_bytes * size_, device_), stream);
    });
  }
  void reduce_scatter_sum(const void* input, void* output, std::int64_t count, DType dtype,
                          StreamHandle stream) override {
    call([&] {
      target_.attr("reduce_scatter")(lend_tensor(const_cast<void*>(input), count * size_, dtype, device_),
                                     lend_tensor(output, count, dtype, device_), stream);
    });
  }
  void broadcast(void* data, std::int64_t num_bytes, int root, StreamHandle stream) override {
    call([&] { target_.attr("broadcast")(lend_bytes(data, num_bytes, device_), root, stream); });
  }
  void barrier(StreamHandle stream) override {
    call([&] { target_.attr("barrier")(stream); });
  }

 private:
  // An exception of Python's must not leave with the GIL given back: its text goes on.
  template <typename Body>
  static void call(Body body) {
    const py::gil_scoped_acquire gil;
    try {
      body();
    } catch (py::error_already_set& error) {
      throw RankFailure(-1, concat("the communicator's plug-in: ", error.what()));
    }
  }

  py::object target_;
  int rank_;
  int size_;
  int device_;
};

}  // namespace

std::shared_ptr<Communicator> make_plugin_communicator(py::object target, int rank, int size, int device) {
  return std::make_shared<PluginCommunicator>(std::move(target), rank, size, device);
}

}  // namespace minisgl
